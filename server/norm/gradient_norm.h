// Measures one gradient, run of elements after run of elements, tensor after tensor. Cuts each
// tensor into blocks, has the backend sum them, and keeps the counts. Not thread-safe; one per
// call.
#ifndef GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_
#define GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "server/backend/backend.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// What was found in one tensor.
struct TensorSummary {
  double norm = 0;                                  // times `factor`; 0 unless per_tensor
  uint64_t nonfinite = 0;                           // NaN and infinity
  uint64_t first_nonfinite = ElementCounts::kNone;  // flat index
  uint64_t zeros = 0;                               // 0 unless per_tensor
};

// The caller's floating-point environment changes nothing.
class GradientNorm {
 public:
  // `backend` must outlive this. per_tensor: EndTensor() also gives each tensor's zeros, and its
  // norm times `factor`, which is as NormPartial::Norm() takes it.
  GradientNorm(const Backend& backend, double norm_type, bool per_tensor, double factor = 1);

  // The next tensor. counted = false: measured for EndTensor() alone, left out of total().
  void BeginTensor(DType dtype, bool counted);
  // Its next elements; any number of runs of any length, any alignment.
  void Add(const std::byte* elements, size_t count);
  // Its next `count` elements, measured elsewhere: `sum` and what was found among them. REQUIRES:
  // they begin with a block, and end with one or with the tensor; the same norm_type, per_tensor.
  void AddBlocks(const NormPartial& sum, const TensorSummary& found, uint64_t count);
  TensorSummary EndTensor();

  // Whole tensors that were measured elsewhere, between two of this one's own. REQUIRES: the same
  // norm_type.
  void AddTensors(const NormPartial& sum) { total_.Merge(sum); }

  // Over all counted tensors that have ended; the factor is not in it.
  const NormPartial& total() const { return total_; }

 private:
  // How a tensor's runs are taken.
  enum class Way : uint8_t {
    kLargest,  // each run for itself: p = infinity
    kLanes,    // straight into the block's lanes: F32, F16, BF16 with p = 1, 2
    // Only when it is whole, as a block may have to be read twice: F64 with p = 1, 2 and all other
    // p. A block that runs cut is put together in block_.
    kWholeBlocks,
  };

  // The flat index of the first of `elements` is passed along with them.
  void AddInDefaultEnvironment(const std::byte* elements, size_t count);
  TensorSummary EndTensorInDefaultEnvironment();
  void AddToLanes(const std::byte* elements, size_t count, uint64_t flat_index);
  void AddToBlocks(const std::byte* elements, size_t count, uint64_t flat_index);
  void EndBlock(const std::byte* elements, size_t count, uint64_t flat_index);
  void EndBlockOfSums(const std::byte* elements, size_t count, uint64_t flat_index);
  void EndBlockOfPowers(const std::byte* elements, size_t count, uint64_t flat_index);
  double SumOfBlock(const std::byte* elements, size_t count);
  double RescaledSumOfBlock(const std::byte* elements, size_t count, double factor);
  void CountNonfinite(const std::byte* elements, size_t count, uint64_t flat_index);
  void Record(uint64_t nonfinite, uint64_t first_nonfinite, uint64_t flat_index);
  LaneTerm term() const;
  std::byte* block();

  const Backend& backend_;
  const bool per_tensor_;
  const double factor_;
  NormPartial total_;
  NormPartial tensor_;

  // The tensor at hand.
  DType dtype_ = DType::kFloat32;
  Way way_ = Way::kLanes;
  bool counted_ = false;
  uint64_t taken_ = 0;    // elements
  size_t in_block_ = 0;   // elements that the block at hand has so far
  Lanes lanes_;           // kLanes: of the block at hand
  double block_sum_ = 0;  // kLanes: the sum of lanes_
  TensorSummary summary_;
  std::unique_ptr<std::byte[]> block_;  // made when first needed, for kBlockElements of any dtype
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_
