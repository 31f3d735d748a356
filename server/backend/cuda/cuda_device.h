// One GPU: its memory, the pinned memory and streams that calls take turns with, and whether it is
// still of use. Thread-safe.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICE_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/cuda/device_piece.h"

namespace gradclip {

// Calls of the CUDA runtime one after another, up to the first that fails:
//   calls.Ok("cudaMalloc", cudaMalloc(...)) && calls.Ok("cudaFree", cudaFree(...));
struct CudaCalls {
  bool Ok(const char* name, cudaError_t returned) {
    call = name;
    error = returned;
    return returned == cudaSuccess;
  }

  const char* call = "";  // the last one
  cudaError_t error = cudaSuccess;
};

class CudaDevice {
 public:
  // How many calls can be at work at once. Each takes 3 slots of pinned memory, some 6 MiB.
  static constexpr size_t kMostPipelines = 16;

  // Called once, when the device has failed, on the thread that found it out.
  using OnFailure = std::function<void(const std::string& name, const absl::Status& why)>;

  // Device `number`. memory_budget: bytes that pieces may take of its memory. UNAVAILABLE where it
  // can't be used; FAILED_PRECONDITION where the budget is below what a call needs that keeps
  // nothing, 3 pieces, and one for CudaInPlace.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int number, uint64_t memory_budget,
                                                          OnFailure on_failure);
  ~CudaDevice();  // REQUIRES: all pieces and pipelines are back

  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int number() const { return number_; }
  const std::string& name() const { return name_; }
  const std::array<std::byte, 16>& uuid() const { return uuid_; }
  int multiprocessors() const { return multiprocessors_; }

  // OK until the device fails, and never again afterwards: then UNAVAILABLE, with the reason.
  absl::Status state() const;
  uint64_t memory_bytes() const {
    return most_pieces_ * sizeof(DevicePiece);
  }                             // that pieces may take
  uint64_t used_bytes() const;  // that they do
  // Calls that it is at work for.
  uint64_t load() const { return load_.load(std::memory_order_relaxed); }

  // Counts as load while it is there.
  class Work {
   public:
    explicit Work(CudaDevice& device) : device_(device) { device.load_.fetch_add(1); }
    ~Work() { device_.load_.fetch_sub(1); }
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;

   private:
    CudaDevice& device_;
  };

  // Two streams, so that bytes come while others are measured, and slots with their events.
  struct Slot {
    DevicePiece* host = nullptr;    // pinned
    cudaEvent_t brought = nullptr;  // the slot's bytes are on the device
    cudaEvent_t done = nullptr;     // what was asked for is back in the slot
  };
  struct Pipeline {
    cudaStream_t copies = nullptr;
    cudaStream_t kernels = nullptr;
    std::array<Slot, 3> slots;
  };

  // Null where all are in use. RESOURCE_EXHAUSTED where memory is.
  absl::StatusOr<std::unique_ptr<Pipeline>> TakePipeline();
  void GivePipeline(std::unique_ptr<Pipeline> pipeline);

  // All or none. RESOURCE_EXHAUSTED over the budget, or where the device's memory is.
  absl::StatusOr<std::vector<DevicePiece*>> TakePieces(uint64_t count);
  void GivePieces(const std::vector<DevicePiece*>& pieces);

  // Makes the device the calling thread's own, as every use of it needs.
  absl::Status MakeCurrent();
  // Waits until `query` no longer returns cudaErrorNotReady: `call` is its name. A device that has
  // not come to an end after a while has failed: nobody waits for ever.
  absl::Status Await(const char* call, absl::FunctionRef<cudaError_t()> query);
  // What came of the calls. Whatever is not a lack of memory means that the device has failed.
  absl::Status Check(const CudaCalls& calls);
  // The same for calls with something that another process gave: INVALID_ARGUMENT where they fail
  // and the device works all the same.
  absl::Status CheckGiven(const CudaCalls& calls);

 private:
  CudaDevice(int number, uint64_t memory_budget, OnFailure on_failure);

  absl::Status Begin();
  absl::Status Make(Pipeline& pipeline);
  absl::Status Destroy(const Pipeline& pipeline);
  // At least so many. REQUIRES: allocating_; the budget has room for them.
  absl::Status AddPieces(uint64_t count);
  void FreeSlabs(const std::vector<void*>& slabs);
  absl::Status Fail(const std::string& why);

  const int number_;
  const std::string name_;
  const uint64_t most_pieces_;
  const OnFailure on_failure_;
  std::array<std::byte, 16> uuid_{};
  int multiprocessors_ = 0;
  std::atomic<uint64_t> load_ = 0;

  std::mutex allocating_;  // pieces; taken before mutex_, which is never held while CUDA works
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  absl::Status state_;
  std::vector<std::unique_ptr<Pipeline>> idle_;
  size_t pipelines_ = 0;
  std::vector<void*> slabs_;  // what pieces are cut from
  uint64_t pieces_ = 0;       // of all slabs
  std::vector<DevicePiece*> free_pieces_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_CUDA_DEVICE_H_
