// What both streaming RPCs do alike: read requests into a session, wait for memory, end exactly
// once.
//
// Threading: a call has at most one operation with the transport outstanding, so its reactions
// follow one another; but while plain data is measured the next message is being read, and where it
// comes early, who measures goes on with it (measuring_). From other threads come the cancellation,
// the grant of memory and the watchdog; what they share with the reactions is guarded by mutex_. No
// reaction blocks, but where a device measures: it then waits for that, some 100 us at a time, as
// session.h says. After any other method that starts an operation, its completion may already be
// running elsewhere: touch nothing afterwards.
//
// How it gets memory is in call_memory.cc, how it uses the pools' threads in call_work.cc, how it
// ends in call_end.cc, and what it does as a rank of a group in call_group.cc.
#ifndef GRADCLIP_SERVER_RPC_CALL_H_
#define GRADCLIP_SERVER_RPC_CALL_H_

#include <google/protobuf/arena.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/group/admission.h"
#include "server/group/store.h"
#include "server/rpc/caller.h"
#include "server/rpc/environment.h"
#include "server/rpc/watchdog.h"
#include "server/session/session.h"
#include "server/wire/byte_buffer.h"

namespace gradclip {

// The gRPC status of the same code and message.
grpc::Status ToGrpcStatus(const absl::Status& status);

// What a call is told that came after the server had begun to drain.
absl::Status Draining();

class Call : public Watched, public std::enable_shared_from_this<Call> {
 public:
  ~Call() override = default;

 protected:
  Call(Environment& environment, grpc::CallbackServerContext* context, std::string_view rpc);

  // What has to happen before the call can go on.
  enum class Waiting { kForNothing, kForSender, kForReader, kForMemory, kForRanks };

  // --- What the RPC's reactor provides ---

  virtual void StartReading(grpc::ByteBuffer* into) = 0;     // StartRead
  virtual void StartFinish(const grpc::Status& status) = 0;  // Finish
  // A request that is not plain data: ParseAndTake() it as the RPC's type.
  virtual void TakeRequest(const std::string& serialised,
                           MemoryBudget::Reservation declarations) = 0;
  // The session has started and has its memory: by default, read on.
  virtual void OnAdmitted() { Read(); }
  // Data of a gradient whose norm is given, and so needs no measuring.
  virtual void PassThrough(const Pieces& pieces) = 0;
  // The caller has half-closed, and the session holds the result.
  virtual void Answer() = 0;

  // --- What the reactor calls ---

  // Once; the call owns itself from here to OnEnded(). Refused by a server that drains.
  void Begin();
  void OnRead(bool ok);  // from OnReadDone
  void OnCancelled();    // from OnCancel
  void OnEnded();        // from OnDone

  void Read();
  // Ends the call, with the reason of its expiry where it has expired.
  void End(absl::Status status);
  // Notes that the call ends with OK by an operation of the reactor's own (StartWriteAndFinish).
  void NoteEndsWell();

  // Before and after an operation for which the peer has to act. After: where false, the call has
  // expired meanwhile, and all that is left to do is End().
  void BeforeWaiting(Waiting what);
  [[nodiscard]] bool AfterWaiting();

  // TakeRequest() for requests of this type.
  template <typename Request>
  void ParseAndTake(const std::string& serialised, MemoryBudget::Reservation declarations);

  static absl::Status CallerLeft();

  // PERMISSION_DENIED where the caller may not do what a start message asks for.
  absl::Status MayUseJob(const std::string& job) const;
  absl::Status MaySendGradient() const;

  // What reply messages hold on to beside their bytes: those' place in the budget.
  std::shared_ptr<const void> kept_memory() const { return kept_; }

  Environment& environment_;

 private:
  // Destroyed from the last member to the first.
  struct Kept {
    std::shared_ptr<Memory> memory;
    MemoryBudget::Reservation reservation;
    GroupAdmission::Share share;  // in place of a reservation of the call's own
    std::shared_ptr<ArenaBuffer> gradient;
  };
  // Before session_, which also holds the gradient: others get the bytes only once they are free.
  std::shared_ptr<Kept> kept_;

 protected:
  Session session_;
  uint64_t bytes_out_ = 0;

 private:
  // Whether the call may be made at all.
  absl::Status Enter();

  bool ShouldExpire(SteadyTime now) override;
  void Expire() override;
  absl::Status ExpiryReason() const;  // REQUIRES: mutex_
  bool DeadlineHasPassed() const;     // the caller's, of a call that was cancelled
  absl::Status WhyCancelled() const;

  // These end the call or start its next operation, or they return true: then the next read was
  // started early, and NextHasCome() says how to go on.
  bool TakeRead(bool ok);
  bool TakeMessage();
  bool TakeData(const Pieces& pieces);
  bool NextHasCome(bool* ok);
  void TakeAlone(const Pieces& pieces);  // and read on afterwards
  bool Measure(const Pieces& pieces);    // false where that ended the call

  // Goes on as these say.
  void GoOn(bool again);

  // Data has come that must be kept, and nothing has been admitted yet: `then` takes it.
  void AdmitBefore(std::function<void()> then);
  void TakeShared(const v1::SharedRanges& ranges);
  // Runs the session's work, here or in the pools, and goes on with `then`.
  void RunWork(void (Call::*then)());
  void RunInPools(void (Call::*then)());
  void FinishWork(void (Call::*then)());

