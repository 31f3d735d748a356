#include "examples/train/collectives.h"

#include <algorithm>

namespace train {

Collectives::Collectives(size_t ranks, size_t elements)
    : ranks_(ranks), elements_(elements), barrier_(1), given_(ranks * elements) {
  pthread_barrierattr_t attributes;
  pthread_barrierattr_init(&attributes);
  pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_barrier_init(&barrier_[0], &attributes, static_cast<unsigned>(ranks));
  pthread_barrierattr_destroy(&attributes);
}

void Collectives::AllReduce(size_t rank, std::span<float> values) {
  ReduceScatter(rank, values, {0, values.size()});
}

void Collectives::ReduceScatter(size_t rank, std::span<float> values, Range own) {
  std::copy(values.begin(), values.end(), given_.Part(rank * elements_, values.size()).begin());
  Wait();
  for (size_t i = own.begin; i < own.end; ++i) {
    float sum = 0;
    for (size_t other = 0; other < ranks_; ++other) sum += given_[other * elements_ + i];
    values[i] = sum;
  }
  Wait();  // until all have read
}

void Collectives::AllGather(std::span<float> values, Range own) {
  const std::span<float> all = given_.Part(0, values.size());
  std::copy(values.begin() + own.begin, values.begin() + own.end, all.begin() + own.begin);
  Wait();
  std::copy(all.begin(), all.end(), values.begin());
  Wait();
}

void Collectives::Wait() {
  pthread_barrier_wait(&barrier_[0]);
}

}  // namespace train
