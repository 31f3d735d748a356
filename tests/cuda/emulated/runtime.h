// The state behind the emulated runtime's functions: devices, streams, events and planned failures.
// Everything is used under the mutex, which Call() takes.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "emulated_cuda.h"
#include "memory.h"
#include "runtime_types.h"

namespace gradclip::emulated_cuda {

struct Stream;

// A point in a stream.
struct Record {
  bool done = false;
  std::chrono::steady_clock::time_point when;  // it was done
  std::weak_ptr<Stream> stream;
};

struct Operation {
  std::function<void()> run;
  // Where set: what has to be done before, and what is done with it.
  std::shared_ptr<Record> wait;
  std::shared_ptr<Record> record;
};

struct Stream {
  int device = 0;
  // Ordered with the device's default stream.
  bool blocking = true;
  std::deque<Operation> operations;
};

struct Event {
  int device = 0;
  unsigned flags = 0;
  // Of the last cudaEventRecord.
  std::shared_ptr<Record> record;
};

struct DeviceState {
  cudaError_t sticky = cudaSuccess;
  // Of work that failed, for the next call that waits.
  cudaError_t unreported = cudaSuccess;
  bool hangs = false;
  std::shared_ptr<Stream> default_stream;
};

// What a call needs and how it fails.
enum class CallKind {
  // Needs no driver.
  kVersion,
  // Needs a device, and works after a sticky error.
  kQuery,
  kDevice,
  kWork,
  // Takes place even where it returns an error.
  kRelease,
};

class Runtime {
 public:
  explicit Runtime(const Options& options);
  ~Runtime();

  // ---- calls and planned failures ----

  // Counts the call and gives the error that it has to return, if any.
  cudaError_t Begin(const char* name, CallKind kind);
  void End();
  // Prints and keeps why a call or launch fails.
  void Tell(const std::string& message);
  // The current device of this thread.
  int device() const;

  // ---- streams ----

  // nullptr if there is no such stream.
  std::shared_ptr<Stream> FindStream(cudaStream_t handle);
  Event* FindEvent(cudaEvent_t handle);
  std::shared_ptr<Record> Enqueue(const std::shared_ptr<Stream>& stream, Operation operation);
  // For launches and copies, which a planned failure may hit.
  void EnqueueWork(const std::shared_ptr<Stream>& stream, std::function<void()> run);
  void RunOne(Stream& stream);
  void RunAll(Stream& stream);
  void RunUntil(const Record& record);
  void RunDevice(int device);
  void RunEverything();
  void FailWork(int device, cudaError_t error, bool sticky);
  // What a call returns that has waited for work of the device.
  cudaError_t Waited(int device);
  std::vector<std::shared_ptr<Stream>> StreamsOf(int device) const;

  struct PlannedFailure {
    // Of any function if empty.
    std::string name;
    size_t calls_before = 0;
    cudaError_t error = cudaSuccess;
    bool sticky = false;
    bool in_work = false;
  };

  Options options;
  Memory memory;
  std::mt19937_64 random;
  std::vector<DeviceState> devices;
  std::map<cudaStream_t, std::shared_ptr<Stream>> streams;
  std::map<cudaEvent_t, Event> events;
  std::vector<std::string> calls;
  std::vector<PlannedFailure> failures;
  std::string message;
  // The device whose kernel runs.
  int running_device = 0;

 private:
  void RunSome();
  void OrderWithDefaultStream(const std::shared_ptr<Stream>& stream);

  // Of the call that is under way.
  cudaError_t work_error_ = cudaSuccess;
  bool work_sticky_ = false;
};

// A value for a stream or event that no earlier one had, of any runtime since the process began.
uintptr_t NewHandle();

std::mutex& RuntimeMutex();
// REQUIRES: the mutex is held.
Runtime& TheRuntime();
void ReplaceRuntime(const Options& options);

// Of this thread; REQUIRES: the mutex is held.
struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
};
ThreadState& ThisThread();

// Runs a function of the runtime: `body(Runtime&)` gives what it returns.
template <typename Body>
cudaError_t Call(const char* name, CallKind kind, Body body) {
  const std::lock_guard lock(RuntimeMutex());
  Runtime& runtime = TheRuntime();
  const cudaError_t planned = runtime.Begin(name, kind);
  cudaError_t result = planned;
  if (planned == cudaSuccess || kind == CallKind::kRelease) {
    result = body(runtime);
    if (planned != cudaSuccess) result = planned;
  }
  runtime.End();
  if (result != cudaSuccess) ThisThread().last_error = result;
  return result;
}

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_H_
