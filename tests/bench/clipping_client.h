// gradclip::Client clipping the same memory again and again, each time for a reason. Not
// thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_CLIPPING_CLIENT_H_
#define GRADCLIP_TESTS_BENCH_CLIPPING_CLIENT_H_

#include <span>
#include <string>

#include "absl/status/status.h"
#include "gradclip/client.h"

namespace gradclip::bench {

class ClippingClient {
 public:
  // The tensors and their memory must outlive it.
  ClippingClient(const std::string& address, std::span<const Tensor> tensors,
                 ClientOptions options = {})
      : client_(address, options), tensors_(tensors) {}

  // Clips in the default mode, to a thousandth less than the norm that the call before has left.
  absl::Status Clip() {
    ClipOptions options;
    options.max_norm = norm_ * 0.999;
    const absl::StatusOr<ClipAnswer> answer = client_.Clip(tensors_, options);
    if (!answer.ok()) return answer.status();
    // The first call, with nothing to go by, learns the norm.
    norm_ = answer->clipped ? options.max_norm : answer->norm.total_norm;
    return absl::OkStatus();
  }

 private:
  Client client_;
  const std::span<const Tensor> tensors_;
  double norm_ = 1e30;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_CLIPPING_CLIENT_H_
