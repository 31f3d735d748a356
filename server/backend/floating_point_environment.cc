#include "server/backend/floating_point_environment.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#error "How to save and set this processor's floating-point environment is not known"
#endif

namespace gradclip {
namespace {

#if defined(__x86_64__)
// The sticky exception flags (bits 0 to 5) decide nothing and are left as they are.
constexpr uint64_t kControlBits = 0xffc0;
constexpr uint64_t kDefault = 0x1f80;  // all exceptions masked, to nearest, no FTZ, no DAZ

uint64_t Get() {
  return _mm_getcsr();
}
void Set(uint64_t control) {
  _mm_setcsr(static_cast<unsigned>(control));
}
#else
// AHP, DN, FZ, rounding mode, FZ16, traps, and FEAT_AFP's NEP, AH and FIZ.
constexpr uint64_t kControlBits = 0x07c89f07;
constexpr uint64_t kDefault = 0;

uint64_t Get() {
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
void Set(uint64_t control) {
  asm volatile("msr fpcr, %0" ::"r"(control));
}
#endif

}  // namespace

FloatingPointEnvironment::FloatingPointEnvironment() : saved_(Get()) {
  if ((saved_ & kControlBits) != kDefault) Set((saved_ & ~kControlBits) | kDefault);
}

FloatingPointEnvironment::~FloatingPointEnvironment() {
  if ((saved_ & kControlBits) != kDefault) Set(saved_);
}

}  // namespace gradclip
