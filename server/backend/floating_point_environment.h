// The default floating-point environment (round to nearest, subnormals kept, no traps) for as long
// as the object lives. Affects the thread that makes it, which must destroy it.
#ifndef GRADCLIP_SERVER_BACKEND_FLOATING_POINT_ENVIRONMENT_H_
#define GRADCLIP_SERVER_BACKEND_FLOATING_POINT_ENVIRONMENT_H_

#include <cstdint>

// Marks a function that computes and must do so between the constructor and the destructor of a
// FloatingPointEnvironment: compilers don't know that arithmetic depends on it and may move
// inlined arithmetic past either. Such a function reads its input through a pointer or reference to
// memory that isn't local to its caller, so that its call can't be moved either.
#define GRADCLIP_OUT_OF_LINE __attribute__((noinline))

namespace gradclip {

// Costs about 2 ns where the caller's environment is the default one already. Both ends are out of
// line. Covers MXCSR on x86-64 (not the x87 unit) and FPCR on AArch64.
class FloatingPointEnvironment {
 public:
  FloatingPointEnvironment();
  ~FloatingPointEnvironment();
  FloatingPointEnvironment(const FloatingPointEnvironment&) = delete;
  FloatingPointEnvironment& operator=(const FloatingPointEnvironment&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_FLOATING_POINT_ENVIRONMENT_H_
