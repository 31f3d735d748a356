#include "server/backend/cuda/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/backend/cuda/kernels.h"

namespace gradclip {
namespace {

// Pieces come from the driver so many at a time, which takes a while: 33 MiB.
constexpr uint64_t kSlabPieces = 16;

// A slot of 2 MiB takes the device some 100 us; what is waited for may be behind that of others.
constexpr std::chrono::seconds kMostPatience{30};
constexpr std::chrono::microseconds kShortestPause{10};
constexpr std::chrono::microseconds kLongestPause{1000};

}  // namespace

CudaDevice::CudaDevice(int number, uint64_t memory_budget, OnFailure on_failure)
    : number_(number),
      name_(absl::StrCat("cuda/", number)),
      most_pieces_(memory_budget / sizeof(DevicePiece)),
      on_failure_(std::move(on_failure)) {}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int number, uint64_t memory_budget,
                                                             OnFailure on_failure) {
  std::unique_ptr<CudaDevice> device(new CudaDevice(number, memory_budget, std::move(on_failure)));
  if (absl::Status begun = device->Begin(); !begun.ok()) return begun;
  return device;
}

absl::Status CudaDevice::Begin() {
  constexpr uint64_t kFewestPieces = std::tuple_size_v<decltype(Pipeline::slots)> + 1;
  if (most_pieces_ < kFewestPieces) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "fewer than %d bytes of its memory are free, or may be used (--cuda-memory-budget)",
        kFewestPieces * sizeof(DevicePiece)));
  }
  CudaCalls calls;
  cudaDeviceProp properties = {};
  calls.Ok("cudaSetDevice", cudaSetDevice(number_)) &&
      calls.Ok("cudaFuncGetAttributes", CheckKernels()) &&
      calls.Ok("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, number_));
  multiprocessors_ = properties.multiProcessorCount;
  static_assert(sizeof(properties.uuid) == sizeof(uuid_));
  std::memcpy(uuid_.data(), &properties.uuid, sizeof(uuid_));
  return Check(calls);
}

// Where the device has failed, so would giving anything back to it: it goes with the process.
CudaDevice::~CudaDevice() {
  if (!MakeCurrent().ok()) return;
  for (const std::unique_ptr<Pipeline>& pipeline : idle_) (void)Destroy(*pipeline);
  FreeSlabs(slabs_);
}

absl::Status CudaDevice::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

uint64_t CudaDevice::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return (pieces_ - free_pieces_.size()) * sizeof(DevicePiece);
}

absl::Status CudaDevice::MakeCurrent() {
  if (absl::Status usable = state(); !usable.ok()) return usable;
  CudaCalls calls;
  calls.Ok("cudaSetDevice", cudaSetDevice(number_));
  return Check(calls);
}

absl::Status CudaDevice::Await(const char* call, absl::FunctionRef<cudaError_t()> query) {
  const auto begin = std::chrono::steady_clock::now();
  auto pause = kShortestPause;
  CudaCalls calls;
  while (!calls.Ok(call, query()) && calls.error == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() - begin > kMostPatience) {
      return Fail(
          absl::StrFormat("%s: it has not answered for %d s", name_, kMostPatience.count()));
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
  }
  return Check(calls);
}

absl::Status CudaDevice::Check(const CudaCalls& calls) {
  if (calls.error == cudaSuccess) return absl::OkStatus();
  // An error that does not stay must not be taken for one of a later call.
  (void)cudaGetLastError();
  const std::string why =
      absl::StrFormat("%s: %s (%s of %s)", name_, cudaGetErrorString(calls.error),
                      cudaGetErrorName(calls.error), calls.call);
  if (calls.error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(why);
  return Fail(why);
}

absl::Status CudaDevice::CheckGiven(const CudaCalls& calls) {
  if (calls.error == cudaSuccess || calls.error == cudaErrorMemoryAllocation) return Check(calls);
  (void)cudaGetLastError();
  // An error that is the device's stays with it.
  size_t free = 0;
  size_t total = 0;
  CudaCalls after;
  after.Ok("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
  if (absl::Status works = Check(after); !works.ok()) return works;
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s (%s of %s)", name_,
                                                    cudaGetErrorString(calls.error),
                                                    cudaGetErrorName(calls.error), calls.call));
}

absl::Status CudaDevice::Fail(const std::string& why) {
  absl::Status status = absl::UnavailableError(why);
  {
    const std::lock_guard lock(mutex_);
    if (!state_.ok()) return state_;
    state_ = status;
  }
  if (on_failure_ != nullptr) on_failure_(name_, status);
  return status;
}

