#include "gradclip/client.h"

#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/gradclip/answer.h"
#include "client/gradclip/backoff.h"
#include "client/gradclip/call.h"
#include "client/gradclip/connection.h"
#include "client/gradclip/overlap.h"
#include "client/gradclip/payload.h"
#include "client/gradclip/reply.h"
#include "client/gradclip/scale.h"
#include "client/gradclip/start_cache.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"

namespace gradclip {
namespace {

constexpr char kComputeNorm[] = "/gradclip.v1.GradClip/ComputeNorm";
constexpr char kClipGradNorm[] = "/gradclip.v1.GradClip/ClipGradNorm";
constexpr char kGetServerInfo[] = "/gradclip.v1.GradClip/GetServerInfo";
constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";

// gRPC's own limit is the 32-bit length before each message.
constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 30;

absl::Time DeadlineOf(const CallOptions& call) {
  return absl::Now() + call.timeout;
}

absl::Status CheckData(std::span<const Tensor> tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].data == nullptr && tensors[i].elements() > 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: data is null, and the shape declares %d elements",
                          DescribeTensor(tensors[i], i), tensors[i].elements()));
    }
  }
  return absl::OkStatus();
}

// Why a call failed after the gradient had begun to be replaced.
absl::Status DataLoss(const absl::Status& cause, uint64_t written_bytes, uint64_t total_bytes) {
  return absl::DataLossError(absl::StrFormat(
      "the call failed after %d of %d clipped bytes had replaced the gradient's: %s (%s: %s)",
      written_bytes, total_bytes,
      written_bytes < total_bytes ? "some tensors are clipped and some are not"
                                  : "every tensor may be clipped",
      absl::StatusCodeToString(cause.code()), cause.message()));
}

// Counts bytes that went out and came back for the caller's progress function.
class Progress {
 public:
  Progress(const CallOptions& call, uint64_t total_bytes)
      : report_(call.progress), total_bytes_(total_bytes) {}

  void Report(uint64_t done_bytes) const {
    if (report_ && total_bytes_ > 0) report_(done_bytes, total_bytes_);
  }

 private:
  const std::function<void(uint64_t, uint64_t)>& report_;
  const uint64_t total_bytes_;
};

}  // namespace

uint64_t Tensor::elements() const {
  uint64_t product = 1;
  for (int64_t extent : shape) product *= static_cast<uint64_t>(extent);
  return product;
}

uint64_t Tensor::bytes() const {
  return elements() * ElementSize(dtype);
}

class Client::Impl {
 public:
  Impl(std::string address, ClientOptions options)
      : connections_(std::move(address)), options_(options), backend_(MakeBackend("auto")) {}

  absl::StatusOr<NormAnswer> ComputeNorm(std::span<const Tensor> tensors,
                                         const NormOptions& options, const CallOptions& call);
  absl::StatusOr<ClipAnswer> Clip(std::span<const Tensor> tensors, const ClipOptions& options,
                                  const CallOptions& call);
  absl::StatusOr<ServerInfo> GetServerInfo(const CallOptions& call);
  absl::Status CheckHealth(const CallOptions& call);

 private:
  // One try over one connection. `changed`: the caller's memory is no longer what it was.
  using Attempt = absl::FunctionRef<absl::Status(Connection& connection, bool& changed)>;

  // Runs `attempt`, again with back-off where it ended with UNAVAILABLE and changed nothing, at
  // most `retries` times. Errors name the server.
  absl::Status Try(absl::Time deadline, int retries, Attempt attempt);

  absl::Status TryOnce(absl::Time deadline, Attempt attempt, bool& changed);
  absl::Status Check(std::span<const Tensor> tensors) const;

  ConnectionPool connections_;
  const ClientOptions options_;
  const absl::StatusOr<std::unique_ptr<Backend>> backend_;
  StartCache starts_;
};

