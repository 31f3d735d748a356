#include "server/options/bytes.h"

#include <algorithm>
#include <array>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

struct Unit {
  absl::string_view name;
  uint64_t bytes;
};

// For each kind, the largest first.
constexpr std::array<Unit, 4> kBinaryUnits = {{{"TiB", uint64_t{1} << 40},
                                               {"GiB", uint64_t{1} << 30},
                                               {"MiB", uint64_t{1} << 20},
                                               {"KiB", uint64_t{1} << 10}}};
constexpr std::array<Unit, 10> kOtherUnits = {{{"TB", 1'000'000'000'000},
                                               {"T", 1'000'000'000'000},
                                               {"GB", 1'000'000'000},
                                               {"G", 1'000'000'000},
                                               {"MB", 1'000'000},
                                               {"M", 1'000'000},
                                               {"kB", 1'000},
                                               {"k", 1'000},
                                               {"B", 1},
                                               {"", 1}}};

// 0: there is no such unit.
uint64_t UnitBytes(absl::string_view name) {
  for (const Unit& unit : kBinaryUnits) {
    if (unit.name == name) return unit.bytes;
  }
  for (const Unit& unit : kOtherUnits) {
    if (unit.name == name) return unit.bytes;
  }
  return 0;
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const absl::string_view number(text.data(), digits);
  const absl::string_view unit_name(text.data() + digits, text.size() - digits);
  const uint64_t unit = UnitBytes(absl::StripLeadingAsciiWhitespace(unit_name));
  if (number.empty() || unit == 0) return absl::InvalidArgumentError(std::string(kBytesSyntax));
  uint64_t count;
  if (!absl::SimpleAtoi(number, &count) || count > std::numeric_limits<uint64_t>::max() / unit) {
    return absl::InvalidArgumentError("less than 2^64 bytes");
  }
  return count * unit;
}

std::string FormatBytes(uint64_t bytes) {
  for (const Unit& unit : kBinaryUnits) {
    if (bytes < unit.bytes) continue;
    if (bytes % unit.bytes == 0) return absl::StrCat(bytes / unit.bytes, " ", unit.name);
    return absl::StrFormat("%d B (%.2f %s)", bytes,
                           static_cast<double>(bytes) / static_cast<double>(unit.bytes), unit.name);
  }
  return absl::StrCat(bytes, " B");
}

}  // namespace gradclip
