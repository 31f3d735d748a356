#include "gradclip/client.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "client/gradclip/answer.h"
#include "client/gradclip/call.h"
#include "client/gradclip/client_core.h"
#include "client/gradclip/clip_options.h"
#include "client/gradclip/group_tries.h"
#include "client/gradclip/overlap.h"
#include "client/gradclip/payload.h"
#include "client/gradclip/reply.h"
#include "client/gradclip/scale.h"

namespace gradclip {
namespace {

// gRPC's own limit is the 32-bit length before each message.
constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 30;

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

absl::Status Check(const ClientOptions& options, std::span<const Tensor> tensors) {
  if (options.message_bytes == 0 || options.message_bytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("message_bytes is %d; it must be 1 to %d",
                                                      options.message_bytes, kMaxMessageBytes));
  }
  return CheckData(tensors);
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

Client::Client(std::string address, ClientOptions options)
    : core_(std::make_unique<ClientCore>(std::move(address), std::move(options))) {}

Client::~Client() = default;

absl::StatusOr<NormAnswer> Client::ComputeNorm(std::span<const Tensor> tensors,
                                               const NormOptions& options,
                                               const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  const auto declaration = core_->starts().Get(tensors);
  if (!declaration.ok()) return declaration.status();
  const ClientOptions& client = core_->options();
  if (absl::Status checked = Check(client, tensors); !checked.ok()) return checked;

  const uint64_t bytes = (*declaration)->gradient_bytes();
  const grpc::Slice start_options = SerialiseStartOptions(options);
  const Progress progress(call, bytes);
  NormAnswer answer;
  GroupTries tries(*core_, call);
  const absl::Status status = tries.Try(deadline, [&](Connection& connection,
                                                      const grpc::Slice& group, bool&) {
    const grpc::Slice parts[] = {(*declaration)->serialised(), start_options, group};
    const grpc::ByteBuffer start = StartMessage(parts);
    Payload payload(tensors, bytes, client.message_bytes);
    NormReply reply;
    const auto on_sent = [&](uint64_t sent) { progress.Report(sent); };
    const auto on_reply = [&](grpc::ByteBuffer& message, uint64_t) { return reply.Take(message); };
    absl::Status ended = RunStream(connection, kComputeNorm, start, payload,
                                   {deadline, call.traceparent}, {on_sent, on_reply});
    if (ended.ok()) ended = reply.CheckComplete();
    if (ended.ok()) answer = AnswerOf(reply.result());
    return ended;
  });
  if (!status.ok()) return status;
  answer.attempt = tries.attempt();
  return answer;
}

absl::StatusOr<ClipAnswer> Client::Clip(std::span<const Tensor> tensors, const ClipOptions& options,
                                        const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  if (absl::Status checked = CheckOptions(options, call); !checked.ok()) return checked;
  const ClipOptions chosen = WithReplyChosen(options, ReplyMode::kCoefficient);
  const auto declaration = core_->starts().Get(tensors);
  if (!declaration.ok()) return declaration.status();
  const ClientOptions& client = core_->options();
  if (absl::Status checked = Check(client, tensors); !checked.ok()) return checked;
  if (absl::Status apart = CheckOverlap(tensors); !apart.ok()) return apart;
  const bool scales_itself = chosen.reply == ReplyMode::kCoefficient;
  if (scales_itself && !core_->backend().ok()) return core_->backend().status();

  const uint64_t bytes = (*declaration)->gradient_bytes();
  const grpc::Slice start_options = SerialiseStartOptions(chosen);
  const uint64_t total_bytes = scales_itself ? bytes : 2 * bytes;
  const Progress progress(call, total_bytes);
  v1::ClipResult result;
  GroupTries tries(*core_, call);
  const absl::Status status =
      tries.Try(deadline, [&](Connection& connection, const grpc::Slice& group, bool& changed) {
        const grpc::Slice parts[] = {(*declaration)->serialised(), start_options, group};
        const grpc::ByteBuffer start = StartMessage(parts);
        Payload payload(tensors, bytes, client.message_bytes);
        ClipReply reply(tensors, bytes, chosen.reply);
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
        absl::Status ended = RunStream(connection, kClipGradNorm, start, payload,
                                       {deadline, call.traceparent}, {on_sent, on_reply});
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
    ApplyCoefficient(**core_->backend(), tensors, result.coefficient(), result.skipped());
  } else if (!result.gradient_follows()) {
    progress.Report(total_bytes);
  }
  ClipAnswer answer = AnswerOf(result);
  answer.norm.attempt = tries.attempt();
  return answer;
}

absl::StatusOr<ServerInfo> Client::GetServerInfo(const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  ServerInfo info;
  const auto ask = [&](Connection& connection, bool&) -> absl::Status {
    absl::StatusOr<ServerInfo> answer = AskServerInfo(connection, {deadline, call.traceparent});
    if (!answer.ok()) return answer.status();
    info = *std::move(answer);
    return absl::OkStatus();
  };
  const absl::Status status = core_->Try(deadline, core_->options().max_retries, ask);
  if (!status.ok()) return status;
  return info;
}

absl::Status Client::CheckHealth(const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  // Not tried again: a probe asks how the server is now.
  return core_->Try(deadline, /*retries=*/0, [&](Connection& connection, bool&) {
    const grpc::Slice every_service;  // HealthCheckRequest with the empty name
    grpc::ByteBuffer answer;
    const absl::Status ended =
        RunUnary(connection, kHealthCheck, grpc::ByteBuffer(&every_service, 1),
                 {deadline, call.traceparent}, answer);
    return ended.ok() ? HealthOf(answer) : ended;
  });
}

}  // namespace gradclip
