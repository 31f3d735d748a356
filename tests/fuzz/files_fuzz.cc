// The parsers of .safetensors and .npy files: what they accept lies within the file, leaves nothing
// of its data out, and written anew by the plainest writer means the same.
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/files/layout.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz.h"

namespace gradclip {
namespace {

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The elements of each tensor, as no file states them.
uint64_t PlainBytes(const TensorPlace& place) {
  unsigned __int128 bytes = ElementSize(place.dtype);
  for (const int64_t dimension : place.shape) {
    FUZZ_CHECK(dimension >= 0);
    bytes *= static_cast<uint64_t>(dimension);
    FUZZ_CHECK(bytes <= INT64_MAX);
  }
  return static_cast<uint64_t>(bytes);
}

void CheckSame(const TensorPlace& a, const TensorPlace& b) {
  FUZZ_CHECK(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes);
}

void CheckSafetensors(std::string_view file) {
  const auto places = ParseSafetensors(BytesOf(file));
  if (!places.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(places.status()) && !places.status().message().empty());
    return;
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const uint64_t data_at = sizeof(header_bytes) + header_bytes;
  uint64_t end = data_at;
  std::set<std::string> names;
  nlohmann::json header = nlohmann::json::object();
  for (const TensorPlace& place : *places) {
    FUZZ_CHECK(place.offset == end && place.bytes == PlainBytes(place));
    FUZZ_CHECK(names.insert(place.name).second);
    end += place.bytes;
    header[place.name] = {{"dtype", std::string(Name(place.dtype))},
                          {"shape", place.shape},
                          {"data_offsets", {place.offset - data_at, end - data_at}}};
  }
  FUZZ_CHECK(end == file.size());

  const std::string text = header.dump();
  std::string written(sizeof(uint64_t), '\0');
  const uint64_t text_bytes = text.size();
  std::memcpy(written.data(), &text_bytes, sizeof(text_bytes));
  written.append(text).append(file.substr(data_at));
  const auto again = ParseSafetensors(BytesOf(written));
  FUZZ_CHECK(again.ok() && again->size() == places->size());
  for (size_t i = 0; i < places->size(); ++i) CheckSame((*places)[i], (*again)[i]);
}

void CheckNpy(std::string_view file) {
  const auto place = ParseNpy(BytesOf(file), "w");
  if (!place.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(place.status()) && !place.status().message().empty());
    return;
  }
  FUZZ_CHECK(place->bytes == PlainBytes(*place));
  FUZZ_CHECK(place->offset <= file.size() && place->bytes == file.size() - place->offset);

  const std::string header = absl::StrCat(
      "{'descr': '<f", ElementSize(place->dtype), "', 'fortran_order': False, 'shape': (",
      absl::StrJoin(place->shape, ", "), place->shape.size() == 1 ? ",), }\n" : "), }\n");
  std::string written("\x93NUMPY\x02\x00", 8);
  for (int byte = 0; byte < 4; ++byte) {
    written.push_back(static_cast<char>(header.size() >> (8 * byte)));
  }
  written.append(header).append(file.substr(place->offset));
  const auto again = ParseNpy(BytesOf(written), "w");
  FUZZ_CHECK(again.ok());
  CheckSame(*place, *again);
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  if (!file.empty() && file.front() == '\x93') {
    gradclip::CheckNpy(file);
  } else {
    gradclip::CheckSafetensors(file);
  }
  return 0;
}
