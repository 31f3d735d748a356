// A client of a GradClip server: the norm of a gradient, and clipping it in place.
//
//   gradclip::Client client("127.0.0.1:50051");
//   std::vector<gradclip::Tensor> gradient = {
//       {"weight", gradclip::DType::kFloat32, {768, 768}, weight.data()}};
//   gradclip::ClipOptions options;
//   options.max_norm = 1.0;
//   absl::StatusOr<gradclip::ClipAnswer> answer = client.Clip(gradient, options);
//
// Client is thread-safe; calls may run at once. Everything else is a value type. A gradient on the
// server's own host need not move at all: see SharedGradient in shared_gradient.h, and CudaGradient
// in cuda_gradient.h for memory of a GPU.
#ifndef GRADCLIP_CLIENT_H_
#define GRADCLIP_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradclip/dtype.h"

namespace gradclip {

// One tensor of a gradient in the caller's memory: row-major elements, little-endian, no padding.
struct Tensor {
  std::string name;  // UTF-8; may be empty: errors then say "#3" for the fourth tensor
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // empty: one element
  void* data = nullptr;        // not null unless there are no elements; only Clip() writes to it
  bool replica = false;        // clipped with the rest, left out of norm, counts and policies

  uint64_t elements() const;  // product of the shape
  uint64_t bytes() const;
};

struct NormOptions {
  double norm_type = 2;     // p of the p-norm: > 0, or infinity
  bool per_tensor = false;  // also answer with a TensorNorm per tensor
  double pre_scale = 1;     // every element is multiplied by it first; finite, > 0
};

enum class NonfinitePolicy { kPropagate, kError, kSkip, kZero };

// How the clipped gradient gets into the caller's memory. All give the same bits.
enum class ReplyMode {
  // The client multiplies by the coefficient itself: half the traffic, and every failure leaves the
  // memory as it was.
  kCoefficient,
  kGradient,           // the server sends all bytes back
  kGradientIfChanged,  // the server sends them back where clipping changes something
  // kCoefficient, or where total_norm is given kGradientIfChanged. (SharedGradient has a choice of
  // its own.)
  kFastest,
};

struct ClipOptions {
  double max_norm = -1;  // required: >= 0; +infinity measures and never clips
  double epsilon = 1e-6;
  NonfinitePolicy nonfinite = NonfinitePolicy::kPropagate;
  ReplyMode reply = ReplyMode::kFastest;
  NormOptions norm;
  // The total norm where it is known already: nothing is measured. Not with kCoefficient (a caller
  // who knows the norm and scales itself needs no server).
  std::optional<double> total_norm;
};

struct TensorNorm {
  double norm = 0;
  uint64_t nonfinite_elements = 0;
  uint64_t zero_elements = 0;
};

struct NormAnswer {
  double total_norm = 0;  // before clipping, pre_scale included
  uint64_t nonfinite_elements = 0;
  std::string first_nonfinite;  // "name[flat index]", empty where none
  std::vector<TensorNorm> tensors;
  std::string backend;  // e.g. "cpu/avx2"
  uint64_t group_nonfinite_elements = 0;
  uint32_t attempt = 0;  // of the group's step, that was answered
};

struct ClipAnswer {
  NormAnswer norm;
  double coefficient = 1;
  bool clipped = false;
  bool skipped = false;
  bool gradient_follows = false;  // clipped bytes came back; of shared memory never
};

struct BackendInfo {
  std::string name;
  bool usable = false;
  std::string detail;
};

struct ServerInfo {
  std::string version;
  std::vector<BackendInfo> backends;  // the one in use first
  uint64_t max_message_bytes = 0;
  uint64_t max_call_bytes = 0;
  uint64_t memory_budget_bytes = 0;
  std::string memory_socket;
  uint64_t max_tensors = 0;
  std::string instance;
};

// One rank's part in a step of a job whose gradient is spread over several callers: all ranks get
// one norm, coefficient and verdict. Each sends its own tensors; those that another rank counts too
// are `replica` at all but one. The RPC, world_size, NormOptions and ClipOptions must be the same
// at all ranks, but for per_tensor and reply.
struct Group {
  std::string job;          // 1 to 256 bytes of UTF-8
  uint64_t generation = 0;  // raised when the job restarts; older ones are refused
  uint64_t step = 0;
  uint32_t rank = 0;  // 0 .. world_size - 1
  uint32_t world_size = 1;
  // From the step's first arrival; the smallest that a rank gives counts, or the server's. > 0.
  absl::Duration timeout = absl::InfiniteDuration();
  // Raised by all ranks to try again a step that was aborted (ABORTED).
  uint32_t attempt = 0;
  std::string job_secret;  // whoever opens the job fixes it
  // With more than one, a call whose attempt ends with ABORTED, or is over as other ranks have gone
  // on already, goes on with the next by itself, at most so many in all, where nothing in the
  // caller's memory has been changed. All ranks should give the same.
  int max_attempts = 1;
};

struct CallOptions {
  // INVALID_ARGUMENT for fields outside their ranges, and together with total_norm. Errors of a
  // group: ABORTED, all ranks may go on with the next attempt; DEADLINE_EXCEEDED, the same, as
  // ranks are missing, which the message names; FAILED_PRECONDITION, ranks disagree, or this one is
  // late; ALREADY_EXISTS, another gradient of this rank was taken. After UNAVAILABLE or a timeout
  // of one's own the outcome is unknown: the same call again learns it. (A call is tried again
  // within its attempt as max_retries says. Where the server was restarted meanwhile, which may
  // have forgotten the step, it ends with ABORTED.)
  std::optional<Group> group = {};
  // Over all tries. At its end the call returns DEADLINE_EXCEEDED, within about 0.1 s even where
  // the server has stopped reading. (The system's look-up of a host name is not cut short.)
  absl::Duration timeout = absl::InfiniteDuration();
  // The trace that the call belongs to, which the server's log then names: W3C Trace Context's
  // "00-TRACE_ID-SPAN_ID-FLAGS", with the caller's span. INVALID_ARGUMENT where it is not. Empty:
  // none is sent.
  std::string traceparent = {};
  // Called on the calling thread as bytes go out and come back; both count up to bytes_total, which
  // is the gradient's bytes, or twice them where they may come back. A new try starts again at 0.
  // An exception that it throws ends the call and passes through it; the memory is then as after an
  // error (clipped in part, perhaps, where bytes come back), and nothing of it is held.
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress;
};

// How the client proves who the server is, and itself, over TLS 1.2 or newer. The files are PEM and
// are read for each new connection, so that renewed ones serve from then on; INVALID_ARGUMENT, with
// the reason, where they can't be used.
struct TlsOptions {
  // Of the authorities that may vouch for the server. Empty: the system's.
  std::string ca_file = {};
  // The client's own certificate (with what leads from it to its authority) and its key, without a
  // passphrase, for servers that ask for one. Both or none.
  std::string cert_file = {};
  std::string key_file = {};
  // The host name or IP address that the server's certificate must have, as a subject alternative
  // name, and that the server is told (SNI, :authority). Empty: the host in the client's address.
  std::string server_name = {};
};

struct ClientOptions {
  // Of gradient in one message. A server refuses messages over its --max-message-bytes
  // (RESOURCE_EXHAUSTED; ServerInfo says how much), by default 8 MiB.
  uint64_t message_bytes = uint64_t{1} << 20;
  // How often a call that ended with UNAVAILABLE is tried again, with exponential back-off from
  // initial_backoff (jittered), where nothing in the caller's memory has been changed.
  int max_retries = 4;
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(5);
  // TLS, over TCP; a unix socket, which does not leave the host, is plaintext either way. Costs a
  // thread and 256 KiB for each connection, and about a core for 1 GB/s. Null: plaintext.
  std::optional<TlsOptions> tls = {};
  // A file with the bearer token that a server with --auth-token-file wants; empty: none. Read anew
  // for each call. Only sent over TLS and to a server on this host: INVALID_ARGUMENT otherwise, as
  // whoever is on the network between could use it.
  std::string token_file = {};
};

class ClientCore;

class Client {
 public:
  // address: "host:port" or "unix:path" (gRPC's name syntax), or several with commas between, of
  // servers that may stand in for each other: a new connection tries the address that was reached
  // last, then the others in order, and goes on to the next where nobody answers, after a second
  // UNAVAILABLE in a call (the first, without retries), and after a call that its own timeout
  // ended. Errors name the servers. (Ranks of one group may be at different servers only where
  // those share a store. Where they don't, all give the same order: ABORTED says that another
  // server was met amid a step, as after a restart, and after a step that was aborted or timed out
  // ranks meet at the first address that answers. A path with a comma can't be given.) Connects
  // with the first call. Each running call has a connection of its own, so that none can harm
  // another; up to eight wait for later calls, which connect anew where those were lost.
  explicit Client(std::string address, ClientOptions options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // The norm of all tensors together. Errors: the server's status, its message preceded by the
  // server's address; UNAVAILABLE where it can't be reached. With TLS, FAILED_PRECONDITION where
  // the server's certificate is not trusted, and UNAUTHENTICATED where the server wants one of the
  // client or refuses it; neither is tried again.
  absl::StatusOr<NormAnswer> ComputeNorm(std::span<const Tensor> tensors,
                                         const NormOptions& options = {},
                                         const CallOptions& call = {});

  // Clips the tensors in place by their total norm. INVALID_ARGUMENT where two overlap in memory:
  // weights that are tied are listed once. REQUIRES: nobody else uses the memory until the call
  // returns; then nothing of it is held. On an error the memory is as it was, but for DATA_LOSS,
  // which says that the connection was lost while clipped bytes came back (kGradient and
  // kGradientIfChanged only): some of the memory is clipped and some is not.
  absl::StatusOr<ClipAnswer> Clip(std::span<const Tensor> tensors, const ClipOptions& options,
                                  const CallOptions& call = {});

  absl::StatusOr<ServerInfo> GetServerInfo(const CallOptions& call = {});

  // OK while the server says SERVING (grpc.health.v1), UNAVAILABLE with the reason otherwise. Asks
  // once, whatever max_retries is.
  absl::Status CheckHealth(const CallOptions& call = {});

 private:
  friend class CudaGradient;
  friend class SharedGradient;
  const std::unique_ptr<ClientCore> core_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_H_
