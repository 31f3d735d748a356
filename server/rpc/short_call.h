// A call that reads at most one small request and writes small responses: GetServerInfo and health.
//
// Context: gRPC receives the request of a unary method whole, up to the largest message there may
// be, before it asks anybody. Decision: such methods are served as streams, which look the same on
// the wire: who calls is looked at first, and a request is read only where it is needed.
//
// Threading: at most one operation with the transport is outstanding. The call owns itself from
// Begin() to OnEnded().
#ifndef GRADCLIP_SERVER_RPC_SHORT_CALL_H_
#define GRADCLIP_SERVER_RPC_SHORT_CALL_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "server/rpc/environment.h"
#include "server/rpc/watchdog.h"

namespace gradclip {

class ShortCall : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                  public Watched,
                  public std::enable_shared_from_this<ShortCall> {
 public:
  // Once. Goes on with Start(), or ends the call where Enter() or the connection's guard says so.
  void Begin();

 protected:
  ShortCall(Environment& environment, grpc::CallbackServerContext* context)
      : environment_(environment), context_(context), peer_(context->peer()) {}

  // --- What the RPC provides; each may start one operation ---

  virtual absl::Status Enter() { return absl::OkStatus(); }  // whether the call may be made
  virtual void Start() = 0;
  virtual void Take(const std::string& /*request*/) {}  // after ReadRequest()
  virtual void OnWritten() {}                           // after Answer()
  virtual void OnEnded(const absl::Status& /*status*/) {}

  // --- Operations. Without effect after the call's end, or with the peer gone ---

  void ReadRequest();
  // Writes a response. False, and nothing is done, while another operation is outstanding.
  bool Answer(const google::protobuf::MessageLite& response);
  void AnswerAndEnd(const google::protobuf::MessageLite& response);
  void End(const absl::Status& status);

  Environment& environment_;
  grpc::CallbackServerContext* const context_;
  const std::string peer_;
  const SteadyTime begin_ = std::chrono::steady_clock::now();

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  bool ShouldExpire(SteadyTime now) override;
  void Expire() override;

  // Before and after an operation; where false, there can be none, or no other one.
  [[nodiscard]] bool BeforeOperation(bool last);
  [[nodiscard]] bool AfterOperation();

  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;

  std::mutex mutex_;
  // Guarded by mutex_.
  bool outstanding_ = false;
  SteadyTime outstanding_since_;
  bool ended_ = false;             // the last operation is outstanding
  bool cancelled_ = false;         // by the peer or the watchdog
  grpc_call* expiring_ = nullptr;  // a reference held for Expire()
  absl::Status status_;            // what it ends with
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_SHORT_CALL_H_
