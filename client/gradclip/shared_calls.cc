#include "client/gradclip/shared_calls.h"

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/gradclip/answer.h"
#include "client/gradclip/call.h"
#include "client/gradclip/clip_options.h"
#include "client/gradclip/payload.h"
#include "client/gradclip/reply.h"
#include "client/gradclip/scale.h"
#include "client/gradclip/shared_layout.h"

namespace gradclip {
namespace {

// How long a server may take to let go of memory in which it clipped when the call failed: it does
// so between two pieces of work.
constexpr absl::Duration kReleaseTimeout = absl::Seconds(5);

// Whether a call in place that failed has left the memory as it was. These are codes by which a
// server refuses before its first write, and which no transport makes of a lost connection, as it
// does with UNAVAILABLE. (Where the norm was given, a server writes as ranges come; the result goes
// before.)
bool ChangedNothing(const absl::Status& status, const ClipReply& reply,
                    const OutgoingRanges& ranges) {
  if (ranges.sent() == 0) return true;
  switch (status.code()) {
    case absl::StatusCode::kNotFound:  // of the region; with one message, before all else
      return !reply.has_result() || ranges.sent() == 1;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kAborted:        // of the group's step
    case absl::StatusCode::kAlreadyExists:  // another contribution of this rank
      return !reply.has_result();
    default:
      return false;
  }
}

absl::Status DataLoss(const absl::Status& cause, bool released) {
  return absl::DataLossError(absl::StrCat(
      "the call failed after the server was given the memory to clip in place: it may be clipped, "
      "or in part",
      released ? "" : ", and the server, which has not let go of it, may still write to it", " (",
      absl::StatusCodeToString(cause.code()), ": ", cause.message(), ")"));
}

// Null where it is not in this process, or there is none.
std::byte* DataOf(const SharedCalls::Memory& memory) {
  const auto* const mapped = std::get_if<SharedMemory>(&memory);
  return mapped == nullptr ? nullptr : mapped->data();
}

MemoryLink::Memory HandedOver(const SharedCalls::Memory& memory) {
  const auto* const mapped = std::get_if<SharedMemory>(&memory);
  if (mapped == nullptr) return std::get<CudaMemory>(memory);
  return MemoryLink::Memfd{mapped->memfd(), mapped->size()};
}

std::vector<Tensor> PlaceTensors(std::span<const Tensor> tensors, std::span<const uint64_t> offsets,
                                 std::byte* memory) {
  std::vector<Tensor> placed(tensors.begin(), tensors.end());
  for (size_t i = 0; i < placed.size(); ++i) {
    placed[i].data = memory == nullptr ? nullptr : memory + offsets[i];
  }
  return placed;
}

}  // namespace

SharedCalls::SharedCalls(Client& client, ClientCore& core,
                         std::shared_ptr<const Declaration> declaration, Memory memory,
                         std::span<const Tensor> tensors, std::span<const uint64_t> offsets,
                         SharedGradientOptions options)
    : client_(client),
      core_(core),
      declaration_(std::move(declaration)),
      memory_(std::move(memory)),
      tensors_(PlaceTensors(tensors, offsets, DataOf(memory_))),
      runs_(mapped() ? Runs(tensors_) : std::vector<Tensor>()),
      options_(std::move(options)),
      region_(HandedOver(memory_), RangesOf(tensors_, offsets), options_.server_uids,
              options_.ask_again_after) {}

grpc::ByteBuffer SharedCalls::Start(const grpc::Slice& options, const grpc::Slice& group) const {
  const grpc::Slice parts[] = {declaration_->serialised(), options, group};
  return StartMessage(parts);
}

absl::Status SharedCalls::TryShared(Connection& connection, absl::Time deadline, bool writable,
                                    const grpc::Slice& group, Run run, bool& changed) {
  while (true) {
    const absl::StatusOr<bool> registered = region_.Ensure(connection, writable, deadline);
    if (!registered.ok()) return registered.status();
    if (!*registered) return absl::OkStatus();
    OutgoingRanges ranges(region_.messages());
    const absl::Status ended = run(connection, ranges, group, changed);
    shared_ = ended.ok();
    if (changed) return DataLoss(ended, region_.Release(kReleaseTimeout));
    // Perhaps of a region that has lost pages: it stays refused.
    if (absl::IsFailedPrecondition(ended)) region_.Forget();
    if (!absl::IsNotFound(ended)) return ended;
    if (!region_.Forgotten()) return absl::OkStatus();
  }
}

absl::Status SharedCalls::Share(absl::Time deadline, const CallOptions& call, bool writable,
                                GroupTries& tries, Run run) {
  shared_ = false;
  refusal_ = absl::OkStatus();
  const uint64_t bytes = declaration_->gradient_bytes();
  if (bytes == 0) return absl::OkStatus();  // nothing to share, nor to stream
  if (!region_.Refused()) {
    const absl::Status status =
        tries.Try(deadline, [&](Connection& connection, const grpc::Slice& group, bool& changed) {
          if (call.progress) call.progress(0, bytes);
          return TryShared(connection, deadline, writable, group, run, changed);
        });
    if (!status.ok()) return status;
  }
  return shared_ ? absl::OkStatus() : FallBack();
}

absl::Status SharedCalls::FallBack() {
  refusal_ = region_.refusal();
  const std::string why =
      absl::StrCat("server ", region_.refused_by(), " can't share memory: ", refusal_.message());
  if (options_.require_shared) return absl::Status(refusal_.code(), why);
  if (!std::exchange(warned_, true)) {
    const std::string message = absl::StrCat("the gradient is streamed: ", why);
    if (options_.warn) {
      options_.warn(message);
    } else {
      std::fprintf(stderr, "gradclip: %s\n", message.c_str());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<NormAnswer> SharedCalls::ComputeNorm(const NormOptions& options,
                                                    const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  const grpc::Slice start_options = SerialiseStartOptions(options);
  NormAnswer answer;
  GroupTries tries(core_, call);
  const absl::Status status =
      Share(deadline, call, /*writable=*/false, tries,
            [&](Connection& connection, OutgoingRanges& ranges, const grpc::Slice& group, bool&) {
              const grpc::ByteBuffer start = Start(start_options, group);
              NormReply reply;
              const auto on_sent = [](uint64_t) {};
              const auto on_reply = [&](grpc::ByteBuffer& message, uint64_t) {
                return reply.Take(message);
              };
              absl::Status ended = RunStream(connection, kComputeNorm, start, ranges,
                                             {deadline, call.traceparent}, {on_sent, on_reply});
              if (ended.ok()) ended = reply.CheckComplete();
              if (ended.ok()) answer = AnswerOf(reply.result());
              return ended;
            });
  if (!status.ok()) return status;
  if (!shared_) {
    CallOptions rest = call;
    rest.timeout = deadline - absl::Now();
    rest.group = tries.group();
    return client_.ComputeNorm(tensors_, options, rest);
  }
  warned_ = false;
  answer.attempt = tries.attempt();
  if (call.progress) call.progress(declaration_->gradient_bytes(), declaration_->gradient_bytes());
  return answer;
}

absl::StatusOr<ClipAnswer> SharedCalls::Clip(const ClipOptions& options, const CallOptions& call) {
  const absl::Time deadline = DeadlineOf(call);
  if (absl::Status checked = CheckOptions(options, call); !checked.ok()) return checked;
  const ClipOptions chosen =
      WithReplyChosen(options, mapped() ? ReplyMode::kCoefficient : ReplyMode::kGradientIfChanged);
  const bool in_place = chosen.reply != ReplyMode::kCoefficient;
  const bool scales_itself = !in_place && mapped();
  if (scales_itself && !core_.backend().ok()) return core_.backend().status();
  const grpc::Slice start_options = SerialiseStartOptions(chosen);
  ClipAnswer answer;
  GroupTries tries(core_, call);
  const absl::Status status = Share(
      deadline, call, in_place, tries,
      [&](Connection& connection, OutgoingRanges& ranges, const grpc::Slice& group, bool& changed) {
        const grpc::ByteBuffer start = Start(start_options, group);
        ClipReply reply(/*tensors=*/{}, /*total_bytes=*/0, chosen.reply);
        const auto on_sent = [](uint64_t) {};
        const auto on_reply = [&](grpc::ByteBuffer& message, uint64_t) {
          return reply.Take(message, /*sent_bytes=*/0);
        };
        absl::Status ended = RunStream(connection, kClipGradNorm, start, ranges,
                                       {deadline, call.traceparent}, {on_sent, on_reply});
        if (ended.ok()) ended = reply.CheckComplete();
        if (ended.ok()) answer = AnswerOf(reply.result());
        changed = !ended.ok() && in_place && !ChangedNothing(ended, reply, ranges);
        return ended;
      });
  if (!status.ok()) return status;
  if (!shared_) {
    CallOptions rest = call;
    rest.timeout = deadline - absl::Now();
    rest.group = tries.group();
    return client_.Clip(tensors_, options, rest);
  }
  warned_ = false;
  answer.norm.attempt = tries.attempt();
  if (scales_itself) {
    ApplyCoefficient(**core_.backend(), runs_, answer.coefficient, answer.skipped);
  }
  if (call.progress) call.progress(declaration_->gradient_bytes(), declaration_->gradient_bytes());
  return answer;
}

}  // namespace gradclip
