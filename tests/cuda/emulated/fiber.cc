#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"

// Saves what a called function must keep, on the stack, and goes on where `to` was saved.
extern "C" void gradclip_emulated_cuda_switch(void** from, void* to);
asm(R"(
.text
.type gradclip_emulated_cuda_switch, @function
.globl gradclip_emulated_cuda_switch
gradclip_emulated_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gradclip_emulated_cuda_switch, .-gradclip_emulated_cuda_switch
)");

namespace gradclip::emulated_cuda {
namespace {

constexpr size_t kGuardBytes = 4096;
// A stack grows by pages that are touched; sanitizers' frames are several times larger.
constexpr size_t kStackBytes = kAsan ? 256 << 10 : 64 << 10;

// The fiber that runs. Fibers run under one lock.
Fiber* running = nullptr;

}  // namespace

Fiber::Fiber() {
  mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED || mprotect(mapping_, kGuardBytes, PROT_NONE) != 0) {
    std::perror("emulated CUDA: no memory for a thread's stack");
    std::abort();
  }
  auto* const end =
      reinterpret_cast<void**>(static_cast<char*>(mapping_) + kGuardBytes + kStackBytes);
  // Where the first switch returns to, above six registers, and aligned as a call leaves it.
  end[-2] = reinterpret_cast<void*>(&Fiber::Run);
  stack_pointer_ = end - 8;
#ifdef EMULATED_CUDA_TSAN
  thread_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef EMULATED_CUDA_TSAN
  __tsan_destroy_fiber(thread_);
#endif
  Unpoison(mapping_, kGuardBytes + kStackBytes);
  munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::Start(Function function, size_t argument) {
  function_ = function;
  argument_ = argument;
  finished_ = false;
}

void Fiber::Resume() {
  running = this;
#ifdef EMULATED_CUDA_ASAN
  void* host_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&host_fake_stack, static_cast<char*>(mapping_) + kGuardBytes,
                                 kStackBytes);
#endif
#ifdef EMULATED_CUDA_TSAN
  host_thread_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
  gradclip_emulated_cuda_switch(&host_stack_pointer_, stack_pointer_);
#ifdef EMULATED_CUDA_ASAN
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::SwitchToHost() {
#ifdef EMULATED_CUDA_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, host_stack_, host_stack_bytes_);
#endif
#ifdef EMULATED_CUDA_TSAN
  __tsan_switch_to_fiber(host_thread_, __tsan_switch_to_fiber_no_sync);
#endif
  gradclip_emulated_cuda_switch(&stack_pointer_, host_stack_pointer_);
#ifdef EMULATED_CUDA_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &host_stack_, &host_stack_bytes_);
#endif
}

void Fiber::Suspend() {
  running->SwitchToHost();
}

void Fiber::Run() {
  Fiber* const self = running;
#ifdef EMULATED_CUDA_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self->host_stack_, &self->host_stack_bytes_);
#endif
  while (true) {
    self->function_(self->argument_);
    self->finished_ = true;
    self->SwitchToHost();
  }
}

}  // namespace gradclip::emulated_cuda
