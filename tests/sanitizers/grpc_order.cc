// Shows ThreadSanitizer the order that gRPC keeps between starting an operation and completing it.
//
// Context: gRPC comes without instrumentation, so ThreadSanitizer does not see the queues by which
// a reactor's next reaction, on another thread, comes after the operation that it answers. It then
// reports races in every reactor and in gRPC's own headers; suppressions by name would hide the
// real races that pass through the same frames.
//
// Decision: in ThreadSanitizer builds every executable puts these two functions before gRPC's own.
// They state what gRPC's interface promises (what happened before an operation was started is seen
// by whoever gets its tag back), then call the real ones.
//
// Consequence: no suppressions. planted_race.cc shows that real races are seen, and its guarded
// twin that nothing else is reported.
#include <dlfcn.h>
#include <grpc/grpc.h>

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
  if (event.type == GRPC_OP_COMPLETE) {
    __tsan_acquire(event.tag);
  }
  return event;
}

}  // extern "C"