absl::Status Client::Impl::TryOnce(absl::Time deadline, Attempt attempt, bool& changed) {
  // gRPC would still send the call, and might even bring an answer.
  if (absl::Now() >= deadline) return absl::DeadlineExceededError("the call's timeout is over");
  absl::StatusOr<std::unique_ptr<Connection>> connection = connections_.Take(deadline);
  if (!connection.ok()) return connection.status();
  const absl::Status status = attempt(**connection, changed);
  // Of a call that failed, something may still be on its way.
  if (status.ok()) connections_.GiveBack(*std::move(connection));
  // A server that is going away, or one that we have lost: the next call looks for it anew.
  if (absl::IsUnavailable(status)) connections_.Clear();
  return status;
}

absl::Status Client::Impl::Try(absl::Time deadline, int retries, Attempt attempt) {
  absl::BitGen random;
  for (int tries = 1;; ++tries) {
    bool changed = false;
    const absl::Status status = TryOnce(deadline, attempt, changed);
    if (status.ok()) return status;
    const absl::Duration wait = Backoff(tries, options_.initial_backoff, options_.max_backoff,
                                        absl::Uniform(random, 0.0, 1.0));
    if (!absl::IsUnavailable(status) || changed || tries > retries ||
        absl::Now() + wait >= deadline) {
      return absl::Status(
          status.code(), absl::StrCat("server ", connections_.address(), ": ", status.message(),
                                      tries > 1 ? absl::StrCat(" (tried ", tries, " times)") : ""));
    }
    absl::SleepFor(wait);
  }
}

absl::Status Client::Impl::Check(std::span<const Tensor> tensors) const {
  if (options_.message_bytes == 0 || options_.message_bytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("message_bytes is %d; it must be 1 to %d",
                                                      options_.message_bytes, kMaxMessageBytes));
  }
  return CheckData(tensors);
}

absl::StatusOr<NormAnswer> Client::Impl::ComputeNorm(std::span<const Tensor> tensors,
                                                     const NormOptions& options,
                                                     const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  const auto declaration = starts_.Get(tensors);
  if (!declaration.ok()) return declaration.status();
  if (absl::Status checked = Check(tensors); !checked.ok()) return checked;

  const uint64_t bytes = (*declaration)->gradient_bytes();
  const grpc::Slice parts[] = {(*declaration)->serialised(), SerialiseStartOptions(options)};
  const grpc::ByteBuffer start = StartMessage(parts);
  const Progress progress(call, bytes);
  v1::ComputeNormResponse response;
  const absl::Status status =
      Try(deadline, options_.max_retries, [&](Connection& connection, bool&) {
        Payload payload(tensors, bytes, options_.message_bytes);
        bool answered = false;
        const auto on_sent = [&](uint64_t sent) { progress.Report(sent); };
        const auto on_reply = [&](grpc::ByteBuffer& message, uint64_t) {
          if (std::exchange(answered, true)) {
            return absl::InternalError("the server sent a second answer");
          }
          return Parse(message, response);
        };
        const absl::Status ended =
            RunStream(connection, kComputeNorm, start, payload, deadline, {on_sent, on_reply});
        if (ended.ok() && !answered) {
          return absl::InternalError("the server ended the call without an answer");
        }
        return ended;
      });
  if (!status.ok()) return status;
  return AnswerOf(response.norm());
}

