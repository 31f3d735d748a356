#include "server/backend/cpu/cpu_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "server/backend/element.h"
#include "server/backend/floating_point_environment.h"

namespace gradclip {
namespace {

// A group of elements that a run has only part of, the others being +0: a lane that adds the
// magnitude or the square of 0 keeps its bits.
class PaddedGroup {
 public:
  // The elements are lanes first_lane .. first_lane + count - 1 of the group.
  PaddedGroup(DType dtype, const std::byte* elements, size_t count, size_t first_lane = 0) {
    const size_t size = ElementSize(dtype);
    std::memset(bytes_, 0, kLanes * size);
    std::memcpy(bytes_ + first_lane * size, elements, count * size);
  }
  std::byte* bytes() { return bytes_; }

 private:
  alignas(64) std::byte bytes_[kLanes * 8];
};

// The value whose bit pattern without its sign is `bits`.
double Magnitude(DType dtype, uint64_t bits) {
  return WithDType(dtype, [bits]<DType type>() {
    std::byte element[8];
    std::memcpy(element, &bits, sizeof element);  // little-endian: the low bytes come first
    return LoadElement<type>(element);
  });
}

// What no kernel is needed for: coefficients that a float can't hold, or not to 24 bits.
GRADCLIP_OUT_OF_LINE void ScaleInDouble(DType dtype, std::byte* elements, size_t count,
                                        const double& coefficient) {
  WithDType(dtype, [&]<DType type>() {
    for (size_t i = 0; i < count; ++i, elements += ElementSize(type)) {
      StoreElement<type>(elements, LoadElement<type>(elements) * coefficient);
    }
  });
}

}  // namespace

static_assert(std::endian::native == std::endian::little, "elements are little-endian");

const ElementKernels& CpuBackend::KernelsOf(DType dtype) const {
  switch (dtype) {
    case DType::kFloat32:
      return kernels_.float32;
    case DType::kFloat16:
      return kernels_.float16;
    case DType::kBFloat16:
      return kernels_.bfloat16;
    case DType::kFloat64:
      break;
  }
  return kernels_.float64;
}

void CpuBackend::AddToLanes(DType dtype, LaneTerm term, const std::byte* elements, size_t count,
                            size_t first_lane, Lanes& lanes) const {
  const FloatingPointEnvironment environment;
  const ElementKernels& kernels = KernelsOf(dtype);
  const auto add = term == LaneTerm::kSquare ? kernels.add_squares : kernels.add_magnitudes;
  if (first_lane != 0 && count != 0) {
    const size_t head = std::min(count, kLanes - first_lane);
    add(PaddedGroup(dtype, elements, head, first_lane).bytes(), 1, lanes.data());
    elements += head * ElementSize(dtype);
    count -= head;
  }
  const size_t groups = count / kLanes;
  if (groups != 0) add(elements, groups, lanes.data());
  const size_t tail = count % kLanes;
  if (tail != 0) {
    elements += groups * kLanes * ElementSize(dtype);
    add(PaddedGroup(dtype, elements, tail).bytes(), 1, lanes.data());
  }
}

double CpuBackend::LargestMagnitude(DType dtype, const std::byte* elements, size_t count) const {
  const FloatingPointEnvironment environment;
  const ElementKernels& kernels = KernelsOf(dtype);
  const size_t groups = count / kLanes;
  uint64_t largest = kernels.largest_bits(elements, groups);
  const size_t tail = count % kLanes;
  if (tail != 0) {
    elements += groups * kLanes * ElementSize(dtype);
    largest =
        std::max(largest, kernels.largest_bits(PaddedGroup(dtype, elements, tail).bytes(), 1));
  }
  return Magnitude(dtype, largest);
}

ElementCounts CpuBackend::Count(DType dtype, const std::byte* elements, size_t count) const {
  const FloatingPointEnvironment environment;
  const ElementKernels& kernels = KernelsOf(dtype);
  const size_t size = ElementSize(dtype);
  // Few groups at a time, so that finding the first among them takes no time either.
  constexpr size_t kGroups = 64;
  static_assert(kGroups <= kMostCountedGroups);
  ElementCounts counts;
  for (size_t done = 0; done < count;) {
    const std::byte* at = elements + done * size;
    const size_t whole = std::min(kGroups, (count - done) / kLanes);
    const size_t now = whole != 0 ? whole * kLanes : count - done;
    uint64_t nonfinite = 0;
    if (whole != 0) {
      kernels.count(at, whole, &nonfinite, &counts.zeros);
    } else {
      kernels.count(PaddedGroup(dtype, at, now).bytes(), 1, &nonfinite, &counts.zeros);
      counts.zeros -= kLanes - now;
    }
    if (nonfinite != 0 && counts.nonfinite == 0) {
      counts.first_nonfinite =
          done + WithDType(dtype, [at]<DType type>() {
            size_t i = 0;
            while (std::isfinite(LoadElement<type>(at + i * ElementSize(type)))) ++i;
            return i;
          });
    }
    counts.nonfinite += nonfinite;
    done += now;
  }
  return counts;
}

void CpuBackend::Scale(DType dtype, std::byte* elements, size_t count, double coefficient) const {
  const FloatingPointEnvironment environment;
  if (dtype != DType::kFloat64 && ScalesInDouble(coefficient)) {
    ScaleInDouble(dtype, elements, count, coefficient);
    return;
  }
  const auto scale = KernelsOf(dtype).scale;
  const size_t groups = count / kLanes;
  scale(elements, groups, coefficient);
  const size_t tail = count % kLanes;
  if (tail != 0) {
    elements += groups * kLanes * ElementSize(dtype);
    PaddedGroup group(dtype, elements, tail);
    scale(group.bytes(), 1, coefficient);
    std::memcpy(elements, group.bytes(), tail * ElementSize(dtype));
  }
}

}  // namespace gradclip
