// Memory that another process really has, on the emulated GPU and, by ./dev test --gpu, on a real
// one: measured and scaled here, as its owner then sees.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "server/backend/cuda/cuda_devices.h"
#include "server/norm/pieces.h"
#include "tests/server/backend/cuda/device_buffer.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

// The owner's ends of two pipes, as its environment names them.
constexpr char kTell[] = "GRADCLIP_TEST_TELL";
constexpr char kListen[] = "GRADCLIP_TEST_LISTEN";

constexpr size_t kElements = 1'000'003;

Bytes Gradient() {
  return RandomElements(DType::kFloat32, kElements, 11);
}

void WriteAll(int to, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(to, bytes.data(), bytes.size());
    ASSERT_GT(count, 0);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void ReadAll(int from, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = read(from, bytes.data(), bytes.size());
    ASSERT_GT(count, 0);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

// Exports memory, waits until it is told to go on, and sends what is there then.
void Own(int tell, int listen) {
  const Bytes gradient = Gradient();
  DeviceBuffer buffer(gradient.data(), gradient.size());
  ExportedMemory exported = {.offset = 0, .length = gradient.size()};
  cudaIpcMemHandle_t handle;
  MustSucceed(cudaIpcGetMemHandle(&handle, buffer.device()));
  std::memcpy(exported.allocation.data(), &handle, sizeof handle);
  cudaDeviceProp properties;
  MustSucceed(cudaGetDeviceProperties(&properties, 0));
  std::memcpy(exported.device.data(), &properties.uuid, sizeof properties.uuid);
  WriteAll(tell, std::as_bytes(std::span(&exported, 1)));
  std::byte go;
  ReadAll(listen, {&go, 1});
  WriteAll(tell, {buffer.Get(), buffer.size()});
}

// This program, once more, where the environment says so: the owner and nothing else.
class OwnerInPlaceOfTests : public testing::Environment {
 public:
  void SetUp() override {
    const char* const tell = std::getenv(kTell);
    if (tell == nullptr) return;
    Own(std::atoi(tell), std::atoi(std::getenv(kListen)));
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
};
const testing::Environment* const kOwner =
    testing::AddGlobalTestEnvironment(new OwnerInPlaceOfTests);

class Owner {
 public:
  Owner() {
    int to_us[2];
    int to_it[2];
    EXPECT_EQ(pipe(to_us), 0);
    EXPECT_EQ(pipe(to_it), 0);
    setenv(kTell, std::to_string(to_us[1]).c_str(), 1);
    setenv(kListen, std::to_string(to_it[0]).c_str(), 1);
    pid_ = fork();
    if (pid_ == 0) {
      close(to_us[0]);
      close(to_it[1]);
      execl("/proc/self/exe", "owner", nullptr);
      _exit(127);
    }
    unsetenv(kTell);
    close(to_us[1]);
    close(to_it[0]);
    from_ = to_us[0];
    to_ = to_it[1];
  }
  ~Owner() {
    close(from_);
    close(to_);
    int status = 0;
    waitpid(pid_, &status, 0);
    EXPECT_EQ(status, 0);
  }

  int from() const { return from_; }
  int to() const { return to_; }

 private:
  pid_t pid_ = -1;
  int from_ = -1;
  int to_ = -1;
};

TEST(CudaMemoryOfAnotherProcess, IsMeasuredAndScaledWhereItIs) {
  Owner owner;
  ExportedMemory exported;
  ASSERT_NO_FATAL_FAILURE(ReadAll(owner.from(), std::as_writable_bytes(std::span(&exported, 1))));
  absl::StatusOr<std::unique_ptr<Devices>> devices = OpenCudaDevices({});
  ASSERT_TRUE(devices.ok()) << devices.status();
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = (*devices)->OpenMemory(exported);
  ASSERT_TRUE(memory.ok()) << memory.status();

  Bytes gradient = Gradient();
  const std::unique_ptr<Backend> host = *MakeBackend("cpu/baseline");
  const Piece piece = {DType::kFloat32, true, gradient.data(), kElements};
  const DeviceRun all = {.address = (*memory)->address(), .elements = kElements};
  NormPartial norm(2);
  ASSERT_EQ((*memory)->Measure({&all, 1}, NormKind::kSquares, false,
                               [&](const DeviceFound& found) { norm.AddTally(*found.tally); }),
            absl::OkStatus());
  EXPECT_EQ(norm.Serialize(), MeasureTensors(*host, 2, false, 1, {&piece, 1}).sum.Serialize());

  ASSERT_EQ((*memory)->Scale({&all, 1}, 0.3, false), absl::OkStatus());
  memory->reset();  // before its owner frees it
  host->Scale(DType::kFloat32, gradient.data(), kElements, 0.3);
  Bytes there(gradient.size());
  ASSERT_NO_FATAL_FAILURE(WriteAll(owner.to(), {there.data(), 1}));
  ASSERT_NO_FATAL_FAILURE(ReadAll(owner.from(), there));
  EXPECT_TRUE(there == gradient);
}

}  // namespace
}  // namespace gradclip
