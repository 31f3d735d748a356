// PyTorch's clip_grad_norm_ in a process of its own, where a python3 of this machine has it. Not
// thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_PYTORCH_PROCESS_H_
#define GRADCLIP_TESTS_BENCH_PYTORCH_PROCESS_H_

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "gradclip/client.h"
#include "tests/bench/child.h"
#include "tests/bench/servers.h"

namespace gradclip::bench {

// max_norm for PyTorch::Clip().
inline constexpr double kAlwaysClips = 0.5;
inline constexpr double kClipsNothing = 1e30;

class PyTorch {
 public:
  // clip_grad_norm.py with tensors of these shapes, all of the first one's dtype, on as many
  // threads as are the fastest. UNAVAILABLE where there is no PyTorch.
  static absl::StatusOr<PyTorch> Start(const ScratchFolder& folder,
                                       std::span<const Tensor> tensors);

  const std::string& version() const { return version_; }  // "1.13.0, threads: 2"

  // Seconds of one clip.
  absl::StatusOr<double> Clip(double max_norm);

 private:
  PyTorch(std::unique_ptr<Child> process, std::string version)
      : process_(std::move(process)), version_(std::move(version)) {}

  std::unique_ptr<Child> process_;
  std::string version_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_PYTORCH_PROCESS_H_
