// One call of ClipGradNorm. Threading as Call.
#ifndef GRADCLIP_SERVER_RPC_CLIP_GRAD_NORM_CALL_H_
#define GRADCLIP_SERVER_RPC_CLIP_GRAD_NORM_CALL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/rpc/call.h"
#include "server/session/reply_segment.h"

namespace gradclip {

class ClipGradNormCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                               public Call {
 public:
  ClipGradNormCall(Environment& environment, grpc::CallbackServerContext* context)
      : Call(environment, context, "ClipGradNorm") {}

  using Call::Begin;

 private:
  void OnReadDone(bool ok) override { OnRead(ok); }
  void OnWriteDone(bool ok) override;
  void OnCancel() override { OnCancelled(); }
  void OnDone() override { OnEnded(); }

  void StartReading(grpc::ByteBuffer* into) override { StartRead(into); }
  void StartFinish(const grpc::Status& status) override { Finish(status); }
  void TakeRequest(const std::string& serialised, MemoryBudget::Reservation declarations) override;
  void OnAdmitted() override;
  void PassThrough(const Pieces& pieces) override;
  void Answer() override;

  grpc::ByteBuffer ResultMessage() const;
  // (A ByteBuffer that is assigned is copied, slice by slice; these swap.)
  void Write(grpc::ByteBuffer&& message);
  void WriteLast(grpc::ByteBuffer&& message);
  void SegmentMayGo();
  void WriteNextPassed();
  grpc::ByteBuffer SegmentMessage() const;

  grpc::ByteBuffer outgoing_;
  bool half_closed_ = false;

  // The clipped gradient goes out segment by segment, the next one scaled while one is written.
  absl::StatusOr<ReplySegment> segment_;    // the next one
  bool written_ = false;                    // the last write went well
  std::atomic<bool> one_is_ready_ = false;  // of the two: segment scaled, last write done

  // With total_norm given: the clipped bytes of the last request, and how many of them are written.
  std::shared_ptr<std::byte[]> passed_;
  size_t passed_bytes_ = 0;
  size_t passed_written_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CLIP_GRAD_NORM_CALL_H_
