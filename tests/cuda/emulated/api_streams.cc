// Streams and events.
#include "runtime.h"
#include "runtime_api.h"

namespace gradclip::emulated_cuda {
namespace {

cudaError_t CreateStream(Runtime& runtime, cudaStream_t* handle, unsigned flags) {
  if (handle == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  auto stream = std::make_shared<Stream>();
  stream->device = runtime.device();
  stream->blocking = flags != cudaStreamNonBlocking;
  *handle = reinterpret_cast<cudaStream_t>(NewHandle());
  runtime.streams[*handle] = std::move(stream);
  return cudaSuccess;
}

cudaError_t CreateEvent(Runtime& runtime, cudaEvent_t* handle, unsigned flags) {
  const bool ipc_with_timing =
      (flags & cudaEventInterprocess) != 0 && (flags & cudaEventDisableTiming) == 0;
  if (handle == nullptr || flags > 7 || ipc_with_timing) return cudaErrorInvalidValue;
  *handle = reinterpret_cast<cudaEvent_t>(NewHandle());
  runtime.events[*handle] = {.device = runtime.device(), .flags = flags, .record = nullptr};
  return cudaSuccess;
}

cudaError_t NoStream(Runtime& runtime) {
  runtime.Tell("a stream that does not exist");
  return cudaErrorInvalidResourceHandle;
}

// For those who ask whether work is done.
void RunOneUnlessHung(Runtime& runtime, Stream& stream) {
  if (!runtime.devices[static_cast<size_t>(stream.device)].hangs) runtime.RunOne(stream);
}

cudaError_t NoEvent(Runtime& runtime) {
  runtime.Tell("an event that does not exist");
  return cudaErrorInvalidResourceHandle;
}

}  // namespace
}  // namespace gradclip::emulated_cuda

using namespace gradclip::emulated_cuda;

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return Call("cudaStreamCreate", CallKind::kDevice,
              [&](Runtime& runtime) { return CreateStream(runtime, stream, 0); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call("cudaStreamCreateWithFlags", CallKind::kDevice,
              [&](Runtime& runtime) { return CreateStream(runtime, stream, flags); });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return Call("cudaStreamDestroy", CallKind::kRelease, [&](Runtime& runtime) {
    const auto found = runtime.streams.find(handle);
    if (found == runtime.streams.end()) return NoStream(runtime);
    runtime.RunAll(*found->second);
    runtime.streams.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return Call("cudaStreamSynchronize", CallKind::kDevice, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return NoStream(runtime);
    runtime.RunAll(*stream);
    return runtime.Waited(stream->device);
  });
}

// Says once that work is left where it is, and meanwhile does a part of it.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return Call("cudaStreamQuery", CallKind::kDevice, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return NoStream(runtime);
    if (stream->operations.empty()) return runtime.Waited(stream->device);
    RunOneUnlessHung(runtime, *stream);
    return cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned flags) {
  return Call("cudaStreamWaitEvent", CallKind::kDevice, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return NoStream(runtime);
    const Event* const event = runtime.FindEvent(event_handle);
    if (event == nullptr) return NoEvent(runtime);
    if (flags != 0) return cudaErrorInvalidValue;
    if (event->record == nullptr || event->record->done) return cudaSuccess;
    runtime.Enqueue(stream, {.run = nullptr, .wait = event->record, .record = nullptr});
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return Call("cudaEventCreate", CallKind::kDevice,
              [&](Runtime& runtime) { return CreateEvent(runtime, event, 0); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call("cudaEventCreateWithFlags", CallKind::kDevice,
              [&](Runtime& runtime) { return CreateEvent(runtime, event, flags); });
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle) {
  return Call("cudaEventRecord", CallKind::kDevice, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return NoStream(runtime);
    Event* const event = runtime.FindEvent(event_handle);
    if (event == nullptr) return NoEvent(runtime);
    if (event->device != stream->device) {
      runtime.Tell("an event is recorded in a stream of another device");
      return cudaErrorInvalidResourceHandle;
    }
    event->record = runtime.Enqueue(
        stream, {.run = nullptr, .wait = nullptr, .record = std::make_shared<Record>()});
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return Call("cudaEventSynchronize", CallKind::kDevice, [&](Runtime& runtime) {
    const Event* const event = runtime.FindEvent(handle);
    if (event == nullptr) return NoEvent(runtime);
    if (event->record != nullptr) runtime.RunUntil(*event->record);
    return runtime.Waited(event->device);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return Call("cudaEventQuery", CallKind::kDevice, [&](Runtime& runtime) {
    const Event* const event = runtime.FindEvent(handle);
    if (event == nullptr) return NoEvent(runtime);
    if (event->record == nullptr || event->record->done) return runtime.Waited(event->device);
    const auto stream = event->record->stream.lock();
    if (stream != nullptr && !stream->operations.empty()) RunOneUnlessHung(runtime, *stream);
    return cudaErrorNotReady;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin_handle,
                                 cudaEvent_t end_handle) {
  return Call("cudaEventElapsedTime", CallKind::kDevice, [&](Runtime& runtime) {
    const Event* const begin = runtime.FindEvent(begin_handle);
    const Event* const end = runtime.FindEvent(end_handle);
    if (begin == nullptr || end == nullptr) return NoEvent(runtime);
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    if (begin->record == nullptr || end->record == nullptr || begin->device != end->device ||
        ((begin->flags | end->flags) & cudaEventDisableTiming) != 0) {
      runtime.Tell("time between events without a record, without timing, or of two devices");
      return cudaErrorInvalidResourceHandle;
    }
    if (!begin->record->done || !end->record->done) return cudaErrorNotReady;
    *milliseconds =
        std::chrono::duration<float, std::milli>(end->record->when - begin->record->when).count();
    return runtime.Waited(end->device);
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return Call("cudaEventDestroy", CallKind::kRelease, [&](Runtime& runtime) {
    if (runtime.events.erase(handle) == 0) return NoEvent(runtime);
    return cudaSuccess;
  });
}