absl::StatusOr<ClipAnswer> Client::Impl::Clip(std::span<const Tensor> tensors,
                                              const ClipOptions& options, const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  if (!(options.max_norm >= 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "max_norm is %g; it must be set to a value >= 0 (+infinity measures and never clips)",
        options.max_norm));
  }
  const auto declaration = starts_.Get(tensors);
  if (!declaration.ok()) return declaration.status();
  if (absl::Status checked = Check(tensors); !checked.ok()) return checked;
  if (absl::Status apart = CheckOverlap(tensors); !apart.ok()) return apart;
  const bool scales_itself = options.reply == ReplyMode::kCoefficient;
  if (scales_itself && !backend_.ok()) return backend_.status();

  const uint64_t bytes = (*declaration)->gradient_bytes();
  const grpc::Slice parts[] = {(*declaration)->serialised(), SerialiseStartOptions(options)};
  const grpc::ByteBuffer start = StartMessage(parts);
  const uint64_t total_bytes = scales_itself ? bytes : 2 * bytes;
  const Progress progress(call, total_bytes);
  v1::ClipResult result;
  const absl::Status status =
      Try(deadline, options_.max_retries, [&](Connection& connection, bool& changed) {
        Payload payload(tensors, bytes, options_.message_bytes);
        ClipReply reply(tensors, bytes, options.reply);
        uint64_t sent_bytes = 0;
        const auto on_sent = [&](uint64_t sent) {
          sent_bytes = sent;
          progress.Report(sent_bytes + reply.written_bytes());
        };
        const auto on_reply = [&](grpc::ByteBuffer& message, uint64_t cut_bytes) {
          const uint64_t before = reply.written_bytes();
          const absl::Status taken = reply.Take(message, cut_bytes);
          if (reply.written_bytes() > before) {
            progress.Report(sent_bytes + reply.written_bytes());
          }
          return taken;
        };
        absl::Status ended =
            RunStream(connection, kClipGradNorm, start, payload, deadline, {on_sent, on_reply});
        if (ended.ok()) ended = reply.CheckComplete();
        changed = reply.written_bytes() > 0;
        if (ended.ok()) {
          result = reply.result();
        } else if (changed) {
          ended = DataLoss(ended, reply.written_bytes(), bytes);
        }
        return ended;
      });
  if (!status.ok()) return status;
  if (scales_itself) {
    ApplyCoefficient(**backend_, tensors, result.coefficient(), result.skipped());
  } else if (!result.gradient_follows()) {
    progress.Report(total_bytes);
  }
  return AnswerOf(result);
}

absl::StatusOr<ServerInfo> Client::Impl::GetServerInfo(const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  v1::GetServerInfoResponse response;
  const absl::Status status =
      Try(deadline, options_.max_retries, [&](Connection& connection, bool&) {
        const grpc::Slice nothing;
        grpc::ByteBuffer answer;
        const absl::Status ended =
            RunUnary(connection, kGetServerInfo, grpc::ByteBuffer(&nothing, 1), deadline, answer);
        return ended.ok() ? Parse(answer, response) : ended;
      });
  if (!status.ok()) return status;
  return AnswerOf(response);
}

absl::Status Client::Impl::CheckHealth(const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  // Not tried again: a probe asks how the server is now.
  return Try(deadline, /*retries=*/0, [&](Connection& connection, bool&) {
    const grpc::Slice every_service;  // HealthCheckRequest with the empty name
    grpc::ByteBuffer answer;
    const absl::Status ended =
        RunUnary(connection, kHealthCheck, grpc::ByteBuffer(&every_service, 1), deadline, answer);
    return ended.ok() ? HealthOf(answer) : ended;
  });
}

Client::Client(std::string address, ClientOptions options)
    : impl_(std::make_unique<Impl>(std::move(address), options)) {}

Client::~Client() = default;

absl::StatusOr<NormAnswer> Client::ComputeNorm(std::span<const Tensor> tensors,
                                               const NormOptions& options,
                                               const CallOptions& call) {
  return impl_->ComputeNorm(tensors, options, call);
}

absl::StatusOr<ClipAnswer> Client::Clip(std::span<const Tensor> tensors, const ClipOptions& options,
                                        const CallOptions& call) {
  return impl_->Clip(tensors, options, call);
}

absl::StatusOr<ServerInfo> Client::GetServerInfo(const CallOptions& call) {
  return impl_->GetServerInfo(call);
}

absl::Status Client::CheckHealth(const CallOptions& call) {
  return impl_->CheckHealth(call);
}

}  // namespace gradclip
