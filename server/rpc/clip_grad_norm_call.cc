#include "server/rpc/clip_grad_norm_call.h"

#include <algorithm>
#include <utility>

namespace gradclip {
namespace {

// The contract's largest data message of a reply.
constexpr size_t kMaxReplyBytes = size_t{1} << 20;

// Most that an element cut by a message's end leaves over for the next one: 7 bytes of an F64.
constexpr size_t kCarriedBytes = 7;

}  // namespace

void ClipGradNormCall::TakeRequest(const std::string& serialised,
                                   MemoryBudget::Reservation declarations) {
  ParseAndTake<v1::ClipGradNormRequest>(serialised, std::move(declarations));
}

grpc::ByteBuffer ClipGradNormCall::ResultMessage() const {
  v1::ClipGradNormResponse response;
  *response.mutable_result() = session_.result();
  return Serialize(response);
}

void ClipGradNormCall::OnAdmitted() {
  if (!session_.passes_through()) return Read();
  Write(ResultMessage());
}

void ClipGradNormCall::Answer() {
  half_closed_ = true;
  if (session_.passes_through()) return End(absl::OkStatus());
  if (!session_.result().gradient_follows() || !session_.has_segment()) {
    return WriteLast(ResultMessage());
  }
  // (Not with a buffer hint: gRPC would then hold back the call's headers, which this write waits
  // for.)
  Write(ResultMessage());
  segment_ = session_.NextSegment();
  SegmentMayGo();
}

void ClipGradNormCall::OnWriteDone(bool ok) {
  written_ = AfterWaiting() && ok;
  if (half_closed_) return SegmentMayGo();
  if (!written_) return End(CallerLeft());
  WriteNextPassed();
}

// Called when the next segment is ready and when the last write is done; the later of the two
// goes on.
void ClipGradNormCall::SegmentMayGo() {
  while (one_is_ready_.exchange(true, std::memory_order_acq_rel)) {
    one_is_ready_.store(false, std::memory_order_relaxed);
    if (!written_) return End(CallerLeft());
    if (!segment_.ok()) return End(segment_.status());
    bytes_out_ += segment_->bytes.size();
    grpc::ByteBuffer message = SegmentMessage();
    if (!session_.has_segment()) return WriteLast(std::move(message));
    Write(std::move(message));
    segment_ = session_.NextSegment();
  }
}

grpc::ByteBuffer ClipGradNormCall::SegmentMessage() const {
  // The bytes go before their place in the budget does.
  struct Held {
    std::shared_ptr<const void> kept;
    std::shared_ptr<const void> bytes;
  };
  return DataMessage(segment_->bytes, std::make_shared<Held>(Held{kept_memory(), segment_->owner}));
}

void ClipGradNormCall::PassThrough(const Pieces& pieces) {
  size_t bytes = 0;
  for (const auto& piece : pieces) bytes += piece.size();
  passed_ = std::shared_ptr<std::byte[]>(new std::byte[bytes + kCarriedBytes]);
  passed_bytes_ = 0;
  passed_written_ = 0;
  for (const std::span<const std::byte> piece : pieces) {
    size_t written = 0;
    if (absl::Status taken = session_.PassThrough(piece, passed_.get() + passed_bytes_, &written);
        !taken.ok()) {
      return End(std::move(taken));
    }
    passed_bytes_ += written;
  }
  WriteNextPassed();
}

void ClipGradNormCall::WriteNextPassed() {
  if (passed_written_ == passed_bytes_) return Read();
  const size_t bytes = std::min(passed_bytes_ - passed_written_, kMaxReplyBytes);
  grpc::ByteBuffer message = DataMessage({passed_.get() + passed_written_, bytes}, passed_);
  passed_written_ += bytes;
  bytes_out_ += bytes;
  Write(std::move(message));
}

void ClipGradNormCall::Write(grpc::ByteBuffer&& message) {
  outgoing_.Swap(&message);
  BeforeWaiting(Waiting::kForReader);
  StartWrite(&outgoing_);
}

void ClipGradNormCall::WriteLast(grpc::ByteBuffer&& message) {
  outgoing_.Swap(&message);
  NoteEndsWell();
  BeforeWaiting(Waiting::kForReader);
  StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
}

}  // namespace gradclip
