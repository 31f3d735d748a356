// Shows ThreadSanitizer the order that gRPC keeps between starting an operation and completing it.
//
// Context: gRPC comes without instrumentation, so ThreadSanitizer does not see the queues by which
// a reactor's next reaction, on another thread, comes after the operation that it answers. It then
// reports races in every reactor and in gRPC's own headers; suppressions by name would hide the
// real races that pass through the same frames.
//
// Decision: in ThreadSanitizer builds every executable puts these functions before gRPC's own. They
// state what gRPC's interface promises (what happened before an operation was started is seen by
// whoever gets its tag back; OnDone and OnCancel come after the reactions that they wait for), then
// call the real ones, or do on a thread that ThreadSanitizer sees what gRPC does on its executor's.
//
// Consequence: no suppressions for code of ours. planted_race.cc shows that real races are seen,
// and its guarded twin that nothing else is reported.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/support/server_callback.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace {

// The tag that this thread has got back, until what gRPC's headers do with it is done. They give
// back their reference to the call when they have taken the results, before the reaction runs: a
// tag's completion comes after the one before, whoever started the operation in between (gRPC's
// health service does so under a lock that is not seen). Of the reaction itself this says nothing.
thread_local void* completing = nullptr;

}  // namespace

extern "C" {

// Of ThreadSanitizer's run-time library.
void __tsan_acquire(void* address);
void __tsan_release(void* address);

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t nops, void* tag,
                                      void* reserved) {
  static const auto start_batch =
      reinterpret_cast<decltype(&grpc_call_start_batch)>(dlsym(RTLD_NEXT, "grpc_call_start_batch"));
  __tsan_release(tag);
  return start_batch(call, ops, nops, tag, reserved);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  static const auto next = reinterpret_cast<decltype(&grpc_completion_queue_next)>(
      dlsym(RTLD_NEXT, "grpc_completion_queue_next"));
  const grpc_event event = next(queue, deadline, reserved);
  completing = nullptr;
  if (event.type == GRPC_OP_COMPLETE) {
    __tsan_acquire(event.tag);
    completing = event.tag;
  }
  return event;
}

void grpc_call_unref(grpc_call* call) {
  static const auto unref =
      reinterpret_cast<decltype(&grpc_call_unref)>(dlsym(RTLD_NEXT, "grpc_call_unref"));
  if (void* const tag = std::exchange(completing, nullptr)) {
    __tsan_release(tag);
  }
  unref(call);
}

}  // extern "C"

namespace {

// What gRPC's executor is otherwise for: runs reactions on a thread of its own, one after another.
class Executor {
 public:
  static void Run(std::function<void()> reaction) {
    static Executor& executor = *new Executor;
    {
      const std::lock_guard lock(executor.mutex_);
      executor.reactions_.push_back(std::move(reaction));
    }
    executor.changed_.notify_one();
  }

 private:
  Executor() {
    std::thread([this] {
      while (true) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !reactions_.empty(); });
        const std::function<void()> reaction = std::move(reactions_.front());
        reactions_.pop_front();
        lock.unlock();
        reaction();
      }
    }).detach();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> reactions_;  // guarded by mutex_
};

}  // namespace

// Both are called by whoever counts a counter of the call down to 0; where that is gRPC itself,
// ThreadSanitizer has not seen it.
namespace grpc::internal {

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  __tsan_acquire(&callbacks_outstanding_);
  if (inline_ondone) return CallOnDone();
  Executor::Run([this] { CallOnDone(); });
}

void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  __tsan_acquire(&on_cancel_conditions_remaining_);
  if (reactor->InternalInlineable()) return reactor->OnCancel();
  Ref();
  Executor::Run([this, reactor] {
    reactor->OnCancel();
    MaybeDone();
  });
}

}  // namespace grpc::internal
