// ParseSafetensors(): 8 bytes with the length of the header, a JSON object, then the data, which
// the tensors' ranges cover exactly.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/files/layout.h"
#include "nlohmann/json.hpp"

namespace gradclip {
namespace {

using Json = nlohmann::json;

// The format's own limit, which keeps a hostile length from costing memory.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// {name: {"shape": [ ... ]}}: nothing of the format lies deeper.
constexpr int kMaxDepth = 3;

// Parses the header and refuses keys given twice, of which the JSON library would keep the last.
absl::StatusOr<Json> ParseHeader(std::string_view text) {
  std::array<std::set<std::string>, kMaxDepth + 1> keys;  // of the objects open at each depth
  std::string twice;
  bool too_deep = false;
  const Json::parser_callback_t check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    const bool opens =
        event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kMaxDepth) {
      too_deep = true;
      return false;  // keeps nothing of it
    }
    if (opens) keys[depth + 1].clear();
    if (event == Json::parse_event_t::key && depth <= kMaxDepth) {
      auto key = parsed.get<std::string>();
      if (!keys[depth].insert(key).second) twice = std::move(key);
    }
    return true;
  };
  Json header = Json::parse(text, check, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) {
    return absl::InvalidArgumentError("the header is not a JSON object");
  }
  if (too_deep) return absl::InvalidArgumentError("the header's JSON is nested too deep");
  if (!twice.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the header names \"", twice, "\" twice"));
  }
  return header;
}

absl::Status CheckMetadata(const Json& metadata) {
  if (metadata.is_object() && std::all_of(metadata.begin(), metadata.end(),
                                          [](const Json& value) { return value.is_string(); })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("__metadata__ must be an object of strings");
}

absl::StatusOr<DType> ParseDType(const std::string& name, const Json& info) {
  const auto field = info.find("dtype");
  if (field == info.end() || !field->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" has no dtype"));
  }
  const auto& text = field->get_ref<const std::string&>();
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    if (text == Name(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor \"", name, "\" has dtype ", text.substr(0, 32),
                   ", which can't be clipped; a gradient's are F32, F16, BF16 and F64"));
}

// The array of whole numbers in `field`.
absl::StatusOr<std::vector<int64_t>> ParseNumbers(const std::string& name, const Json& info,
                                                  const char* field) {
  const auto array = info.find(field);
  if (array == info.end() || !array->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" has no ", field));
  }
  std::vector<int64_t> numbers;
  numbers.reserve(array->size());
  for (const Json& number : *array) {
    if (!number.is_number_unsigned() ||
        number.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor \"", name, "\": ", field, " must hold whole numbers from 0 to 2^63 - 1"));
    }
    numbers.push_back(number.get<int64_t>());
  }
  return numbers;
}

// `offset` of the answer is still from the start of the data.
absl::StatusOr<TensorPlace> ParseTensor(const std::string& name, const Json& info,
                                        uint64_t data_bytes) {
  if (!info.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" is not a JSON object"));
  }
  absl::StatusOr<DType> dtype = ParseDType(name, info);
  if (!dtype.ok()) return dtype.status();
  absl::StatusOr<std::vector<int64_t>> shape = ParseNumbers(name, info, "shape");
  if (!shape.ok()) return shape.status();
  absl::StatusOr<std::vector<int64_t>> range = ParseNumbers(name, info, "data_offsets");
  if (!range.ok()) return range.status();
  if (range->size() != 2 || (*range)[0] > (*range)[1]) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor \"", name, "\": data_offsets must be [begin, end], not ", ShapeText(*range)));
  }
  const auto begin = static_cast<uint64_t>((*range)[0]);
  const auto end = static_cast<uint64_t>((*range)[1]);
  if (end > data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" ends at byte ", end,
                                                   " of the data, but the file holds only ",
                                                   data_bytes, "; it may be cut off"));
  }
  const std::optional<uint64_t> bytes = BytesOfShape(*shape, *dtype);
  if (!bytes.has_value() || *bytes != end - begin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor \"", name, "\": shape ", ShapeText(*shape), " of ", std::string(Name(*dtype)),
        " takes ", bytes.has_value() ? absl::StrCat(*bytes) : "over 2^63",
        " bytes, but its data_offsets span ", end - begin));
  }
  return TensorPlace{name, *dtype, *std::move(shape), begin, *bytes};
}

// Each range must begin where the one before it ends, and the last end where the file does.
absl::Status CheckContiguous(const std::vector<TensorPlace>& places, uint64_t data_bytes) {
  uint64_t end = 0;
  const std::string* before = nullptr;
  for (const TensorPlace& place : places) {
    if (place.offset < end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", place.name, "\" begins at byte ",
                                                     place.offset, " and overlaps \"", *before,
                                                     "\", which ends at ", end));
    }
    if (place.offset > end) {
      return absl::InvalidArgumentError(absl::StrCat("no tensor covers the bytes from ", end,
                                                     " to ", place.offset, ", before tensor \"",
                                                     place.name, "\""));
    }
    end = place.offset + place.bytes;
    before = &place.name;
  }
  if (end != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensors end at byte ", end, " of the data, but the file holds ", data_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TensorPlace>> ParseSafetensors(std::span<const std::byte> file) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file ends after ", file.size(), " bytes, within the header's length"));
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file = file.subspan(sizeof(header_bytes));
  if (header_bytes > file.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the header takes ", header_bytes,
                                                   " bytes, but the file holds only ", file.size(),
                                                   " after its length; it may be cut off"));
  }
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header takes ", header_bytes,
                                                   " bytes; the format allows ", kMaxHeaderBytes));
  }
  absl::StatusOr<Json> header =
      ParseHeader(std::string_view(reinterpret_cast<const char*>(file.data()), header_bytes));
  if (!header.ok()) return header.status();

  const uint64_t data_bytes = file.size() - header_bytes;
  std::vector<TensorPlace> places;
  for (const auto& [name, info] : header->items()) {
    if (name == "__metadata__") {
      if (absl::Status status = CheckMetadata(info); !status.ok()) return status;
      continue;
    }
    absl::StatusOr<TensorPlace> place = ParseTensor(name, info, data_bytes);
    if (!place.ok()) return place.status();
    places.push_back(*std::move(place));
  }
  // The JSON object is sorted by name, so a stable sort leaves empty tensors in that order.
  std::stable_sort(places.begin(), places.end(), [](const TensorPlace& a, const TensorPlace& b) {
    return std::tuple(a.offset, a.bytes) < std::tuple(b.offset, b.bytes);
  });
  if (absl::Status status = CheckContiguous(places, data_bytes); !status.ok()) return status;
  for (TensorPlace& place : places) place.offset += sizeof(header_bytes) + header_bytes;
  return places;
}

}  // namespace gradclip
