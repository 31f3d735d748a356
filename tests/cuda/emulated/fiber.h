// A stack of its own on which a function runs until it suspends. Fibers are resumed by one host
// thread at a time, which may be another one each time. A few instructions switch; swapcontext
// would make a system call each time. The sanitizers are told of each switch, which orders nothing
// for ThreadSanitizer.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_FIBER_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_FIBER_H_

#include <cstddef>

namespace gradclip::emulated_cuda {

class Fiber {
 public:
  using Function = void (*)(size_t argument);

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // What runs at the next Resume. REQUIRES: finished(). The function must not throw.
  void Start(Function function, size_t argument);
  // Runs until the function suspends or returns.
  void Resume();
  bool finished() const { return finished_; }

  // Back to who resumed. REQUIRES: called on a fiber.
  static void Suspend();

 private:
  static void Run();
  void SwitchToHost();

  Function function_ = nullptr;
  size_t argument_ = 0;
  bool finished_ = true;
  void* mapping_ = nullptr;
  void* stack_pointer_ = nullptr;
  void* host_stack_pointer_ = nullptr;
  // For the sanitizers, whichever there is.
  [[maybe_unused]] void* thread_ = nullptr;
  [[maybe_unused]] void* host_thread_ = nullptr;
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] const void* host_stack_ = nullptr;
  [[maybe_unused]] size_t host_stack_bytes_ = 0;
};

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_FIBER_H_
