#include "emulated_cuda.h"
#include "runtime.h"

namespace gradclip::emulated_cuda {
namespace {

void Plan(Runtime::PlannedFailure failure) {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().failures.push_back(std::move(failure));
}

// How many calls come before the n-th.
size_t CallsBefore(size_t n) {
  const size_t made = CallCount();
  return n > made ? n - made - 1 : 0;
}

}  // namespace

void Reset(const Options& options) {
  const std::lock_guard lock(RuntimeMutex());
  ReplaceRuntime(options);
}

std::vector<std::string> Calls() {
  const std::lock_guard lock(RuntimeMutex());
  return TheRuntime().calls;
}

size_t CallCount() {
  const std::lock_guard lock(RuntimeMutex());
  return TheRuntime().calls.size();
}

void ForgetCalls() {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().calls.clear();
}

void FailAt(size_t n, cudaError_t error, bool sticky) {
  Plan({.name = "",
        .calls_before = CallsBefore(n),
        .error = error,
        .sticky = sticky,
        .in_work = false});
}

void FailCall(const std::string& name, size_t n, cudaError_t error, bool sticky) {
  size_t made = 0;
  for (const std::string& call : Calls()) made += call == name;
  Plan({.name = name,
        .calls_before = n > made ? n - made - 1 : 0,
        .error = error,
        .sticky = sticky,
        .in_work = false});
}

void FailWorkAt(size_t n, cudaError_t error, bool sticky) {
  Plan({.name = "",
        .calls_before = CallsBefore(n),
        .error = error,
        .sticky = sticky,
        .in_work = true});
}

void ClearFailures() {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().failures.clear();
}

void Hang(int device) {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().devices.at(static_cast<size_t>(device)).hangs = true;
}

void Resume(int device) {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().devices.at(static_cast<size_t>(device)).hangs = false;
}

Live CountLive() {
  const std::lock_guard lock(RuntimeMutex());
  const Runtime& runtime = TheRuntime();
  Live live;
  live.streams = runtime.streams.size();
  live.events = runtime.events.size();
  for (const auto& [address, region] : runtime.memory.regions()) {
    switch (region.space) {
      case Space::kDevice:
        ++live.device_allocations;
        live.device_bytes += region.bytes;
        break;
      case Space::kPinned:
        ++live.pinned_allocations;
        break;
      case Space::kRegistered:
        ++live.registered_ranges;
        break;
      case Space::kMapped:
        live.ipc_mappings += region.references;
        break;
    }
  }
  return live;
}

size_t PendingWork() {
  const std::lock_guard lock(RuntimeMutex());
  const Runtime& runtime = TheRuntime();
  size_t pending = 0;
  for (size_t i = 0; i < runtime.devices.size(); ++i) {
    for (const auto& stream : runtime.StreamsOf(static_cast<int>(i))) {
      pending += stream->operations.size();
    }
  }
  return pending;
}

void RunPendingWork() {
  const std::lock_guard lock(RuntimeMutex());
  TheRuntime().RunEverything();
  TheRuntime().memory.CloseAll();
}

std::string LastMessage() {
  const std::lock_guard lock(RuntimeMutex());
  return TheRuntime().message;
}

}  // namespace gradclip::emulated_cuda
