// A device with one allocation, for tests of how memory is registered: nothing is measured there.
// Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_SHM_FAKE_DEVICES_H_
#define GRADCLIP_TESTS_SERVER_SHM_FAKE_DEVICES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device.h"

namespace gradclip {

class FakeDevices : public Devices {
 public:
  static constexpr uint64_t kBytes = 4096;  // of the allocation
  static constexpr std::byte kUuid{7};      // the first byte of the device's, all others 0
  static constexpr std::byte kHandle{9};    // and of the allocation's handle

  std::vector<State> states() const override { return {}; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> Open(uint64_t, bool) override { return nullptr; }

  absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenMemory(const ExportedMemory& memory) override {
    if (memory.device != WithFirst<16>(kUuid)) return absl::FailedPreconditionError("no such GPU");
    if (memory.allocation != WithFirst<64>(kHandle) || memory.length == 0 ||
        memory.length > kBytes || memory.offset > kBytes - memory.length) {
      return absl::InvalidArgumentError("no such memory");
    }
    return std::make_unique<Memory>(memory.offset, open_);
  }

  uint64_t open() const { return open_; }

  // What follows a registration of its memory.
  static std::string AllocationBytes(std::byte uuid = kUuid, std::byte handle = kHandle) {
    std::string bytes(80, '\0');
    bytes[0] = static_cast<char>(uuid);
    bytes[16] = static_cast<char>(handle);
    return bytes;
  }

 private:
  class Memory : public DeviceMemory {
   public:
    Memory(uint64_t address, uint64_t& open) : address_(address), open_(open) { ++open_; }
    ~Memory() override { --open_; }
    std::string_view device() const override { return "fake/0"; }
    uint64_t address() const override { return address_; }
    absl::Status Measure(std::span<const DeviceRun>, NormKind, bool, Take) override { return No(); }
    absl::Status Scale(std::span<const DeviceRun>, double, bool) override { return No(); }
    absl::Status Fetch(uint64_t, std::span<std::byte>) override { return No(); }

   private:
    static absl::Status No() { return absl::UnavailableError("nothing is there"); }
    const uint64_t address_;
    uint64_t& open_;
  };

  template <size_t bytes>
  static std::array<std::byte, bytes> WithFirst(std::byte first) {
    return {first};
  }

  uint64_t open_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SHM_FAKE_DEVICES_H_
