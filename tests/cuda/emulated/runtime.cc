#include "runtime.h"

#include <cstdio>
#include <utility>

namespace gradclip::emulated_cuda {
namespace {

uint64_t resets = 0;

std::unique_ptr<Runtime>& Pointer() {
  static auto& runtime = *new std::unique_ptr<Runtime>;
  return runtime;
}

}  // namespace

std::mutex& RuntimeMutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}

Runtime& TheRuntime() {
  if (Pointer() == nullptr) ReplaceRuntime({});
  return *Pointer();
}

void ReplaceRuntime(const Options& options) {
  ++resets;
  Pointer() = nullptr;
  Pointer() = std::make_unique<Runtime>(options);
}

uintptr_t NewHandle() {
  static uintptr_t last = 0x1000;
  return last += 0x10;
}

ThreadState& ThisThread() {
  thread_local ThreadState state;
  thread_local uint64_t reset = 0;
  if (std::exchange(reset, resets) != resets) state = {};
  return state;
}

Runtime::Runtime(const Options& options)
    : options(options),
      memory(options.devices.size()),
      random(options.seed),
      devices(options.devices.size()) {
  for (size_t i = 0; i < devices.size(); ++i) {
    devices[i].default_stream = std::make_shared<Stream>();
    devices[i].default_stream->device = static_cast<int>(i);
  }
}

Runtime::~Runtime() = default;

int Runtime::device() const {
  return ThisThread().device;
}

cudaError_t Runtime::Begin(const char* name, CallKind kind) {
  calls.emplace_back(name);
  work_error_ = cudaSuccess;
  cudaError_t planned = cudaSuccess;
  const bool has_device = static_cast<size_t>(device()) < devices.size();
  for (size_t i = 0; i < failures.size();) {
    PlannedFailure& failure = failures[i];
    const bool counts = failure.name.empty() || failure.name == name;
    const bool due = counts && failure.calls_before == 0;
    if (counts && failure.calls_before > 0) --failure.calls_before;
    if (!due || (failure.in_work && kind != CallKind::kWork)) {
      ++i;
      continue;
    }
    if (failure.in_work) {
      work_error_ = failure.error;
      work_sticky_ = failure.sticky;
    } else {
      planned = failure.error;
      if (failure.sticky && has_device) devices[static_cast<size_t>(device())].sticky = planned;
    }
    failures.erase(failures.begin() + static_cast<ptrdiff_t>(i));
  }
  if (planned != cudaSuccess || kind == CallKind::kVersion) return planned;
  if (options.driver_version < 13000) return cudaErrorInsufficientDriver;
  if (devices.empty()) return cudaErrorNoDevice;
  if (kind == CallKind::kQuery) return cudaSuccess;
  return devices[static_cast<size_t>(device())].sticky;
}

void Runtime::End() {
  if (options.mode == Mode::kEager) RunEverything();
  if (options.mode == Mode::kRandom) RunSome();
  memory.CloseAll();
}

void Runtime::Tell(const std::string& text) {
  message = text;
  std::fprintf(stderr, "emulated CUDA: %s\n", text.c_str());
}

std::shared_ptr<Stream> Runtime::FindStream(cudaStream_t handle) {
  if (devices.empty()) return nullptr;
  if (handle == nullptr || handle == cudaStreamLegacy) {
    return devices[static_cast<size_t>(device())].default_stream;
  }
  const auto found = streams.find(handle);
  return found == streams.end() ? nullptr : found->second;
}

Event* Runtime::FindEvent(cudaEvent_t handle) {
  const auto found = events.find(handle);
  return found == events.end() ? nullptr : &found->second;
}

std::vector<std::shared_ptr<Stream>> Runtime::StreamsOf(int device) const {
  std::vector<std::shared_ptr<Stream>> found{devices[static_cast<size_t>(device)].default_stream};
  for (const auto& [handle, stream] : streams) {
    if (stream->device == device) found.push_back(stream);
  }
  return found;
}

// The default stream and blocking streams of a device wait for each other.
void Runtime::OrderWithDefaultStream(const std::shared_ptr<Stream>& stream) {
  if (!stream->blocking) return;
  const auto& first = devices[static_cast<size_t>(stream->device)].default_stream;
  for (const auto& other : StreamsOf(stream->device)) {
    if (other == stream || !other->blocking || other->operations.empty()) continue;
    if (stream != first && other != first) continue;
    auto record = std::make_shared<Record>();
    record->stream = other;
    other->operations.push_back({.run = nullptr, .wait = nullptr, .record = record});
    stream->operations.push_back({.run = nullptr, .wait = record, .record = nullptr});
  }
}

std::shared_ptr<Record> Runtime::Enqueue(const std::shared_ptr<Stream>& stream,
                                         Operation operation) {
  OrderWithDefaultStream(stream);
  auto record = operation.record;
  if (record != nullptr) record->stream = stream;
  stream->operations.push_back(std::move(operation));
  return record;
}

void Runtime::EnqueueWork(const std::shared_ptr<Stream>& stream, std::function<void()> run) {
  if (work_error_ != cudaSuccess) {
    run = [this, device = stream->device, error = work_error_, sticky = work_sticky_] {
      FailWork(device, error, sticky);
    };
  }
  Enqueue(stream, {.run = std::move(run), .wait = nullptr, .record = nullptr});
}

void Runtime::RunOne(Stream& stream) {
  const Operation operation = std::move(stream.operations.front());
  stream.operations.pop_front();
  if (operation.wait != nullptr) RunUntil(*operation.wait);
  const cudaError_t sticky = devices[static_cast<size_t>(stream.device)].sticky;
  if (operation.run && sticky == cudaSuccess) operation.run();
  if (operation.record != nullptr) {
    operation.record->done = true;
    operation.record->when = std::chrono::steady_clock::now();
  }
}

void Runtime::RunAll(Stream& stream) {
  while (!stream.operations.empty()) RunOne(stream);
}

void Runtime::RunUntil(const Record& record) {
  while (!record.done) {
    const auto stream = record.stream.lock();
    if (stream == nullptr || stream->operations.empty()) return;
    RunOne(*stream);
  }
}

void Runtime::RunDevice(int device) {
  for (const auto& stream : StreamsOf(device)) RunAll(*stream);
}

void Runtime::RunEverything() {
  for (size_t i = 0; i < devices.size(); ++i) RunDevice(static_cast<int>(i));
}

void Runtime::RunSome() {
  for (uint64_t left = random() % 4; left > 0; --left) {
    std::vector<std::shared_ptr<Stream>> waiting;
    for (size_t i = 0; i < devices.size(); ++i) {
      for (const auto& stream : StreamsOf(static_cast<int>(i))) {
        if (!stream->operations.empty()) waiting.push_back(stream);
      }
    }
    if (waiting.empty()) return;
    RunOne(*waiting[random() % waiting.size()]);
  }
}

void Runtime::FailWork(int device, cudaError_t error, bool sticky) {
  DeviceState& state = devices[static_cast<size_t>(device)];
  if (sticky) {
    state.sticky = error;
  } else if (state.unreported == cudaSuccess) {
    state.unreported = error;
  }
}

cudaError_t Runtime::Waited(int device) {
  DeviceState& state = devices[static_cast<size_t>(device)];
  if (state.sticky != cudaSuccess) return state.sticky;
  return std::exchange(state.unreported, cudaSuccess);
}

}  // namespace gradclip::emulated_cuda
