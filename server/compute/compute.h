// What computes in a server, as --backend chooses: the host's kernels, always, and devices where
// there are some. Thread-safe.
#ifndef GRADCLIP_SERVER_COMPUTE_COMPUTE_H_
#define GRADCLIP_SERVER_COMPUTE_COMPUTE_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/backend/cuda/cuda_devices.h"
#include "server/backend/device.h"

namespace gradclip {

class Compute {
 public:
  // `name` is "auto" (every usable GPU; without one the host alone), "cuda" (every usable GPU, of
  // which there must be one), "cuda/1" (that one), or a host backend's, "cpu" included: no device
  // then. cuda.devices counts for "auto" and "cuda". INVALID_ARGUMENT for an unknown name and
  // FAILED_PRECONDITION for what can't be used here, both saying why and listing the names.
  static absl::StatusOr<std::unique_ptr<Compute>> Make(std::string_view name, CudaOptions cuda);

  const Backend& host() const { return *host_; }
  Devices* devices() const { return devices_.get(); }  // null: the host alone

  // The name of what computes first: "cuda/0", "cpu/avx512".
  std::string name() const { return names().front(); }
  // Why there are no devices though "auto" would have taken them; empty otherwise.
  const std::string& why_no_devices() const { return why_no_devices_; }

  // Devices that are left out though they were asked for, and why.
  std::vector<std::pair<std::string, std::string>> left_out() const;

  // The names of all that calls may work with: devices, and the host's.
  std::vector<std::string> names() const;

  // Every backend as it is now, what is in use first. A device that has failed since the start can
  // no longer be used.
  std::vector<BackendChoice> Choices() const;

 private:
  Compute() = default;

  std::string why_no_devices_;
  std::vector<BackendChoice> choices_;
  std::unique_ptr<Backend> host_;
  mutable std::mutex mutex_;
  std::map<std::string, std::string> failed_;  // why, by the device's name; guarded by mutex_
  std::unique_ptr<Devices> devices_;           // last, as those who use it note what has failed
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_COMPUTE_COMPUTE_H_
