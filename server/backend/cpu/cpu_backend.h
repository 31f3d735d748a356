// The backend on the processor's vector units: heads, tails and the floating-point environment
// around a table of kernels. Thread-safe.
#ifndef GRADCLIP_SERVER_BACKEND_CPU_CPU_BACKEND_H_
#define GRADCLIP_SERVER_BACKEND_CPU_CPU_BACKEND_H_

#include <string_view>

#include "server/backend/backend.h"
#include "server/backend/cpu/kernels.h"

namespace gradclip {

class CpuBackend final : public Backend {
 public:
  // `name` and `kernels` must outlive this; the processor must have what the kernels need.
  CpuBackend(std::string_view name, const Kernels& kernels) : name_(name), kernels_(kernels) {}

  std::string_view name() const override { return name_; }
  void AddToLanes(DType dtype, LaneTerm term, const std::byte* elements, size_t count,
                  size_t first_lane, Lanes& lanes) const override;
  double LargestMagnitude(DType dtype, const std::byte* elements, size_t count) const override;
  ElementCounts Count(DType dtype, const std::byte* elements, size_t count) const override;
  void Scale(DType dtype, std::byte* elements, size_t count, double coefficient) const override;

 private:
  const ElementKernels& KernelsOf(DType dtype) const;

  const std::string_view name_;
  const Kernels& kernels_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CPU_CPU_BACKEND_H_
