#include "client/command/output.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/files/layout.h"
#include "client/gradclip/utf8.h"

namespace gradclip {
namespace {

// Three digits, without an exponent up to 9999: "1.37", "13.7", "137".
std::string ShortText(double number) {
  const int decimals = number < 9.995 ? 2 : number < 99.95 ? 1 : 0;
  std::string text = absl::StrFormat("%.*f", decimals, number);
  if (decimals > 0) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

// `number` in the largest of the units that leaves it at least 1.
std::string ScaledText(double number, double step, std::span<const char* const> units) {
  size_t unit = 0;
  while (unit + 1 < units.size() && number >= step) {
    number /= step;
    ++unit;
  }
  return absl::StrCat(ShortText(number), " ", units[unit]);
}

// How many bytes of `text` are one character that may be printed as it is; 0 where it may not.
size_t PrintableLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = Utf8CharacterBytes(text);
  // U+0000 to U+001F and U+007F to U+009F.
  const bool control = length == 1   ? byte(0) < 0x20 || byte(0) == 0x7f
                       : length == 2 ? byte(0) == 0xc2 && byte(1) < 0xa0
                                     : false;
  return control ? 0 : length;
}

}  // namespace

std::string NumberText(double number) {
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  std::array<char, 32> text;
  const auto result = std::to_chars(text.data(), text.data() + text.size(), number);
  return std::string(text.data(), result.ptr);
}

std::string CountText(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (size_t at = text.size(); at > 3;) {
    at -= 3;
    text.insert(at, ",");
  }
  return text;
}

std::string BytesText(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  return ScaledText(static_cast<double>(bytes), 1024, kUnits);
}

std::string RateText(uint64_t bytes, absl::Duration time) {
  constexpr const char* kUnits[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
  const double seconds = std::max(absl::ToDoubleSeconds(time), 1e-9);
  return ScaledText(static_cast<double>(bytes) / seconds, 1000, kUnits);
}

std::string DurationText(absl::Duration duration) {
  if (duration >= absl::Minutes(1)) {
    return absl::FormatDuration(absl::Trunc(duration, absl::Seconds(1)));
  }
  constexpr const char* kUnits[] = {"us", "ms", "s"};
  return ScaledText(absl::ToDoubleMicroseconds(duration), 1000, kUnits);
}

std::string Printable(absl::string_view text) {
  std::string printable;
  while (!text.empty()) {
    const size_t length = PrintableLength(text);
    if (length > 0) {
      absl::StrAppend(&printable, text.substr(0, length));
    } else {
      absl::StrAppendFormat(&printable, "\\x%02x", static_cast<unsigned char>(text.front()));
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return printable;
}

std::string Fields(const std::vector<std::pair<std::string, std::string>>& fields) {
  size_t width = 0;
  for (const auto& [label, value] : fields) width = std::max(width, label.size());
  std::string text;
  for (const auto& [label, value] : fields) {
    absl::StrAppendFormat(&text, "%-*s  %s\n", width, label, Printable(value));
  }
  return text;
}

std::string TensorTable(std::span<const Tensor> tensors, std::span<const TensorNorm> norms) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    // NaN compares with nothing, so it is told apart first.
    const bool a_nan = std::isnan(norms[a].norm), b_nan = std::isnan(norms[b].norm);
    return a_nan != b_nan ? a_nan : norms[a].norm > norms[b].norm;
  });

  constexpr size_t kColumns = 6;
  std::vector<std::array<std::string, kColumns + 1>> rows;
  rows.push_back({"norm", "elements", "non-finite", "zeros", "dtype", "shape", "name"});
  for (size_t i : order) {
    rows.push_back({NumberText(norms[i].norm), CountText(tensors[i].elements()),
                    CountText(norms[i].nonfinite_elements), CountText(norms[i].zero_elements),
                    std::string(Name(tensors[i].dtype)), ShapeText(tensors[i].shape),
                    Printable(tensors[i].name)});
  }
  std::array<size_t, kColumns> widths{};
  for (const auto& row : rows) {
    for (size_t c = 0; c < kColumns; ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t c = 0; c < kColumns; ++c) {
      // Counts to the right, the norm and the words to the left.
      if (c >= 1 && c <= 3) {
        absl::StrAppendFormat(&text, "%*s  ", widths[c], row[c]);
      } else {
        absl::StrAppendFormat(&text, "%-*s  ", widths[c], row[c]);
      }
    }
    absl::StrAppend(&text, row[kColumns], "\n");
  }
  return text;
}

std::string ClippedText(const ClipAnswer& answer, const ClipOptions& options) {
  if (answer.skipped) {
    return absl::StrCat("no: the norm is not finite, so ",
                        answer.coefficient == 0 ? "all elements are 0" : "nothing is changed");
  }
  if (std::isnan(answer.coefficient)) return "no: the norm is NaN, so all elements are NaN";
  const std::string limit = NumberText(options.max_norm);
  if (answer.clipped) {
    if (std::isfinite(answer.norm.total_norm)) return absl::StrCat("yes, to ", limit);
    // 0 times infinity.
    return "yes: the norm is infinite, so all elements are 0, or NaN where they were infinite";
  }
  if (answer.coefficient == 1) return absl::StrCat("no, the limit is ", limit);
  return absl::StrCat("no, the limit is ", limit, "; all elements are multiplied by ",
                      NumberText(answer.coefficient), " (--pre-scale)");
}

Json JsonNumber(double number) {
  return std::isfinite(number) ? Json(number) : Json(NumberText(number));
}

Json ToJson(const NormAnswer& answer, std::span<const Tensor> tensors) {
  Json norms = Json::array();
  for (size_t i = 0; i < answer.tensors.size(); ++i) {
    const TensorNorm& norm = answer.tensors[i];
    norms.push_back({{"name", i < tensors.size() ? tensors[i].name : ""},
                     {"norm", JsonNumber(norm.norm)},
                     {"nonfinite_elements", norm.nonfinite_elements},
                     {"zero_elements", norm.zero_elements}});
  }
  return {{"total_norm", JsonNumber(answer.total_norm)},
          {"nonfinite_elements", answer.nonfinite_elements},
          {"first_nonfinite", answer.first_nonfinite},
          {"tensors", std::move(norms)},
          {"backend", answer.backend},
          {"group_nonfinite_elements", answer.group_nonfinite_elements}};
}

Json ToJson(const ClipAnswer& answer, std::span<const Tensor> tensors) {
  return {{"norm", ToJson(answer.norm, tensors)},
          {"coefficient", JsonNumber(answer.coefficient)},
          {"clipped", answer.clipped},
          {"skipped", answer.skipped},
          {"gradient_follows", answer.gradient_follows}};
}

Json ToJson(const ServerInfo& info) {
  Json backends = Json::array();
  for (const BackendInfo& backend : info.backends) {
    backends.push_back(
        {{"name", backend.name}, {"usable", backend.usable}, {"detail", backend.detail}});
  }
  return {{"version", info.version},
          {"backends", std::move(backends)},
          {"max_message_bytes", info.max_message_bytes},
          {"max_call_bytes", info.max_call_bytes},
          {"memory_budget_bytes", info.memory_budget_bytes},
          {"memory_socket", info.memory_socket},
          {"max_tensors", info.max_tensors},
          {"instance", info.instance}};
}

std::string JsonLine(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace gradclip