absl::StatusOr<std::unique_ptr<CudaDevice::Pipeline>> CudaDevice::TakePipeline() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Pipeline> pipeline = std::move(idle_.back());
      idle_.pop_back();
      load_.fetch_add(1, std::memory_order_relaxed);
      return pipeline;
    }
    if (pipelines_ == kMostPipelines) return nullptr;
    ++pipelines_;
  }
  auto pipeline = std::make_unique<Pipeline>();
  if (absl::Status made = Make(*pipeline); !made.ok()) {
    (void)Destroy(*pipeline);
    const std::lock_guard lock(mutex_);
    --pipelines_;
    return made;
  }
  load_.fetch_add(1, std::memory_order_relaxed);
  return pipeline;
}

void CudaDevice::GivePipeline(std::unique_ptr<Pipeline> pipeline) {
  load_.fetch_sub(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(pipeline));
}

absl::Status CudaDevice::Make(Pipeline& pipeline) {
  CudaCalls calls;
  const auto make_stream = [&](cudaStream_t* stream) {
    return calls.Ok("cudaStreamCreateWithFlags",
                    cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  };
  const auto make_event = [&](cudaEvent_t* event) {
    return calls.Ok("cudaEventCreateWithFlags",
                    cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  };
  bool ok = make_stream(&pipeline.copies) && make_stream(&pipeline.kernels);
  for (Slot& slot : pipeline.slots) {
    ok = ok &&
         calls.Ok("cudaHostAlloc", cudaHostAlloc(reinterpret_cast<void**>(&slot.host),
                                                 sizeof(DevicePiece), cudaHostAllocPortable)) &&
         make_event(&slot.brought) && make_event(&slot.done);
  }
  return Check(calls);
}

absl::Status CudaDevice::Destroy(const Pipeline& pipeline) {
  CudaCalls calls;
  bool ok = true;
  for (const Slot& slot : pipeline.slots) {
    for (cudaEvent_t event : {slot.brought, slot.done}) {
      ok = ok && (event == nullptr || calls.Ok("cudaEventDestroy", cudaEventDestroy(event)));
    }
    ok = ok && (slot.host == nullptr || calls.Ok("cudaFreeHost", cudaFreeHost(slot.host)));
  }
  for (cudaStream_t stream : {pipeline.copies, pipeline.kernels}) {
    ok = ok && (stream == nullptr || calls.Ok("cudaStreamDestroy", cudaStreamDestroy(stream)));
  }
  return Check(calls);
}

absl::StatusOr<std::vector<DevicePiece*>> CudaDevice::TakePieces(uint64_t count) {
  const std::lock_guard allocating(allocating_);
  uint64_t missing = 0;
  {
    const std::lock_guard lock(mutex_);
    const uint64_t free = free_pieces_.size();
    if (count > free && count - free > most_pieces_ - pieces_) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "%s: %d bytes of its memory are needed, and %d of the %d that may be used are free "
          "(--cuda-memory-budget)",
          name_, count * sizeof(DevicePiece), (most_pieces_ - pieces_ + free) * sizeof(DevicePiece),
          most_pieces_ * sizeof(DevicePiece)));
    }
    missing = count > free ? count - free : 0;
  }
  if (absl::Status added = AddPieces(missing); !added.ok()) return added;
  const std::lock_guard lock(mutex_);
  std::vector<DevicePiece*> taken(free_pieces_.end() - static_cast<ptrdiff_t>(count),
                                  free_pieces_.end());
  free_pieces_.resize(free_pieces_.size() - count);
  return taken;
}

absl::Status CudaDevice::AddPieces(uint64_t count) {
  std::vector<void*> slabs;
  std::vector<DevicePiece*> pieces;
  while (pieces.size() < count) {
    const uint64_t now = std::min(kSlabPieces, most_pieces_ - pieces_ - pieces.size());
    void* slab = nullptr;
    CudaCalls calls;
    calls.Ok("cudaMalloc", cudaMalloc(&slab, now * sizeof(DevicePiece)));
    if (absl::Status made = Check(calls); !made.ok()) {
      FreeSlabs(slabs);  // who else uses the device may need them
      return made;
    }
    slabs.push_back(slab);
    for (uint64_t i = 0; i < now; ++i) pieces.push_back(static_cast<DevicePiece*>(slab) + i);
  }
  const std::lock_guard lock(mutex_);
  slabs_.insert(slabs_.end(), slabs.begin(), slabs.end());
  free_pieces_.insert(free_pieces_.end(), pieces.begin(), pieces.end());
  pieces_ += pieces.size();
  return absl::OkStatus();
}

void CudaDevice::FreeSlabs(const std::vector<void*>& slabs) {
  CudaCalls calls;
  bool ok = true;
  for (void* slab : slabs) ok = ok && calls.Ok("cudaFree", cudaFree(slab));
  (void)Check(calls);
}

void CudaDevice::GivePieces(const std::vector<DevicePiece*>& pieces) {
  const std::lock_guard lock(mutex_);
  free_pieces_.insert(free_pieces_.end(), pieces.begin(), pieces.end());
}

}  // namespace gradclip
