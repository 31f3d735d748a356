#include "server/compute/compute.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace gradclip {
namespace {

// The device that "cuda/1" names; -1 for "auto" and "cuda", which name none.
absl::StatusOr<int> DeviceNumber(std::string_view name, std::string_view names) {
  if (name == "auto" || name == "cuda") return -1;
  absl::string_view number(name.data(), name.size());
  int value = 0;
  if (!absl::ConsumePrefix(&number, "cuda/") || !absl::SimpleAtoi(number, &value) || value < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("unknown backend \"%s\"; --backend takes one of: %s", name, names));
  }
  return value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Compute>> Compute::Make(std::string_view name, CudaOptions cuda) {
  std::unique_ptr<Compute> compute(new Compute);
  const std::vector<BackendChoice> gpus = ListCudaDevices();
  compute->choices_ = gpus;
  for (BackendChoice& host : ListBackends()) compute->choices_.push_back(std::move(host));
  const bool may_use_devices =
      name == "auto" || absl::StartsWith({name.data(), name.size()}, "cuda");
  absl::StatusOr<std::unique_ptr<Backend>> host =
      MakeBackend(may_use_devices ? "auto" : name, gpus);
  if (!host.ok()) return host.status();
  compute->host_ = *std::move(host);
  if (!may_use_devices) return compute;

  const absl::StatusOr<int> number = DeviceNumber(name, BackendNames(gpus));
  if (!number.ok()) return number.status();
  if (*number >= 0) {
    if (!cuda.devices.empty() && cuda.devices != std::vector<int>{*number}) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--backend=%s and --cuda-devices name different devices; give one of the two", name));
    }
    cuda.devices = {*number};
  }
  cuda.on_failure = [told = std::move(cuda.on_failure), &to = *compute](const std::string& device,
                                                                        const absl::Status& why) {
    {
      const std::lock_guard lock(to.mutex_);
      to.failed_[device] = std::string(why.message());
    }
    if (told != nullptr) told(device, why);
  };
  absl::StatusOr<std::unique_ptr<Devices>> devices = OpenCudaDevices(cuda);
  if (devices.ok()) {
    compute->devices_ = *std::move(devices);
    for (const auto& [device, why] : compute->left_out()) compute->failed_[device] = why;
  } else if (name == "auto" && cuda.devices.empty()) {
    compute->why_no_devices_ = std::string(devices.status().message());
  } else {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s; --backend takes one of: %s", devices.status().message(), BackendNames(gpus)));
  }
  return compute;
}

std::vector<std::pair<std::string, std::string>> Compute::left_out() const {
  return devices_ == nullptr ? std::vector<std::pair<std::string, std::string>>()
                             : devices_->left_out();
}

std::vector<std::string> Compute::names() const {
  std::vector<std::string> names;
  if (devices_ != nullptr) {
    for (Devices::State& device : devices_->states()) names.push_back(std::move(device.name));
  }
  names.emplace_back(host_->name());
  return names;
}

std::vector<BackendChoice> Compute::Choices() const {
  std::vector<BackendChoice> choices = choices_;
  {
    const std::lock_guard lock(mutex_);
    for (BackendChoice& choice : choices) {
      const auto failed = failed_.find(choice.name);
      if (failed == failed_.end()) continue;
      choice.usable = false;
      choice.detail = failed->second;
    }
  }
  const std::vector<std::string> in_use = names();
  const auto rank = [&](const BackendChoice& choice) {
    const bool used = std::count(in_use.begin(), in_use.end(), choice.name) != 0;
    if (!used || !choice.usable) return 2;
    return choice.name == host_->name() ? 1 : 0;
  };
  std::stable_sort(choices.begin(), choices.end(),
                   [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  return choices;
}

}  // namespace gradclip
