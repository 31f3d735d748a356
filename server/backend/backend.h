// What computes: sums over elements and their scaling, in one implementation per instruction set or
// device. All methods are const and thread-safe; all implementations give the same bits.
#ifndef GRADCLIP_SERVER_BACKEND_BACKEND_H_
#define GRADCLIP_SERVER_BACKEND_BACKEND_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gradclip/dtype.h"
#include "server/backend/blocks.h"

namespace gradclip {

using Lanes = std::array<double, kLanes>;

// What a lane adds up per element.
enum class LaneTerm { kMagnitude, kSquare };

// What a scan found in a run of elements.
struct ElementCounts {
  static constexpr uint64_t kNone = ~uint64_t{0};
  uint64_t nonfinite = 0;            // NaN and infinity
  uint64_t first_nonfinite = kNone;  // index in the run
  uint64_t zeros = 0;                // +0 and -0
};

// Elements are given by address and count; the address need not be aligned. Each call saves the
// caller's floating-point environment, computes in the default one (round to nearest, subnormals
// kept), and restores it.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu/baseline", "cpu/avx2", ...
  virtual std::string_view name() const = 0;

  // Adds the term of elements[i] to lanes[(first_lane + i) % kLanes], i = 0 .. count - 1, in
  // double.
  virtual void AddToLanes(DType dtype, LaneTerm term, const std::byte* elements, size_t count,
                          size_t first_lane, Lanes& lanes) const = 0;

  // Largest magnitude; NaN where an element is NaN; 0 where count is 0.
  virtual double LargestMagnitude(DType dtype, const std::byte* elements, size_t count) const = 0;

  // Counts non-finite elements and zeros.
  virtual ElementCounts Count(DType dtype, const std::byte* elements, size_t count) const = 0;

  // Multiplies elements in place: F32 in float by the coefficient rounded to float; F16 and BF16
  // widened to float, multiplied, rounded once to nearest even; F64 in double. Where the
  // coefficient is not 0 and its magnitude is outside [2^-126, FLT_MAX], multiplies in double and
  // rounds once.
  virtual void Scale(DType dtype, std::byte* elements, size_t count, double coefficient) const = 0;
};

// The coefficient as `dtype` elements meet it is 1: scaling by it leaves every element as it is.
bool LeavesUnchanged(DType dtype, double coefficient);

// The coefficient is not 0 and its magnitude is outside [2^-126, FLT_MAX].
bool ScalesInDouble(double coefficient);

// One backend that this build has, usable here or not.
struct BackendChoice {
  std::string name;  // as --backend takes it
  bool usable = false;
  std::string detail;  // instruction set, or why it can't be used
};

// Every backend of the host in this build, in order of preference.
std::vector<BackendChoice> ListBackends();

// What --backend takes, for people: "auto, cpu, cpu/avx512 (needs ...), ...", with names of others
// that there are.
std::string BackendNames(std::span<const BackendChoice> others = {});

// The backend that `name` asks for: "auto" and "cpu" (the first usable one), or one name of
// ListBackends(). INVALID_ARGUMENT for an unknown name and FAILED_PRECONDITION for one that can't
// be used here, both listing BackendNames(others).
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     std::span<const BackendChoice> others = {});

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_BACKEND_H_
