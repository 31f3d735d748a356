#include "server/backend/cuda/cuda_devices.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/backend/cuda/cuda_device.h"
#include "server/backend/cuda/cuda_in_place.h"
#include "server/backend/cuda/cuda_memory.h"
#include "server/backend/cuda/cuda_queue.h"

namespace gradclip {
namespace {

// The oldest devices that this build has code for: compute capability 7.5.
constexpr int kOldestMajor = 7;
constexpr int kOldestMinor = 5;

// "13.0" for 13000.
std::string VersionName(int version) {
  return absl::StrFormat("%d.%d", version / 1000, version % 1000 / 10);
}

std::string WhyNoDevices(cudaError_t error) {
  (void)cudaGetLastError();
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  switch (error) {
    case cudaSuccess:
    case cudaErrorNoDevice:
      return "this machine has no GPU that the driver knows";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
      if (driver == 0) return "this machine has no NVIDIA driver (libcuda.so.1)";
      return absl::StrFormat("the driver is too old: it is for CUDA %s, and CUDA %s is needed",
                             VersionName(driver), VersionName(CUDART_VERSION));
    default:
      return absl::StrFormat("%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
  }
}

BackendChoice Describe(int number) {
  BackendChoice choice = {.name = absl::StrCat("cuda/", number), .usable = false, .detail = ""};
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, number);
      error != cudaSuccess) {
    (void)cudaGetLastError();
    choice.detail = absl::StrFormat("%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    return choice;
  }
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  choice.detail = absl::StrFormat("%s, compute capability %d.%d, %.1f GiB, driver for CUDA %s",
                                  properties.name, properties.major, properties.minor,
                                  static_cast<double>(properties.totalGlobalMem) / (1 << 30),
                                  VersionName(driver));
  choice.usable =
      std::pair(properties.major, properties.minor) >= std::pair(kOldestMajor, kOldestMinor);
  if (!choice.usable) {
    absl::StrAppendFormat(&choice.detail, ": there is no code for it; %d.%d is the oldest",
                          kOldestMajor, kOldestMinor);
  }
  return choice;
}

// "GPU-01234567-89ab-cdef-0123-456789abcdef", as nvidia-smi has it.
std::string UuidName(const std::array<std::byte, 16>& uuid) {
  const std::string hex = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(uuid.data()), uuid.size()));
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

absl::StatusOr<uint64_t> MemoryBudget(int number, const CudaOptions& options) {
  if (options.memory_bytes.has_value()) return *options.memory_bytes;
  size_t free = 0;
  size_t total = 0;
  CudaCalls calls;
  if (calls.Ok("cudaSetDevice", cudaSetDevice(number)) &&
      calls.Ok("cudaMemGetInfo", cudaMemGetInfo(&free, &total))) {
    return static_cast<uint64_t>(static_cast<double>(free) * options.memory_share);
  }
  (void)cudaGetLastError();
  return absl::UnavailableError(absl::StrFormat("%s (%s of %s)", cudaGetErrorString(calls.error),
                                                cudaGetErrorName(calls.error), calls.call));
}

absl::StatusOr<std::unique_ptr<CudaDevice>> OpenOne(int number, const CudaOptions& options) {
  absl::StatusOr<uint64_t> budget = MemoryBudget(number, options);
  if (!budget.ok()) return budget.status();
  return CudaDevice::Open(number, *budget, options.on_failure);
}

class CudaDevices final : public Devices {
 public:
  CudaDevices(std::vector<std::unique_ptr<CudaDevice>> devices,
              std::vector<std::pair<std::string, std::string>> left_out)
      : devices_(std::move(devices)), left_out_(std::move(left_out)) {}

  std::vector<std::pair<std::string, std::string>> left_out() const override { return left_out_; }

  std::vector<State> states() const override {
    std::vector<State> states;
    for (const std::unique_ptr<CudaDevice>& device : devices_) {
      states.push_back({.name = device->name(),
                        .usable = device->state().ok(),
                        .memory_bytes = device->memory_bytes(),
                        .used_bytes = device->used_bytes(),
                        .queues = device->load()});
    }
    return states;
  }

