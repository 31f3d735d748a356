// A CUDA runtime for tests, on the host: kernels and host code that are written for CUDA are
// compiled as C++ against the headers of this folder (gradclip_emulated_cuda() of
// cmake/emulated_cuda.cmake) and run without a GPU. The threads of a block are fibers; blocks and
// launches run one after another.
//
// What it shows: whether a kernel's indexing, order of lanes, warp operations, barriers and
// arithmetic are right; accesses beyond an allocation; memory touched from the wrong side (device
// memory by the host, pageable memory by copies and by what kernels are given); host code's error
// paths, by failures that a test asks for at any call; resources left behind; and waits that are
// missing, for queued work runs only when something waits for it. Built with ThreadSanitizer, also
// accesses of a block's threads that no __syncthreads, __syncwarp or atomic orders.
//
// What it cannot show: races between blocks, streams or devices as hardware has them (kRandom runs
// them in other orders, but each thread runs alone until its next barrier or warp operation); weak
// memory order; timing and performance; registers, occupancy and the size of shared memory; reads
// of uninitialised shared memory; dynamic shared memory; how a real driver behaves beyond its
// documentation; a host thread that touches device memory while another one runs work; and a plain
// load or store of pageable memory in a kernel (launch arguments that are pointers, and accesses by
// __ldg, __ldcs, __stcs and their like, are held against the memory that a device may touch).
//
// Where it is stricter than CUDA: cudaMemcpyAsync refuses pageable memory and a kind that the
// pointers contradict; launch attributes are not supported; a warp operation whose mask names lanes
// that the block lacks fails the launch. Lanes that have returned count as gone: operations do not
// wait for them, and a shuffle from one gives all bits set. __activemask gives all lanes that have
// not returned. A kernel that is noexcept ends the process where a launch would fail. Shared memory
// keeps what the block before left.
// IPC handles are opened by other processes, too, where those may use the exporter's descriptors
// (/proc/PID/fd), and work on what they open is real work on the same memory.
//
// Where it is laxer: a process may open its own IPC handles, which get an address of their own as
// if another process had exported them. A handle whose memory another process has freed is opened
// as long as that process lives; the memory has zeros then.
//
// A launch that fails says why on stderr and in LastMessage(). An access that reaches a page a
// device may not touch ends the process by SIGSEGV, with a line on stderr that names block and
// thread, or by a sanitizer's report at the kernel's line. A store closer to an allocation ends the
// process in AddressSanitizer; otherwise the launch fails, once it has run, with
// cudaErrorIllegalAddress.
//
// Thread-safe, but for Reset: REQUIRES that no other thread is in the runtime. One lock is held
// while work runs. Work runs on the host thread that waits for it.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_EMULATED_CUDA_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_EMULATED_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime_types.h"

namespace gradclip::emulated_cuda {

struct Device {
  std::string name = "Emulated GPU";
  // Bytes; cudaMalloc beyond them fails.
  size_t memory = size_t{256} << 20;
  int multiprocessors = 4;
  int major = 9;
  int minor = 0;
  int l2_cache_bytes = 4 << 20;
  // Without, launches and cudaFuncGetAttributes fail with cudaErrorNoKernelImageForDevice.
  bool has_kernel_image = true;
};

enum class Mode {
  // Work runs when something waits for it, in stream order.
  kLazy,
  // Work runs before the call that queues it returns.
  kEager,
  // After each call some queued work may run; streams, blocks and threads take turns. Drawn from
  // the seed.
  kRandom,
};

struct Options {
  std::vector<Device> devices = std::vector<Device>(1);
  Mode mode = Mode::kLazy;
  uint64_t seed = 1;
  // 0: no driver is installed. Less than 13000: one that is too old.
  int driver_version = 13000;
};

// Forgets everything, failures included, and frees all memory: the state at the start of a process.
// The next handles differ from all earlier ones.
void Reset(const Options& options = {});

// The names of the runtime's calls since Reset or ForgetCalls, in order. Not counted, for they
// cannot fail: cudaGetErrorName, cudaGetErrorString, cudaGetLastError, cudaPeekAtLastError.
std::vector<std::string> Calls();
size_t CallCount();
void ForgetCalls();

// The n-th call from the last Reset or ForgetCalls on (the first is 1) does nothing and returns
// `error`. A call that releases something does release it and then returns the error, as CUDA's do
// that report earlier work. A sticky error is returned by every later call that touches the device
// that was current, until Reset; work that is queued there is dropped.
void FailAt(size_t n, cudaError_t error, bool sticky = false);
// The same for the n-th call of one function.
void FailCall(const std::string& name, size_t n, cudaError_t error, bool sticky = false);
// The first launch, copy or memset from the n-th call on is accepted, does nothing, and fails when
// its turn comes: the next call that waits for its device returns the error.
void FailWorkAt(size_t n, cudaError_t error, bool sticky = false);
// Failures that have not come yet are called off.
void ClearFailures();

// The device does no work and cudaStreamQuery and cudaEventQuery say that it is not done, until
// Resume() or Reset(). REQUIRES: kLazy, and that nothing else waits for it.
void Hang(int device);
void Resume(int device);

// What is alive, of all devices.
struct Live {
  size_t device_allocations = 0;
  size_t device_bytes = 0;
  size_t pinned_allocations = 0;
  size_t registered_ranges = 0;
  size_t streams = 0;
  size_t events = 0;
  size_t ipc_mappings = 0;
  bool operator==(const Live&) const = default;
};
Live CountLive();

// Operations that are queued and have not run, of all streams.
size_t PendingWork();
// Runs all that is queued, as a device does by itself sooner or later.
void RunPendingWork();

// What the last misuse or failed launch was; empty if none was since Reset.
std::string LastMessage();

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_EMULATED_CUDA_H_
