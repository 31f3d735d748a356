// In the place of CUDA in a build without it.
#include "absl/strings/str_cat.h"
#include "server/backend/cuda/cuda_devices.h"

namespace gradclip {
namespace {

constexpr char kWhy[] = "this build is without CUDA (GRADCLIP_CUDA)";

}  // namespace

std::vector<BackendChoice> ListCudaDevices() {
  return {{.name = "cuda", .usable = false, .detail = kWhy}};
}

absl::StatusOr<std::unique_ptr<Devices>> OpenCudaDevices(const CudaOptions& /*options*/) {
  return absl::FailedPreconditionError(absl::StrCat("cuda cannot be used: ", kWhy));
}

}  // namespace gradclip
