// Amounts of bytes as people write and read them. Pure functions.
#ifndef GRADCLIP_SERVER_OPTIONS_BYTES_H_
#define GRADCLIP_SERVER_OPTIONS_BYTES_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace gradclip {

// What ParseBytes() takes, for error messages.
inline constexpr std::string_view kBytesSyntax =
    "a whole number of bytes, or one with KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, "
    "TB (powers of 1000; the B may be left out)";

// "65536", "64KiB", "64 KiB", "64kB" and "64k" (64,000), "512B". INVALID_ARGUMENT, whose message
// says what is allowed, for anything else.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);

// "8 MiB" where the unit divides the amount, "512 B" below 1 KiB, else "1434096 B (1.37 MiB)": the
// exact amount is always there, since limits are missed by single bytes.
std::string FormatBytes(uint64_t bytes);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OPTIONS_BYTES_H_
