#include "tests/bench/gpu/device_clock.h"

#include "absl/strings/str_format.h"

namespace gradclip::bench {

absl::Status StatusOf(const CudaCalls& calls) {
  if (calls.error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  return absl::UnavailableError(absl::StrFormat(
      "%s: %s (%s)", calls.call, cudaGetErrorString(calls.error), cudaGetErrorName(calls.error)));
}

absl::StatusOr<DeviceBytes> AllocateOnDevice(size_t bytes) {
  void* memory = nullptr;
  CudaCalls calls;
  calls.Ok("cudaMalloc", cudaMalloc(&memory, bytes));
  if (absl::Status made = StatusOf(calls); !made.ok()) return made;
  return DeviceBytes(static_cast<std::byte*>(memory));
}

absl::StatusOr<PinnedBytes> AllocatePinned(size_t bytes) {
  void* memory = nullptr;
  CudaCalls calls;
  calls.Ok("cudaHostAlloc", cudaHostAlloc(&memory, bytes, cudaHostAllocDefault));
  if (absl::Status made = StatusOf(calls); !made.ok()) return made;
  return PinnedBytes(static_cast<std::byte*>(memory));
}

absl::StatusOr<std::unique_ptr<DeviceClock>> DeviceClock::Make() {
  std::unique_ptr<DeviceClock> clock(new DeviceClock);
  CudaCalls calls;
  calls.Ok("cudaStreamCreateWithFlags",
           cudaStreamCreateWithFlags(&clock->stream_, cudaStreamNonBlocking)) &&
      calls.Ok("cudaEventCreate", cudaEventCreate(&clock->begin_)) &&
      calls.Ok("cudaEventCreate", cudaEventCreate(&clock->end_));
  if (absl::Status made = StatusOf(calls); !made.ok()) return made;
  return clock;
}

DeviceClock::~DeviceClock() {
  for (cudaEvent_t event : {begin_, end_}) {
    if (event != nullptr) (void)cudaEventDestroy(event);
  }
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::StatusOr<double> DeviceClock::TimeOf(absl::FunctionRef<bool(CudaCalls&)> queue) {
  float milliseconds = 0;
  CudaCalls calls;
  calls.Ok("cudaEventRecord", cudaEventRecord(begin_, stream_)) && queue(calls) &&
      calls.Ok("cudaEventRecord", cudaEventRecord(end_, stream_)) &&
      calls.Ok("cudaEventSynchronize", cudaEventSynchronize(end_)) &&
      calls.Ok("cudaEventElapsedTime", cudaEventElapsedTime(&milliseconds, begin_, end_));
  if (absl::Status timed = StatusOf(calls); !timed.ok()) return timed;
  return static_cast<double>(milliseconds) / 1e3;
}

}  // namespace gradclip::bench
