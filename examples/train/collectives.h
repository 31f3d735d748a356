// What NCCL or MPI is to a real trainer: sums and gathers over the processes of a run, through
// memory they share. A sum is taken in order of rank, so its bits are always the same.
//
// Made before the processes are forked; then each calls with its rank. All ranks make the same
// calls in the same order, and each waits there for all.
#ifndef GRADCLIP_EXAMPLES_TRAIN_COLLECTIVES_H_
#define GRADCLIP_EXAMPLES_TRAIN_COLLECTIVES_H_

#include <pthread.h>

#include <cstddef>
#include <span>

#include "examples/train/range.h"
#include "examples/train/shared_array.h"

namespace train {

class Collectives {
 public:
  // Of up to `elements` values in one call.
  Collectives(size_t ranks, size_t elements);

  // Replaces every value by the sum over all ranks.
  void AllReduce(size_t rank, std::span<float> values);

  // The same for the values in `own` alone, which each rank chooses for itself. Others stay.
  void ReduceScatter(size_t rank, std::span<float> values, Range own);

  // Every rank's values in its `own` range come to all. Together the ranges are all values.
  void AllGather(std::span<float> values, Range own);

 private:
  void Wait();

  const size_t ranks_;
  const size_t elements_;
  // It is never destroyed: that would wait for processes that were killed while they waited in it.
  const SharedArray<pthread_barrier_t> barrier_;
  const SharedArray<float> given_;  // `elements_` for each rank
};

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_COLLECTIVES_H_
