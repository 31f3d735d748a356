#include "examples/train/record.h"

#include <bit>
#include <cstddef>

#include "absl/strings/str_format.h"

namespace train {
namespace {

// Also tells 0 from -0, and finds a NaN the same as itself.
bool SameBits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

bool Same(const Record& a, const Record& b) {
  return SameBits(a.loss, b.loss) && SameBits(a.total_norm, b.total_norm) &&
         SameBits(a.coefficient, b.coefficient) && a.parameters == b.parameters;
}

std::string Words(const Record& record) {
  return absl::StrFormat("loss %.9g, total norm %.17g, coefficient %.17g, parameters %016x",
                         record.loss, record.total_norm, record.coefficient, record.parameters);
}

}  // namespace

uint64_t Digest(std::span<const float> values) {
  uint64_t digest = 0xcbf29ce484222325;
  for (const std::byte byte : std::as_bytes(values)) {
    digest = (digest ^ std::to_integer<uint64_t>(byte)) * 0x100000001b3;
  }
  return digest;
}

std::optional<std::string> FirstDifference(std::span<const Record> expected,
                                           std::span<const Record> actual) {
  for (size_t step = 0; step < expected.size(); ++step) {
    if (Same(expected[step], actual[step])) continue;
    return absl::StrFormat("step %d: %s; expected %s", step, Words(actual[step]),
                           Words(expected[step]));
  }
  return std::nullopt;
}

}  // namespace train
