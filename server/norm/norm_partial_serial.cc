// The byte form of NormPartial, as its header describes it.
#include <bit>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/backend/floating_point_environment.h"
#include "server/norm/norm_partial.h"

namespace gradclip {
namespace {

constexpr uint8_t kVersion = 1;
// A factor of at most 2^32 on block sums of at most 2^64, for at most 2^64 blocks.
constexpr double kMostScaled = 0x1p160;

template <typename Unsigned>
void Put(std::string& bytes, Unsigned value) {
  for (size_t i = 0; i < sizeof value; ++i) bytes.push_back(static_cast<char>(value >> 8 * i));
}

void PutDouble(std::string& bytes, double value) {
  Put(bytes, std::bit_cast<uint64_t>(value));
}

// Takes values off the front of bytes; `ok` turns false for good where they run out.
struct Reader {
  std::string_view bytes;
  bool ok = true;

  template <typename Unsigned>
  Unsigned Get() {
    if (bytes.size() < sizeof(Unsigned)) {
      ok = false;
      return 0;
    }
    Unsigned value = 0;
    for (size_t i = 0; i < sizeof value; ++i) {
      value |= static_cast<Unsigned>(Unsigned{static_cast<uint8_t>(bytes[i])} << 8 * i);
    }
    bytes.remove_prefix(sizeof value);
    return value;
  }
  double GetDouble() { return std::bit_cast<double>(Get<uint64_t>()); }
};

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("partial norm: ", what));
}

// Finite, and neither negative nor -0.
bool IsMagnitude(double value) {
  return std::isfinite(value) && !std::signbit(value);
}

// `scaled` and `correction` as an addition leaves them.
GRADCLIP_OUT_OF_LINE bool IsCompensatedSum(const double& scaled, const double& correction) {
  const bool minus_zero = correction == 0 && std::signbit(correction);
  return scaled >= 1 && scaled <= kMostScaled && !minus_zero && scaled + correction == scaled;
}

}  // namespace

std::string NormPartial::Serialize() const {
  FixedPointSum sum = sum_;
  sum.Settle();
  const State value_state = kind_ == Kind::kSum ? sum.state() : state();
  std::string bytes;
  bytes.reserve(34 + 4 * sum.digits().size());
  Put(bytes, kVersion);
  Put(bytes, static_cast<uint8_t>(value_state));
  PutDouble(bytes, norm_type_);
  if (value_state != State::kFinite) return bytes;
  switch (kind_) {
    case Kind::kSum:
      Put(bytes, static_cast<uint8_t>(sum.first_digit()));
      Put(bytes, static_cast<uint8_t>(sum.digits().size()));
      for (const uint64_t digit : sum.digits()) Put(bytes, static_cast<uint32_t>(digit));
      break;
    case Kind::kLargest:
      PutDouble(bytes, largest_);
      break;
    case Kind::kScaled:
      PutDouble(bytes, largest_);
      PutDouble(bytes, scaled_);
      PutDouble(bytes, correction_);
  }
  return bytes;
}

absl::StatusOr<NormPartial> NormPartial::Parse(std::string_view bytes) {
  // Compares doubles, which DAZ must not touch.
  const FloatingPointEnvironment environment;
  Reader reader{bytes};
  const auto version = reader.Get<uint8_t>();
  if (reader.ok && version != kVersion) {
    return Malformed(absl::StrCat("version ", version, ", only ", kVersion, " is known"));
  }
  const auto state = static_cast<State>(reader.Get<uint8_t>());
  const double norm_type = reader.GetDouble();
  if (!reader.ok) return Malformed(absl::StrCat("cut off after ", bytes.size(), " bytes"));
  if (state > State::kNan) {
    return Malformed(absl::StrCat("unknown state ", static_cast<int>(state)));
  }
  if (!(norm_type > 0)) return Malformed(absl::StrCat("norm_type ", norm_type, ", must be > 0"));

  NormPartial partial(norm_type);
  if (state != State::kFinite) {
    partial.sum_ = FixedPointSum::Of(partial.kind_ == Kind::kSum ? state : State::kFinite, 0, {});
    if (partial.kind_ != Kind::kSum) {
      partial.largest_ = state == State::kNan ? NAN : INFINITY;
    }
  } else if (partial.kind_ == Kind::kSum) {
    const int first = reader.Get<uint8_t>();
    const int count = reader.Get<uint8_t>();
    if (first + count > FixedPointSum::kDigits || (count == 0 && first != 0)) {
      return Malformed(absl::StrCat(count, " digits from ", first, " on, of ",
                                    FixedPointSum::kDigits, " in all"));
    }
    std::vector<uint32_t> digits(count);
    for (uint32_t& digit : digits) digit = reader.Get<uint32_t>();
    if (reader.ok && count != 0 && (digits.front() == 0 || digits.back() == 0)) {
      return Malformed("a zero digit at an end");
    }
    partial.sum_ = FixedPointSum::Of(state, first, digits);
  } else {
    partial.largest_ = reader.GetDouble();
    if (!IsMagnitude(partial.largest_)) {
      return Malformed(absl::StrCat("largest magnitude ", partial.largest_));
    }
    if (partial.kind_ == Kind::kScaled) {
      partial.scaled_ = reader.GetDouble();
      partial.correction_ = reader.GetDouble();
      const bool empty = partial.largest_ == 0 && std::bit_cast<uint64_t>(partial.scaled_) == 0 &&
                         std::bit_cast<uint64_t>(partial.correction_) == 0;
      const bool sum = partial.largest_ != 0 && reader.ok &&
                       IsCompensatedSum(partial.scaled_, partial.correction_);
      if (reader.ok && !empty && !sum) {
        return Malformed(absl::StrCat("base ", partial.largest_, ", scaled sum ", partial.scaled_,
                                      ", correction ", partial.correction_));
      }
    }
  }
  if (!reader.ok) return Malformed(absl::StrCat("cut off after ", bytes.size(), " bytes"));
  if (!reader.bytes.empty()) {
    return Malformed(absl::StrCat(reader.bytes.size(), " bytes after the end"));
  }
  return partial;
}

}  // namespace gradclip
