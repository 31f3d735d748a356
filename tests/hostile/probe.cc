#include "tests/hostile/probe.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "gradclip/v1/gradclip.pb.h"
#include "tests/hostile/frames.h"
#include "tests/hostile/http2_connection.h"

namespace gradclip::hostile {
namespace {

// Longer than whoever waits for a training step would.
constexpr absl::Duration kProbeTimeout = absl::Seconds(2);

std::string ExampleCall() {
  v1::ClipGradNormRequest start;
  v1::TensorSpec& tensor = *start.mutable_start()->add_tensors();
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.add_shape(2);
  start.mutable_start()->set_max_norm(1);
  v1::ClipGradNormRequest data;
  data.set_data(std::string("\x00\x00\x40\x40\x00\x00\x80\x40", 8));
  return Message(start.SerializeAsString()) + Message(data.SerializeAsString());
}

}  // namespace

absl::StatusOr<absl::Duration> ClipOnce(const std::string& address, absl::Duration timeout) {
  const absl::Time begin = absl::Now();
  const absl::Time deadline = begin + timeout;
  absl::StatusOr<std::unique_ptr<Http2Connection>> connection = Http2Connection::Connect(address);
  if (!connection.ok()) return connection.status();
  Http2Connection& peer = **connection;
  if (absl::Status begun = peer.Begin(); !begun.ok()) return begun;
  const uint32_t stream = peer.NextStream();
  const absl::Status sent =
      peer.Send(Frame(FrameType::kHeaders, kEndHeaders, stream, RequestHeaders(kClipGradNorm)) +
                    Frame(FrameType::kData, kEndStream, stream, ExampleCall()),
                deadline);
  if (!sent.ok()) return sent;
  const absl::Status ended = peer.ReadUntil([&] { return peer.ended(stream); }, deadline);
  if (!ended.ok()) return ended;
  // A call that fails brings a status and no message.
  if (peer.data_bytes(stream) == 0) return absl::UnavailableError("the call failed");
  return absl::Now() - begin;
}

Probe::Probe(std::string address) : address_(std::move(address)), thread_([this] { Run(); }) {}

Probe::~Probe() {
  stop_ = true;
  thread_.join();
}

Probe::Seen Probe::seen() const {
  const std::lock_guard lock(mutex_);
  return seen_;
}

void Probe::Run() {
  while (!stop_) {
    const absl::StatusOr<absl::Duration> took = ClipOnce(address_, kProbeTimeout);
    {
      const std::lock_guard lock(mutex_);
      ++seen_.asked;
      if (took.ok()) {
        ++seen_.answered;
        seen_.longest = std::max(seen_.longest, *took);
      }
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
}

}  // namespace gradclip::hostile
