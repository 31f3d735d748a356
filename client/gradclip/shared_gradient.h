// A gradient in memory that a server on the same host can reach itself: a call then moves no
// gradient byte, however large the gradient is.
//
//   gradclip::Client client("unix:/run/gradclip/server.sock");
//   auto gradient = gradclip::SharedGradient::Make(
//       client, {{{"weight", gradclip::DType::kFloat32, {768, 768}}}});
//   float* weight = static_cast<float*>(gradient->tensors()[0].data);  // write the gradient here
//   absl::StatusOr<gradclip::ClipAnswer> answer = gradient->Clip(options);
//
// The memory is a sealed memfd, handed to the server over its memory socket (--memory-socket) with
// the first call and again where that connection was lost or the server has restarted. Where the
// server has no such socket, or it can't be reached or refuses, the gradient is streamed as
// Client would, and that is said once.
//
// A SharedGradient belongs to one thread at a time, its memory included while a call runs. Several
// may share a client.
#ifndef GRADCLIP_SHARED_GRADIENT_H_
#define GRADCLIP_SHARED_GRADIENT_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradclip/client.h"

namespace gradclip {

struct SharedGradientOptions {
  // An error, with the reason, instead of streaming.
  bool require_shared = false;

  // Users, beside root and the caller's own, who may be given the memory: the one as whom the
  // server runs. Whoever listens at the path that the server names gets all of it, and where the
  // server is on another host after all that may be anybody.
  std::vector<uid_t> server_uids;

  // How long a refusal stands before a call asks the server again.
  absl::Duration ask_again_after = absl::Seconds(10);

  // Called where a call is streamed and the one before was not, with the reason in one sentence.
  // Null: a line on standard error.
  std::function<void(const std::string& message)> warn;
};

class SharedCalls;

class SharedGradient {
 public:
  // Memory for these tensors (their data is ignored), zeros at first, each aligned to 64 bytes.
  // `client` has to outlive it. INVALID_ARGUMENT where a tensor can't be declared,
  // RESOURCE_EXHAUSTED where the system has not as much memory.
  static absl::StatusOr<SharedGradient> Make(Client& client, std::span<const Tensor> tensors,
                                             SharedGradientOptions options = {});

  // Tensors in a memfd of the caller's, such as a framework's allocator makes: offsets[i] is the
  // byte at which tensors[i] begins, a multiple of its element's size (their data is ignored). The
  // file has to be open for reading and writing, made with MFD_ALLOW_SEALING, and not on huge pages
  // of hugetlbfs, which servers refuse; it gets the seals F_SEAL_SHRINK, F_SEAL_GROW and
  // F_SEAL_SEAL where it has not got them, so its size is final. The descriptor stays the caller's
  // and may be closed. The server is given the whole file. INVALID_ARGUMENT says which tensor does
  // not fit, or overlaps another.
  static absl::StatusOr<SharedGradient> Adopt(Client& client, int memfd,
                                              std::span<const Tensor> tensors,
                                              std::span<const uint64_t> offsets,
                                              SharedGradientOptions options = {});

  ~SharedGradient();
  SharedGradient(SharedGradient&&) noexcept;
  SharedGradient& operator=(SharedGradient&&) noexcept;

  // With data that points into the memory, also after moves.
  std::span<const Tensor> tensors() const;

  // Answers and errors as Client::ComputeNorm. The server may only read the memory.
  absl::StatusOr<NormAnswer> ComputeNorm(const NormOptions& options = {},
                                         const CallOptions& call = {});

  // Answers and errors as Client::Clip. Who multiplies is up to ClipOptions::reply:
  //   kCoefficient        this library; the server may only read. On an error the memory is as it
  //                       was, and every failure can be tried again, and is.
  //   kGradient,          the server, in place; both are the same here. A call that failed after
  //   kGradientIfChanged  the memory was handed to it is not tried again: unless the server said
  //                       that it changed nothing, it is DATA_LOSS, and the memory may be clipped,
  //                       or in part. The call then ends as soon as the server has let go of the
  //                       memory; where it has not within 5 s, also beyond the timeout, the
  //                       message says so, and the server may go on writing.
  //   kFastest (default)  kCoefficient; with total_norm kGradientIfChanged.
  // A region is registered for reading until the first call in place by the server, which registers
  // it anew.
  absl::StatusOr<ClipAnswer> Clip(const ClipOptions& options, const CallOptions& call = {});

  // Whether the last call went through shared memory; where it did not, why. (false and OK before
  // the first, and where the gradient has no bytes.)
  bool shared() const;
  const absl::Status& refusal() const;

 private:
  explicit SharedGradient(std::unique_ptr<SharedCalls> calls);

  std::unique_ptr<SharedCalls> calls_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SHARED_GRADIENT_H_
