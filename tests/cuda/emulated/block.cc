#include "block.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "device_language.h"
#include "fiber.h"
#include "sanitizers.h"

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim{};
constinit thread_local dim3 gridDim{};

namespace gradclip::emulated_cuda {
namespace {

using device::WarpOperation;

constexpr size_t kWarp = 32;
// What a lane gets that reads one outside the mask; as a float or double it is a NaN.
constexpr uint64_t kUndefined = ~uint64_t{0};

constexpr const char* kNames[] = {
    "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
    "__shfl_xor_sync",   "__ballot_sync",     "__any_sync",        "__all_sync",
    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
    "__reduce_or_sync",  "__reduce_xor_sync",
};

enum class State : uint8_t { kReady, kInWarpOperation, kInBarrier, kGone };

struct Thread {
  State state = State::kReady;
  WarpOperation operation = WarpOperation::kSyncwarp;
  unsigned mask = 0;
  int source = 0;
  uint64_t value = 0;
  uint64_t result = 0;
  uint3 index{};
};

struct KernelFault {
  cudaError_t error;
  std::string message;
};
// Unwinds the threads of a launch that another thread of it has ended.
struct Abandoned {};

std::string Text(dim3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string Hex(unsigned value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

// Out of line, for what runs at each operation keeps a small frame.
[[noreturn, gnu::noinline]] void FailWarp(WarpOperation operation, unsigned mask,
                                          const char* what) {
  FailKernel(cudaErrorLaunchFailure, std::string(kNames[static_cast<size_t>(operation)]) +
                                         ": the mask " + Hex(mask) + " " + what);
}

// One block after another, on the same fibers.
class Grid {
 public:
  Grid(dim3 block, const std::function<void()>& body);

  void RunBlock(dim3 index, std::mt19937_64* random);
  const std::optional<KernelFault>& fault() const { return fault_; }

  uint64_t WarpWait(WarpOperation operation, unsigned mask, uint64_t value, int argument,
                    int width);
  unsigned BlockWait(unsigned value);
  unsigned ActiveMask() const;

 private:
  static void RunThread(size_t thread);
  void Pause(State state);
  size_t LaneCount(size_t warp) const { return std::min(kWarp, threads_.size() - warp * kWarp); }
  void CompleteWarp(size_t warp, WarpOperation operation, unsigned mask);
  void CompleteBarrier();
  void Leave(size_t thread);
  void ReportDeadlock();

  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  size_t running_ = 0;
  size_t present_ = 0;
  size_t in_barrier_ = 0;
  size_t barriers_ = 0;
  unsigned votes_ = 0;
  std::optional<KernelFault> fault_;
};

// Under the runtime's lock.
Grid* current = nullptr;

// For ThreadSanitizer the threads of a block are ordered by what orders them on a device, and by
// the block's start and end; so it sees what a missing barrier leaves unordered. This file itself
// is compiled without it.
struct OrderPoints {
  char start;
  char end;
  // In turns: who arrives at the next barrier early is not ordered before who leaves this one late.
  char barrier[2];
  char warp[32];
};
OrderPoints order_points;

Fiber& FiberOf(size_t thread) {
  static auto& fibers = *new std::vector<std::unique_ptr<Fiber>>;
  while (fibers.size() <= thread) fibers.push_back(std::make_unique<Fiber>());
  return *fibers[thread];
}

Grid::Grid(dim3 block, const std::function<void()>& body)
    : body_(body), threads_(size_t{block.x} * block.y * block.z) {
  size_t thread = 0;
  for (unsigned z = 0; z < block.z; ++z) {
    for (unsigned y = 0; y < block.y; ++y) {
      for (unsigned x = 0; x < block.x; ++x) threads_[thread++].index = {x, y, z};
    }
  }
}

void Grid::RunThread(size_t thread) {
  Acquire(&order_points.start);
  try {
    if (!current->fault_) current->body_();
  } catch (const KernelFault& fault) {
    if (!current->fault_) {
      current->fault_ = fault;
      current->fault_->message +=
          "; block " + Text(blockIdx) + ", thread " + Text(current->threads_[thread].index);
    }
  } catch (const Abandoned&) {
  } catch (...) {
    current->fault_ = KernelFault{cudaErrorLaunchFailure, "a kernel threw an exception"};
  }
  current->Leave(thread);
  Release(&order_points.end);
}

void Grid::RunBlock(dim3 index, std::mt19937_64* random) {
  blockIdx = index;
  present_ = threads_.size();
  in_barrier_ = 0;
  votes_ = 0;
  std::vector<size_t> order(threads_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].state = State::kReady;
    FiberOf(i).Start(&Grid::RunThread, i);
  }
  Release(&order_points.start);
  while (present_ > 0) {
    if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
    bool ran = false;
    for (const size_t thread : order) {
      if (threads_[thread].state != State::kReady) {
        if (!fault_ || threads_[thread].state == State::kGone) continue;
      }
      ran = true;
      running_ = thread;
      threadIdx = threads_[thread].index;
      FiberOf(thread).Resume();
    }
    if (!ran && !fault_) ReportDeadlock();
  }
  Acquire(&order_points.end);
}

void Grid::Pause(State state) {
  const size_t thread = running_;
  threads_[thread].state = state;
  Fiber::Suspend();
  if (fault_) throw Abandoned();
}

uint64_t Grid::WarpWait(WarpOperation operation, unsigned mask, uint64_t value, int argument,
                        int width) {
  const size_t warp = running_ / kWarp;
  const int lane = static_cast<int>(running_ % kWarp);
  if ((mask >> lane & 1) == 0) FailWarp(operation, mask, "does not name the calling lane");
  if (std::bit_width(mask) > LaneCount(warp)) {
    FailWarp(operation, mask, "names lanes that the last warp of this block lacks");
  }
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) {
    FailWarp(operation, mask, "comes with a width that is no power of two");
  }
  Thread& self = threads_[running_];
  const int first = lane & ~(width - 1);
  self.source = lane;
  switch (operation) {
    case WarpOperation::kShuffle:
      self.source = first + (argument & (width - 1));
      break;
    case WarpOperation::kShuffleUp:
      if (argument <= lane - first) self.source = lane - argument;
      break;
    case WarpOperation::kShuffleDown:
      if (argument < first + width - lane) self.source = lane + argument;
      break;
    case WarpOperation::kShuffleXor:
      if ((lane ^ argument) < first + width) self.source = lane ^ argument;
      break;
    default:
      break;
  }
  self.operation = operation;
  self.mask = mask;
  self.value = value;
  self.state = State::kInWarpOperation;
  // Of warp operations this one alone orders memory.
  const bool orders = operation == WarpOperation::kSyncwarp;
  if (orders) Release(&order_points.warp[warp]);
  CompleteWarp(warp, operation, mask);
  if (self.state != State::kReady) Pause(State::kInWarpOperation);
  if (orders) Acquire(&order_points.warp[warp]);
  return self.result;
}

// What an operation gives every lane of the mask alike.
uint64_t Reduce(WarpOperation operation, const Thread* lanes, unsigned here) {
  const auto over = [lanes, here](uint64_t result, auto combine) {
    for (unsigned rest = here; rest != 0; rest &= rest - 1) {
      result = combine(result, lanes[std::countr_zero(rest)].value);
    }
    return result;
  };
  const auto votes = [lanes, here] {
    unsigned mask = 0;
    for (unsigned rest = here; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      if (lanes[lane].value != 0) mask |= 1u << lane;
    }
    return mask;
  };
  switch (operation) {
    case WarpOperation::kBallot:
      return votes();
    case WarpOperation::kAny:
      return votes() != 0;
    case WarpOperation::kAll:
      return votes() == here;
    case WarpOperation::kAdd:
      return over(0, std::plus<>());
    case WarpOperation::kMin:
      return over(kUndefined, [](uint64_t a, uint64_t b) { return std::min(a, b); });
    case WarpOperation::kMax:
      return over(0, [](uint64_t a, uint64_t b) { return std::max(a, b); });
    case WarpOperation::kAnd:
      return over(kUndefined, std::bit_and<>());
    case WarpOperation::kOr:
      return over(0, std::bit_or<>());
    case WarpOperation::kXor:
      return over(0, std::bit_xor<>());
    default:
      return 0;
  }
}

bool IsShuffle(WarpOperation operation) {
  return operation >= WarpOperation::kShuffle && operation <= WarpOperation::kShuffleXor;
}

// Where all lanes of the mask are in this operation or gone, gives each its result.
void Grid::CompleteWarp(size_t warp, WarpOperation operation, unsigned mask) {
  Thread* const lanes = &threads_[warp * kWarp];
  unsigned here = 0;
  // From the last lane, which mostly arrives last.
  for (unsigned rest = mask; rest != 0;) {
    const int lane = 31 - std::countl_zero(rest);
    rest &= ~(1u << lane);
    const Thread& other = lanes[lane];
    if (other.state == State::kGone) continue;
    if (other.state != State::kInWarpOperation || other.operation != operation ||
        other.mask != mask) {
      return;
    }
    here |= 1u << lane;
  }
  const bool shuffle = IsShuffle(operation);
  const uint64_t common = shuffle ? 0 : Reduce(operation, lanes, here);
  for (unsigned rest = here; rest != 0; rest &= rest - 1) {
    Thread& lane = lanes[std::countr_zero(rest)];
    lane.state = State::kReady;
    lane.result = common;
    if (shuffle) {
      lane.result = (here >> lane.source & 1) != 0 ? lanes[lane.source].value : kUndefined;
    }
  }
}

unsigned Grid::BlockWait(unsigned value) {
  Thread& self = threads_[running_];
  self.state = State::kInBarrier;
  votes_ += value;
  ++in_barrier_;
  char* const point = &order_points.barrier[barriers_ % 2];
  Release(point);
  CompleteBarrier();
  if (self.state != State::kReady) Pause(State::kInBarrier);
  Acquire(point);
  return static_cast<unsigned>(self.result);
}

void Grid::CompleteBarrier() {
  if (in_barrier_ == 0 || in_barrier_ < present_) return;
  for (Thread& thread : threads_) {
    if (thread.state != State::kInBarrier) continue;
    thread.state = State::kReady;
    thread.result = votes_;
  }
  in_barrier_ = 0;
  votes_ = 0;
  ++barriers_;
}

unsigned Grid::ActiveMask() const {
  const size_t warp = running_ / kWarp;
  unsigned mask = 0;
  for (size_t lane = 0; lane < LaneCount(warp); ++lane) {
    if (threads_[warp * kWarp + lane].state != State::kGone) mask |= 1u << lane;
  }
  return mask;
}

// A thread that is gone may be the last that others waited for.
void Grid::Leave(size_t thread) {
  threads_[thread].state = State::kGone;
  --present_;
  if (fault_) return;
  const size_t warp = thread / kWarp;
  for (size_t lane = 0; lane < LaneCount(warp); ++lane) {
    const Thread& other = threads_[warp * kWarp + lane];
    if (other.state == State::kInWarpOperation && (other.mask >> thread % kWarp & 1) != 0) {
      CompleteWarp(warp, other.operation, other.mask);
    }
  }
  CompleteBarrier();
}

void Grid::ReportDeadlock() {
  std::string message = "threads wait for each other and none can go on; block " + Text(blockIdx);
  size_t told = 0;
  State last = State::kGone;
  for (const Thread& thread : threads_) {
    if (thread.state == State::kGone) continue;
    // The first of each run of threads that wait alike.
    if (thread.state == last && thread.state == State::kInBarrier) continue;
    last = thread.state;
    if (++told > 4) break;
    message += "; thread " + Text(thread.index) + " is in ";
    message += thread.state == State::kInBarrier
                   ? std::string("__syncthreads")
                   : kNames[static_cast<size_t>(thread.operation)] + std::string(" with mask ") +
                         Hex(thread.mask);
  }
  fault_ = KernelFault{cudaErrorLaunchFailure, message};
}

}  // namespace

KernelResult RunGrid(dim3 grid, dim3 block, const std::function<void()>& body,
                     std::mt19937_64* random) {
  // A device rounds to nearest and keeps subnormals, whatever the host's thread does.
  std::fenv_t environment;
  std::fegetenv(&environment);
  std::fesetenv(FE_DFL_ENV);
  Grid running(block, body);
  current = &running;
  blockDim = block;
  gridDim = grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t first = random != nullptr ? (*random)() % blocks : 0;
  const bool descending = random != nullptr && (*random)() % 2 == 1;
  for (uint64_t i = 0; i < blocks && !running.fault(); ++i) {
    const uint64_t b = (first + (descending ? blocks - i : i)) % blocks;
    running.RunBlock({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                      static_cast<unsigned>(b / grid.x / grid.y)},
                     random);
  }
  current = nullptr;
  std::fesetenv(&environment);
  if (!running.fault()) return {};
  return {running.fault()->error, running.fault()->message};
}

void FailKernel(cudaError_t error, const std::string& message) {
  if (current == nullptr) {
    std::fprintf(stderr, "emulated CUDA: device code called by the host: %s\n", message.c_str());
    std::abort();
  }
  throw KernelFault{error, message};
}

namespace device {
namespace {

Grid& Current() {
  if (current == nullptr) FailKernel(cudaErrorLaunchFailure, "a barrier or warp operation");
  return *current;
}

}  // namespace

uint64_t WarpWait(WarpOperation operation, unsigned mask, uint64_t value, int argument, int width) {
  return Current().WarpWait(operation, mask, value, argument, width);
}
unsigned BlockWait(unsigned value) {
  return Current().BlockWait(value);
}
unsigned ActiveMask() {
  return Current().ActiveMask();
}

}  // namespace device
}  // namespace gradclip::emulated_cuda
