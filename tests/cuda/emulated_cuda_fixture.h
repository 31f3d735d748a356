// A fresh emulated device, a stream, and device and pinned arrays that are freed at the end.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FIXTURE_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FIXTURE_H_

#include <gtest/gtest.h>

#include <vector>

#include "emulated_cuda.h"
#include "runtime_api.h"

namespace gradclip {

// EXPECT_DEATH's, where AddressSanitizer says more than the shell does.
inline constexpr char kAnyDeath[] = "";

class EmulatedCuda : public testing::Test {
 protected:
  EmulatedCuda() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    Restart();
  }
  ~EmulatedCuda() override { emulated_cuda::Reset(); }

  void Restart(const emulated_cuda::Options& options = {}) {
    emulated_cuda::Reset(options);
    stream_ = nullptr;
    if (!options.devices.empty() && options.driver_version >= 13000) stream_ = NewStream();
    emulated_cuda::ForgetCalls();
  }

  static cudaStream_t NewStream() {
    cudaStream_t stream = nullptr;
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
  }
  static cudaEvent_t NewEvent() {
    cudaEvent_t event = nullptr;
    EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
              cudaSuccess);
    return event;
  }
  template <typename T>
  static T* OnDevice(size_t count) {
    T* pointer = nullptr;
    EXPECT_EQ(cudaMalloc(&pointer, count * sizeof(T)), cudaSuccess);
    return pointer;
  }
  template <typename T>
  static T* Pinned(size_t count) {
    T* pointer = nullptr;
    EXPECT_EQ(cudaHostAlloc(&pointer, count * sizeof(T), cudaHostAllocDefault), cudaSuccess);
    return pointer;
  }
  // Waits for the device.
  template <typename T>
  static std::vector<T> Read(const T* device, size_t count) {
    std::vector<T> values(count);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }
  template <typename T>
  T* OnDevice(const std::vector<T>& values) {
    T* const pointer = OnDevice<T>(values.size());
    EXPECT_EQ(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
    return pointer;
  }
  cudaError_t Wait() { return cudaStreamSynchronize(stream_); }

  cudaStream_t stream_ = nullptr;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FIXTURE_H_