  absl::StatusOr<std::unique_ptr<DeviceQueue>> Open(uint64_t slots_filled, bool keeps) override {
    absl::Status why;
    bool busy = false;
    // By the loads as they are now: they change while they are compared.
    std::vector<std::pair<uint64_t, CudaDevice*>> by_load;
    for (const std::unique_ptr<CudaDevice>& device : devices_) {
      const absl::Status state = device->state();
      if (state.ok()) {
        by_load.emplace_back(device->load(), device.get());
      } else {
        why = state;
      }
    }
    std::stable_sort(by_load.begin(), by_load.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [load, device] : by_load) {
      absl::StatusOr<std::unique_ptr<DeviceQueue>> queue =
          CudaQueue::Open(*device, slots_filled, keeps);
      if (queue.ok() && *queue != nullptr) return queue;
      busy = busy || queue.ok();
      why = queue.status();
    }
    if (busy) return nullptr;
    return why;
  }

  absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenMemory(const ExportedMemory& memory) override {
    const auto device = std::find_if(devices_.begin(), devices_.end(), [&](const auto& device) {
      return device->uuid() == memory.device;
    });
    if (device == devices_.end()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "the memory is of %s, which this server does not use (--cuda-devices); it uses %s",
          UuidName(memory.device),
          absl::StrJoin(devices_, ", ", [](std::string* out, const auto& device) {
            absl::StrAppend(out, device->name(), " = ", UuidName(device->uuid()));
          })));
    }
    const absl::StatusOr<CudaInPlace*> in_place = InPlace(**device);
    if (!in_place.ok()) return in_place.status();
    return CudaMemory::Open(**in_place, memory);
  }

 private:
  // The device's, made when it is first asked for.
  absl::StatusOr<CudaInPlace*> InPlace(CudaDevice& device) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<CudaInPlace>& in_place = in_place_[&device];
    if (in_place == nullptr) {
      absl::StatusOr<std::unique_ptr<CudaInPlace>> opened = CudaInPlace::Open(device);
      if (!opened.ok()) return opened.status();
      in_place = *std::move(opened);
    }
    return in_place.get();
  }

  const std::vector<std::unique_ptr<CudaDevice>> devices_;
  const std::vector<std::pair<std::string, std::string>> left_out_;
  std::mutex mutex_;
  std::map<CudaDevice*, std::unique_ptr<CudaInPlace>> in_place_;  // guarded by mutex_
};

}  // namespace

std::vector<BackendChoice> ListCudaDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return {{.name = "cuda", .usable = false, .detail = WhyNoDevices(error)}};
  }
  std::vector<BackendChoice> choices;
  choices.reserve(static_cast<size_t>(count));
  for (int number = 0; number < count; ++number) choices.push_back(Describe(number));
  return choices;
}

absl::StatusOr<std::unique_ptr<Devices>> OpenCudaDevices(const CudaOptions& options) {
  const std::vector<BackendChoice> choices = ListCudaDevices();
  const auto refused = [](absl::string_view name, absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat(name, " cannot be used: ", why));
  };
  std::vector<int> numbers = options.devices;
  const bool named = !numbers.empty();
  if (choices.front().name == "cuda") return refused("cuda", choices.front().detail);
  if (!named) {
    for (size_t i = 0; i < choices.size(); ++i) numbers.push_back(static_cast<int>(i));
  }
  std::vector<std::unique_ptr<CudaDevice>> devices;
  std::vector<std::pair<std::string, std::string>> left_out;
  for (const int number : numbers) {
    const std::string name = absl::StrCat("cuda/", number);
    std::string why;
    if (static_cast<size_t>(number) >= choices.size()) {
      why = absl::StrFormat("there are %d devices, numbered from 0", choices.size());
    } else if (!choices[static_cast<size_t>(number)].usable) {
      why = choices[static_cast<size_t>(number)].detail;
    } else if (absl::StatusOr<std::unique_ptr<CudaDevice>> device = OpenOne(number, options);
               device.ok()) {
      devices.push_back(*std::move(device));
      continue;
    } else {
      why = std::string(device.status().message());
    }
    if (named) return refused(name, why);
    left_out.emplace_back(name, why);
  }
  if (devices.empty()) {
    return refused("cuda", absl::StrJoin(left_out, "; ", absl::PairFormatter(": ")));
  }
  return std::make_unique<CudaDevices>(std::move(devices), std::move(left_out));
}

}  // namespace gradclip
