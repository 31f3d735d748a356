// The GPUs of this machine, for those who know nothing of CUDA. In a build without CUDA there are
// none. Thread-safe.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICES_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/backend/device.h"

namespace gradclip {

struct CudaOptions {
  std::vector<int> devices = {};  // by number; empty: all that can be used
  // How much of each device's memory gradients may take: so many bytes, or this share of what is
  // free when the device is opened.
  std::optional<uint64_t> memory_bytes = std::nullopt;
  double memory_share = 0.8;
  // Called once for each device that fails, on the thread that found it out.
  std::function<void(const std::string& device, const absl::Status& why)> on_failure = nullptr;
};

// "cuda/0", "cuda/1", ..., each with its name and driver, or why it can't be used; or "cuda" alone,
// with the reason why there are none.
std::vector<BackendChoice> ListCudaDevices();

// FAILED_PRECONDITION where one that is named can't be used, or none can, with the reason.
absl::StatusOr<std::unique_ptr<Devices>> OpenCudaDevices(const CudaOptions& options);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICES_H_
