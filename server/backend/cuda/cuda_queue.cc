#include "server/backend/cuda/cuda_queue.h"

#include <algorithm>
#include <utility>

#include "server/backend/cuda/kernel_arguments.h"

namespace gradclip {

absl::StatusOr<std::unique_ptr<DeviceQueue>> CudaQueue::Open(CudaDevice& device,
                                                             uint64_t slots_filled, bool keeps) {
  if (absl::Status current = device.MakeCurrent(); !current.ok()) return current;
  absl::StatusOr<std::unique_ptr<CudaDevice::Pipeline>> pipeline = device.TakePipeline();
  if (!pipeline.ok()) return pipeline.status();
  if (*pipeline == nullptr) return nullptr;
  const uint64_t slots = (*pipeline)->slots.size();
  absl::StatusOr<std::vector<DevicePiece*>> pieces =
      device.TakePieces(keeps ? slots_filled : std::min(slots_filled, slots));
  if (!pieces.ok()) {
    device.GivePipeline(*std::move(pipeline));
    return pieces.status();
  }
  return std::unique_ptr<DeviceQueue>(
      new CudaQueue(device, *std::move(pipeline), *std::move(pieces), keeps));
}

CudaQueue::~CudaQueue() {
  // Nothing that is under way may meet the next call's work.
  for (cudaStream_t stream : {pipeline_->copies, pipeline_->kernels}) {
    if (!device_.MakeCurrent().ok()) break;
    (void)device_.Await("cudaStreamQuery", [&] { return cudaStreamQuery(stream); });
  }
  device_.GivePieces(pieces_);
  device_.GivePipeline(std::move(pipeline_));
}

absl::Status CudaQueue::Begin() {
  if (status_.ok()) status_ = device_.MakeCurrent();
  return status_;
}

absl::Status CudaQueue::Note(const CudaCalls& calls) {
  if (status_.ok()) status_ = device_.Check(calls);
  return status_;
}

absl::Status CudaQueue::Measure(size_t slot, size_t bytes, std::span<const DeviceRun> runs,
                                NormKind kind, bool per_block) {
  if (absl::Status begun = Begin(); !begun.ok()) return begun;
  DevicePiece& piece = *pieces_[keeps_ ? contents_.size() : slot];
  const CudaDevice::Slot& at = pipeline_->slots[slot];
  DevicePiece* const host = at.host;
  const Content content = {bytes,
                           WriteTable(runs, reinterpret_cast<uint64_t>(piece.data), *host, piece)};
  found_[slot] = per_block ? content.runs.blocks : 0;
  if (keeps_) contents_.push_back(content);

  cudaStream_t copies = pipeline_->copies;
  cudaStream_t kernels = pipeline_->kernels;
  const auto copy = [&](void* to, const void* from, size_t size, cudaMemcpyKind way,
                        cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, way, stream);
  };
  CudaCalls calls;
  calls.Ok("cudaMemcpyAsync",
           copy(piece.data, host->data, bytes, cudaMemcpyHostToDevice, copies)) &&
      calls.Ok("cudaMemcpyAsync", copy(&piece.tally, &host->tally, TableBytes(runs.size()),
                                       cudaMemcpyHostToDevice, copies)) &&
      calls.Ok("cudaEventRecord", cudaEventRecord(at.brought, copies)) &&
      calls.Ok("cudaStreamWaitEvent", cudaStreamWaitEvent(kernels, at.brought, 0)) &&
      calls.Ok("cudaLaunchKernelEx",
               LaunchMeasure(kernels, device_.multiprocessors(), kind, content.runs, &piece.tally,
                             per_block ? piece.found : nullptr)) &&
      calls.Ok("cudaMemcpyAsync", copy(&host->tally, &piece.tally, sizeof(DeviceTally),
                                       cudaMemcpyDeviceToHost, kernels)) &&
      (found_[slot] == 0 || calls.Ok("cudaMemcpyAsync", copy(host->found, piece.found,
                                                             found_[slot] * sizeof(DeviceBlock),
                                                             cudaMemcpyDeviceToHost, kernels))) &&
      calls.Ok("cudaEventRecord", cudaEventRecord(at.done, kernels));
  return Note(calls);
}

absl::StatusOr<DeviceFound> CudaQueue::Await(size_t slot) {
  if (absl::Status begun = Begin(); !begun.ok()) return begun;
  const CudaDevice::Slot& at = pipeline_->slots[slot];
  status_ = device_.Await("cudaEventQuery", [&at] { return cudaEventQuery(at.done); });
  if (!status_.ok()) return status_;
  return DeviceFound{&at.host->tally, {at.host->found, found_[slot]}};
}

absl::Status CudaQueue::Scale(size_t piece, double coefficient, bool assign_zero) {
  if (absl::Status begun = Begin(); !begun.ok()) return begun;
  CudaCalls calls;
  calls.Ok("cudaLaunchKernelEx",
           LaunchScale(pipeline_->kernels, device_.multiprocessors(), contents_[piece].runs,
                       MakeScaleFactor(coefficient, assign_zero)));
  return Note(calls);
}

absl::Status CudaQueue::Fetch(size_t piece, size_t slot) {
  if (absl::Status begun = Begin(); !begun.ok()) return begun;
  const CudaDevice::Slot& at = pipeline_->slots[slot];
  found_[slot] = 0;
  CudaCalls calls;
  calls.Ok("cudaMemcpyAsync",
           cudaMemcpyAsync(at.host->data, pieces_[piece]->data, contents_[piece].bytes,
                           cudaMemcpyDeviceToHost, pipeline_->kernels)) &&
      calls.Ok("cudaEventRecord", cudaEventRecord(at.done, pipeline_->kernels));
  return Note(calls);
}

}  // namespace gradclip
