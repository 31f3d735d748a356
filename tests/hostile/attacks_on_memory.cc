// Messages and replies: large, unfinished, in crumbs, unread, and small ones that declare much.
#include <algorithm>
#include <memory>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gradclip/v1/gradclip.pb.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

// gRPC takes four times --max-message-bytes.
constexpr uint32_t kLargestMessage = uint32_t{32} << 20;

absl::StatusOr<uint32_t> BeginCall(Attacker& attacker, Http2Connection& connection,
                                   std::string_view path) {
  const uint32_t stream = connection.NextStream();
  const absl::Status sent = connection.Send(
      Frame(FrameType::kHeaders, kEndHeaders, stream, RequestHeaders(path)), attacker.deadline());
  if (!sent.ok()) return sent;
  return stream;
}

// One call of `path` that sends `bytes` and, where `ends`, half-closes.
absl::Status SendCall(Attacker& attacker, Http2Connection& connection, std::string_view path,
                      std::string_view bytes, bool ends, size_t frame_bytes = kMaxFrameBytes) {
  const absl::StatusOr<uint32_t> stream = BeginCall(attacker, connection, path);
  if (!stream.ok()) return stream.status();
  const absl::StatusOr<size_t> sent =
      connection.SendData(*stream, bytes, ends, attacker.deadline(), frame_bytes);
  if (!sent.ok()) return sent.status();
  if (*sent < bytes.size()) {
    return absl::DeadlineExceededError(
        absl::StrCat("the server took ", *sent, " of ", bytes.size(), " bytes"));
  }
  return absl::OkStatus();
}