  void Admit();
  void OnGranted(MemoryBudget::Reservation reservation);
  void Keep(MemoryBudget::Reservation reservation, GroupAdmission::Share share = nullptr);
  absl::Status NoMemoryInTime() const;
  void EndForLackOfMemory(absl::Status status);
  // Stops waiting for memory or for other ranks. True: nothing will come of it, and who called has
  // to End() the call.
  bool LeaveQueue();

  // Ends the call with `why`, whatever it waits for or does.
  void Break(absl::Status why);
  void HoldForExpiry();  // REQUIRES: mutex_

  // --- As a rank of a group ---

  // Takes a place in the step. False where that ended the call.
  bool JoinGroup();
  // Says how much memory the call needs, if it has not yet. True: the call goes on itself; false:
  // it waits until all ranks have what they need, and goes on with Keep().
  bool DeclareNeed(uint64_t bytes);
  void OnGroupAdmitted(absl::StatusOr<GroupAdmission::Share> share);
  // The session has all of this rank's gradient: contributes it, and goes on with the outcome.
  void Contribute();
  void OnOutcome(absl::StatusOr<std::shared_ptr<const Outcome>> outcome);
  // Waits for other ranks. False: the call was cancelled or broken off, and has to End().
  [[nodiscard]] bool BeginWaitingForRanks();
  [[nodiscard]] bool StopWaitingForRanks();  // true: who called goes on with the call
  // Half-closed, and all that decides is known: on to the answer.
  void Conclude();
  void LeaveGroup(const absl::Status& status, bool cancelled);

  grpc::CallbackServerContext* const context_;
  const std::string_view rpc_;
  Caller caller_;
  Entry entry_;
  const uint64_t id_;
  const std::string
      peer_;  // asked for at the start, as it is forgotten when the connection is lost
  const SteadyTime begin_;

  grpc::ByteBuffer incoming_;
  MemoryBudget::Reservation declarations_;
  std::function<void()> once_admitted_;  // null: OnAdmitted()
  bool ended_short_ = false;             // the requests ended before they were complete

  // With a group. Set by a reaction with mutex_, as other threads look at them with it.
  std::shared_ptr<Store::Seat> seat_;
  std::unique_ptr<GroupAdmission::Place> place_;  // null where the call finds memory alone
  std::string host_;                              // Peer::host

  std::mutex mutex_;
  // Guarded by mutex_.
  bool measuring_ = false;        // while the next message is being read
  std::optional<bool> has_come_;  // how that read ended, where it has
  Waiting waiting_ = Waiting::kForNothing;
  SteadyTime waiting_since_;
  std::shared_ptr<MemoryBudget::Waiter> waiter_;
  bool cancelled_ = false;
  bool connection_lost_ = false;                   // where cancelled, with a group
  std::optional<absl::StatusCode> group_outcome_;  // what the store said of the step
  bool lacks_memory_ = false;                      // the call ends because it got none
  bool ended_ = false;
  grpc_call* expiring_ = nullptr;  // a reference held for Expire()
  absl::Status expired_;           // not OK once the call has expired or was broken off
  bool to_expire_ = false;         // that came amid a reaction, and Expire() is still to be called
  absl::Status final_status_;
};

template <typename Request>
void Call::ParseAndTake(const std::string& serialised, MemoryBudget::Reservation declarations) {
  // Thousands of tensors would be as many allocations.
  google::protobuf::Arena arena;
  Request& request = *google::protobuf::Arena::CreateMessage<Request>(&arena);
  if (!request.ParseFromString(serialised)) {
    return End(absl::InvalidArgumentError(
        absl::StrCat("a message of ", serialised.size(), " bytes is not a valid ",
                     request.GetTypeName(), ": it is damaged, or a name in it is not UTF-8")));
  }
  switch (request.payload_case()) {
    case Request::kStart: {
      const bool first = !session_.started();
      if (request.start().has_group()) {
        if (absl::Status may = MayUseJob(request.start().group().job()); !may.ok()) {
          return End(std::move(may));
        }
      }
      if (absl::Status started = session_.Start(std::move(*request.mutable_start()));
          !started.ok()) {
        return End(std::move(started));
      }
      if (absl::Status may = MaySendGradient(); !may.ok()) return End(std::move(may));
      if (first) declarations_ = std::move(declarations);
      if (session_.spec().group.has_value() && !JoinGroup()) return;
      // With shared memory only data that does come is kept.
      return environment_.regions == nullptr || session_.bytes_to_keep() == 0 ? Admit()
                                                                              : OnAdmitted();
    }
    case Request::kData:
      if (session_.bytes_to_keep() == 0) {
        return TakeAlone({std::as_bytes(std::span(request.data()))});
      }
      return AdmitBefore([this, data = std::move(*request.mutable_data())] {
        TakeAlone({std::as_bytes(std::span(data))});
      });
    case Request::kShared:
      declarations_.Absorb(std::move(declarations));
      return TakeShared(request.shared());
    case Request::PAYLOAD_NOT_SET:
      return End(session_.NoPayload());
  }
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CALL_H_
