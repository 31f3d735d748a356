#include "server/backend/cuda/cuda_in_place.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "server/backend/cuda/kernel_arguments.h"

namespace gradclip {
namespace {

// A piece's data has no other use here: what is found in each block goes there.
DeviceBlock* FoundIn(DevicePiece& piece) {
  return reinterpret_cast<DeviceBlock*>(piece.data);
}

void TakeNothing() {}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaInPlace>> CudaInPlace::Open(CudaDevice& device) {
  std::unique_ptr<CudaInPlace> in_place(new CudaInPlace(device));
  if (absl::Status begun = in_place->Begin(); !begun.ok()) return begun;
  return in_place;
}

absl::Status CudaInPlace::Begin() {
  if (absl::Status current = device_.MakeCurrent(); !current.ok()) return current;
  const absl::StatusOr<std::vector<DevicePiece*>> pieces = device_.TakePieces(1);
  if (!pieces.ok()) return pieces.status();
  piece_ = pieces->front();
  CudaCalls calls;
  calls.Ok("cudaHostAlloc", cudaHostAlloc(reinterpret_cast<void**>(&host_), sizeof(DevicePiece),
                                          cudaHostAllocPortable)) &&
      calls.Ok("cudaStreamCreateWithFlags",
               cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  return device_.Check(calls);
}

CudaInPlace::~CudaInPlace() {
  if (device_.MakeCurrent().ok()) {
    CudaCalls calls;
    (stream_ == nullptr || calls.Ok("cudaStreamDestroy", cudaStreamDestroy(stream_))) &&
        (host_ == nullptr || calls.Ok("cudaFreeHost", cudaFreeHost(host_)));
    (void)device_.Check(calls);
  }
  if (piece_ != nullptr) device_.GivePieces({piece_});
}

absl::Status CudaInPlace::Run(absl::FunctionRef<void(CudaCalls& calls)> queue,
                              absl::FunctionRef<void()> take) {
  if (absl::Status current = device_.MakeCurrent(); !current.ok()) return current;
  const CudaDevice::Work work(device_);
  CudaCalls calls;
  queue(calls);
  const absl::Status queued = device_.Check(calls);
  if (absl::IsUnavailable(queued)) return queued;
  // Also where not all could be queued: what could reads host_, which the next work writes.
  const absl::Status done =
      device_.Await("cudaStreamQuery", [this] { return cudaStreamQuery(stream_); });
  if (!queued.ok() || !done.ok()) return queued.ok() ? done : queued;
  take();
  return absl::OkStatus();
}

absl::Status CudaInPlace::Measure(std::span<const DeviceRun> runs, NormKind kind, bool per_block,
                                  DeviceMemory::Take take) {
  const std::lock_guard lock(mutex_);
  const DeviceRuns table = WriteTable(runs, 0, *host_, *piece_);
  const uint64_t found = per_block ? table.blocks : 0;
  return Run(
      [&](CudaCalls& calls) {
        calls.Ok("cudaMemcpyAsync",
                 cudaMemcpyAsync(&piece_->tally, &host_->tally, TableBytes(runs.size()),
                                 cudaMemcpyHostToDevice, stream_)) &&
            calls.Ok("cudaLaunchKernelEx",
                     LaunchMeasure(stream_, device_.multiprocessors(), kind, table, &piece_->tally,
                                   per_block ? FoundIn(*piece_) : nullptr)) &&
            calls.Ok("cudaMemcpyAsync",
                     cudaMemcpyAsync(&host_->tally, &piece_->tally, sizeof(DeviceTally),
                                     cudaMemcpyDeviceToHost, stream_)) &&
            (found == 0 ||
             calls.Ok("cudaMemcpyAsync",
                      cudaMemcpyAsync(host_->data, piece_->data, found * sizeof(DeviceBlock),
                                      cudaMemcpyDeviceToHost, stream_)));
      },
      [&] {
        take({&host_->tally, {FoundIn(*host_), found}});
      });
}

absl::Status CudaInPlace::Scale(std::span<const DeviceRun> runs, double coefficient,
                                bool assign_zero) {
  const std::lock_guard lock(mutex_);
  const DeviceRuns table = WriteTable(runs, 0, *host_, *piece_);
  return Run(
      [&](CudaCalls& calls) {
        calls.Ok("cudaMemcpyAsync",
                 cudaMemcpyAsync(&piece_->tally, &host_->tally, TableBytes(runs.size()),
                                 cudaMemcpyHostToDevice, stream_)) &&
            calls.Ok("cudaLaunchKernelEx", LaunchScale(stream_, device_.multiprocessors(), table,
                                                       MakeScaleFactor(coefficient, assign_zero)));
      },
      TakeNothing);
}

absl::Status CudaInPlace::Fetch(uint64_t address, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const std::span<std::byte> part =
        bytes.first(std::min<size_t>(bytes.size(), DeviceQueue::kSlotBytes));
    const std::lock_guard lock(mutex_);
    const absl::Status came = Run(
        [&](CudaCalls& calls) {
          calls.Ok("cudaMemcpyAsync",
                   cudaMemcpyAsync(host_->data, reinterpret_cast<const void*>(address), part.size(),
                                   cudaMemcpyDeviceToHost, stream_));
        },
        [&] { std::memcpy(part.data(), host_->data, part.size()); });
    if (!came.ok()) return came;
    address += part.size();
    bytes = bytes.subspan(part.size());
  }
  return absl::OkStatus();
}

}  // namespace gradclip
