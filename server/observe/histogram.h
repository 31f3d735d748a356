// How often a measured value lay in each of some ranges. Thread-safe, and never waits: an
// observation is a few atomic additions. (prometheus-cpp's own takes a lock, which a scrape holds
// while it copies.)
#ifndef GRADCLIP_SERVER_OBSERVE_HISTOGRAM_H_
#define GRADCLIP_SERVER_OBSERVE_HISTOGRAM_H_

#include <prometheus/client_metric.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

namespace gradclip {

class Histogram {
 public:
  // `bounds` are the ranges' upper ends, each part of its range, in ascending order; a last range
  // has no end. They must outlive this.
  explicit Histogram(std::span<const double> bounds);

  // REQUIRES: `value` is finite. The sum of all stays finite, too.
  void Observe(double value);

  // What has been observed so far. The count is that of the ranges; an observation that is under
  // way may be in it and not yet in the sum.
  prometheus::ClientMetric Collect() const;

 private:
  const std::span<const double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // one more than bounds
  std::atomic<double> sum_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_HISTOGRAM_H_
