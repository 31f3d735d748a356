// Memory of the current device for tests, and ways there and back. Every error ends the test's
// process: what is tested here are not the errors. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_BACKEND_CUDA_DEVICE_BUFFER_H_
#define GRADCLIP_TESTS_SERVER_BACKEND_CUDA_DEVICE_BUFFER_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace gradclip {

inline void MustSucceed(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
  std::abort();
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes) : bytes_(bytes) {
    MustSucceed(cudaMalloc(&device_, bytes + 1));  // 1: none is empty
    MustSucceed(cudaHostAlloc(&host_, bytes + 1, cudaHostAllocDefault));
  }
  DeviceBuffer(const void* bytes, size_t count) : DeviceBuffer(count) { Put(bytes); }
  ~DeviceBuffer() {
    if (device_ == nullptr) return;
    MustSucceed(cudaFree(device_));
    MustSucceed(cudaFreeHost(host_));
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* device() const { return static_cast<std::byte*>(device_); }
  size_t size() const { return bytes_; }

  // Its device has failed, and can't free anything.
  void Forget() { device_ = host_ = nullptr; }

  void Put(const void* bytes) {
    if (bytes_ == 0) return;
    std::memcpy(host_, bytes, bytes_);
    MustSucceed(cudaMemcpyAsync(device_, host_, bytes_, cudaMemcpyHostToDevice, nullptr));
    MustSucceed(cudaStreamSynchronize(nullptr));
  }
  // What lies there now, in host memory that the next call reuses.
  const std::byte* Get() {
    if (bytes_ != 0) {
      MustSucceed(cudaMemcpyAsync(host_, device_, bytes_, cudaMemcpyDeviceToHost, nullptr));
      MustSucceed(cudaStreamSynchronize(nullptr));
    }
    return static_cast<const std::byte*>(host_);
  }

 private:
  const size_t bytes_;
  void* device_ = nullptr;
  void* host_ = nullptr;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_BACKEND_CUDA_DEVICE_BUFFER_H_