// Calls of `path`, one after another on one connection, until one fails.
absl::Status SendCalls(Attacker& attacker, int calls, std::string_view path, std::string_view bytes,
                       bool ends) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  for (int i = 0; i < calls && attacker.HasTime(); ++i) {
    const absl::Status sent = SendCall(attacker, **connection, path, bytes, ends);
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

v1::ClipGradNormStart Clip(v1::ReplyMode reply) {
  v1::ClipGradNormStart start;
  start.set_max_norm(1);
  start.set_reply(reply);
  return start;
}

void AddTensor(v1::ClipGradNormStart& start, v1::DType dtype, int64_t elements) {
  v1::TensorSpec& tensor = *start.add_tensors();
  tensor.set_dtype(dtype);
  tensor.add_shape(elements);
}

std::string StartMessage(v1::ClipGradNormStart start) {
  v1::ClipGradNormRequest request;
  *request.mutable_start() = std::move(start);
  return Message(request.SerializeAsString());
}

std::string DataMessage(std::string_view data) {
  v1::ClipGradNormRequest request;
  request.set_data(std::string(data));
  return Message(request.SerializeAsString());
}

// `bytes` of gradient in messages of 1 MiB, none of it special.
std::string DataMessages(size_t bytes) {
  std::string data(size_t{1} << 20, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(0x20 + i % 0x17);
  std::string messages;
  for (size_t sent = 0; sent < bytes; sent += data.size()) {
    messages += DataMessage(std::string_view(data).substr(0, bytes - sent));
  }
  return messages;
}

std::string Unfinished(uint32_t bytes) {
  return MessagePrefix(bytes) + std::string(bytes - 1, 'm');
}

absl::Status UnfinishedInfo(Attacker& attacker) {
  return SendCalls(attacker, 8, kGetServerInfo, Unfinished(kLargestMessage), false);
}

absl::Status UnfinishedHealth(Attacker& attacker) {
  return SendCalls(attacker, 8, kHealthCheck, Unfinished(kLargestMessage), false);
}

absl::Status UnfinishedStreamed(Attacker& attacker) {
  return SendCalls(attacker, 8, kClipGradNorm, Unfinished(kLargestMessage), false);
}

absl::Status UnfinishedOverConnections(Attacker& attacker) {
  for (int i = 0; i < 64; ++i) {
    const absl::Status sent =
        SendCalls(attacker, 1, kGetServerInfo, Unfinished(kLargestMessage / 8), false);
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

absl::Status Crumbs(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  const std::string message = MessagePrefix(kLargestMessage) + std::string(1'000'000, 'm');
  return SendCall(attacker, **connection, kClipGradNorm, message, false, /*frame_bytes=*/1);
}

// A second message that nobody asks for yet waits behind the first.
absl::Status TinyMessages(Attacker& attacker) {
  v1::ClipGradNormStart start = Clip(v1::REPLY_COEFFICIENT);
  AddTensor(start, v1::DTYPE_FLOAT32, 1 << 20);
  std::string messages = StartMessage(start);
  const std::string byte = DataMessage("x");
  for (int i = 0; i < 1'000'000; ++i) messages += byte;
  return SendCalls(attacker, 1, kClipGradNorm, messages, false);
}

absl::Status EmptyMessages(Attacker& attacker) {
  v1::ClipGradNormStart start = Clip(v1::REPLY_COEFFICIENT);
  AddTensor(start, v1::DTYPE_FLOAT32, 1);
  std::string messages = StartMessage(start);
  // A `data` of no bytes, which an encoder leaves out unless it is told to keep it.
  const std::string empty = Message(std::string_view("\x12\x00", 2));
  for (int i = 0; i < 1'000'000; ++i) messages += empty;
  return SendCalls(attacker, 1, kClipGradNorm, messages, false);
}

absl::Status MessagesBehindFull(Attacker& attacker) {
  // Further messages of a unary call, which are never read.
  std::string messages = Message({});
  for (int i = 0; i < 1'000'000; ++i) messages += Message({});
  return SendCalls(attacker, 1, kGetServerInfo, messages, false);
}

std::string MostTensors(int64_t elements) {
  v1::ClipGradNormStart start = Clip(v1::REPLY_COEFFICIENT);
  for (int i = 0; i < 131072; ++i) {
    if (elements == 1) {
      start.add_tensors()->set_dtype(v1::DTYPE_BFLOAT16);
    } else {
      AddTensor(start, v1::DTYPE_BFLOAT16, elements);
    }
  }
  return StartMessage(start);
}

absl::Status MostTensorsLeft(Attacker& attacker) {
  return SendCalls(attacker, 30, kClipGradNorm, MostTensors(1), false);
}

absl::Status MostTensorsOfNothing(Attacker& attacker) {
  return SendCalls(attacker, 30, kClipGradNorm, MostTensors(0), true);
}

absl::Status MostTensorsReported(Attacker& attacker) {
  constexpr int kTensors = 131072;
  v1::ClipGradNormStart start = Clip(v1::REPLY_COEFFICIENT);
  start.mutable_norm()->set_per_tensor(true);
  for (int i = 0; i < kTensors; ++i) start.add_tensors()->set_dtype(v1::DTYPE_BFLOAT16);
  const std::string call = StartMessage(start) + DataMessage(std::string(2 * kTensors, '\x3f'));
  // The replies are never read, so that they are kept.
  absl::StatusOr<Http2Connection*> connection = attacker.Begin({{kInitialWindowSize, 0}});
  if (!connection.ok()) return connection.status();
  for (int i = 0; i < 30 && attacker.HasTime(); ++i) {
    const absl::Status sent = SendCall(attacker, **connection, kClipGradNorm, call, true);
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

absl::Status WholeBudget(Attacker& attacker) {
  v1::ClipGradNormStart start = Clip(v1::REPLY_GRADIENT);
  AddTensor(start, v1::DTYPE_FLOAT32, (int64_t{1} << 30) / 4);
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  const absl::StatusOr<uint32_t> stream = BeginCall(attacker, **connection, kClipGradNorm);
  if (!stream.ok()) return stream.status();
  std::string message = StartMessage(start);
  for (int second = 0; second < 4; ++second) {
    const absl::StatusOr<size_t> sent =
        (*connection)->SendData(*stream, message, false, attacker.deadline());
    if (!sent.ok()) return sent.status();
    message = DataMessage("four");
    (*connection)->ReadUntil([] { return false; }, absl::Now() + absl::Seconds(1)).IgnoreError();
  }
  return absl::OkStatus();
}

absl::Status UnreadGradient(Attacker& attacker) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  v1::ClipGradNormStart start = Clip(v1::REPLY_GRADIENT);
  AddTensor(start, v1::DTYPE_FLOAT32, kBytes / 4);
  absl::StatusOr<Http2Connection*> connection = attacker.Begin({{kInitialWindowSize, 0}});
  if (!connection.ok()) return connection.status();
  return SendCall(attacker, **connection, kClipGradNorm, StartMessage(start) + DataMessages(kBytes),
                  true);
}

absl::Status UnreadInfo(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin({{kInitialWindowSize, 0}});
  if (!connection.ok()) return connection.status();
  const RepeatedHeaders headers = RepeatedRequest(kGetServerInfo);
  for (int i = 0; i < 50'000 && attacker.HasTime();) {
    std::string frames;
    for (int at_once = 0; at_once < 1000; ++at_once, ++i) {
      const uint32_t stream = (*connection)->NextStream();
      frames +=
          Frame(FrameType::kHeaders, kEndHeaders, stream, i == 0 ? headers.first : headers.again);
      frames += Frame(FrameType::kData, kEndStream, stream, Message({}));
    }
    if (absl::Status sent = (*connection)->Send(frames, attacker.deadline()); !sent.ok()) {
      return sent;
    }
  }
  return absl::OkStatus();
}

// A gradient of 128 MiB in F16, measured.
absl::Status MeasureWith(Attacker& attacker, double norm_type) {
  constexpr int64_t kBytes = int64_t{128} << 20;
  v1::ClipGradNormStart start = Clip(v1::REPLY_COEFFICIENT);
  start.mutable_norm()->set_norm_type(norm_type);
  AddTensor(start, v1::DTYPE_FLOAT16, kBytes / 2);
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  const std::string call = StartMessage(start) + DataMessages(kBytes);
  const absl::Status sent = SendCall(attacker, **connection, kClipGradNorm, call, true);
  if (!sent.ok()) return sent;
  const absl::Time begin = absl::Now();
  const absl::Status answered =
      (*connection)->ReadUntil([&] { return (*connection)->ended(1); }, attacker.deadline());
  if (answered.ok()) {
    attacker.Note(absl::StrCat(
        "answered ", absl::FormatDuration(absl::Trunc(absl::Now() - begin, absl::Milliseconds(1))),
        " after the last byte"));
  }
  return answered;
}

absl::Status UsualNorm(Attacker& attacker) {
  return MeasureWith(attacker, 2);
}

absl::Status ExpensiveNorm(Attacker& attacker) {
  return MeasureWith(attacker, 3.7);
}

}  // namespace

const std::vector<Attack>& AttacksOnMemory() {
  static const std::string budget = "--memory-budget=1GiB";
  static const std::vector<Attack> attacks = {
      {"unfinished-info", "GetServerInfo, 8 requests of 32 MiB but for a byte", UnfinishedInfo},
      {"unfinished-health", "health's Check, the same", UnfinishedHealth},
      {"unfinished-streamed", "ClipGradNorm, the same as messages", UnfinishedStreamed},
      {"unfinished-spread", "GetServerInfo, 64 connections, 4 MiB but for a byte each",
       UnfinishedOverConnections},
      {"crumbs", "ClipGradNorm, an unfinished message in DATA frames of one byte", Crumbs},
      {"tiny-messages", "a million messages with a byte of gradient each", TinyMessages},
      {"empty-messages", "a million messages with none", EmptyMessages},
      {"messages-unread", "a million messages behind a unary request", MessagesBehindFull},
      {"most-tensors",
       "30 calls that declare 131,072 tensors and are left",
       MostTensorsLeft,
       {budget}},
      {"empty-tensors", "30 calls of 131,072 tensors without elements", MostTensorsOfNothing},
      {"per-tensor-unread", "30 replies of 131,072 norms that nobody reads", MostTensorsReported},
      {"whole-budget",
       "a call that takes the whole --memory-budget, and trickles",
       WholeBudget,
       {budget}},
      {"unread-gradient", "a clipped gradient of 256 MiB that nobody reads", UnreadGradient},
      {"unread-info", "50,000 replies of GetServerInfo that nobody reads", UnreadInfo},
      {"norm-2", "the norm of 128 MiB in F16, for comparison", UsualNorm},
      {"norm-3.7", "the same with p = 3.7", ExpensiveNorm},
  };
  return attacks;
}

}  // namespace gradclip::hostile
