#include "tests/server/backend/environments.h"

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

namespace gradclip {
namespace {

#ifdef __x86_64__
void SetControlRegister(uint64_t control) {
  _mm_setcsr(static_cast<unsigned>(control));
}
#else
void SetControlRegister(uint64_t control) {
  asm volatile("msr fpcr, %0" ::"r"(control));
}
#endif

}  // namespace

#ifdef __x86_64__
uint64_t ControlRegister() {
  return _mm_getcsr() & 0xffc0;
}

std::vector<std::pair<const char*, uint64_t>> Environments() {
  return {{"default", 0x1f80}, {"FTZ", 0x9f80}, {"DAZ", 0x1fc0},          {"FTZ and DAZ", 0x9fc0},
          {"down", 0x3f80},    {"up", 0x5f80},  {"towards zero", 0x7f80}, {"all", 0xffc0}};
}
#else
uint64_t ControlRegister() {
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}

std::vector<std::pair<const char*, uint64_t>> Environments() {
  return {{"default", 0},    {"FZ", 1 << 24},           {"up", 1 << 22},
          {"down", 2 << 22}, {"towards zero", 3 << 22}, {"FZ and up", 5 << 22}};
}
#endif

Environment::Environment(uint64_t control) : saved_(ControlRegister()) {
  SetControlRegister(control);
}

Environment::~Environment() {
  SetControlRegister(saved_);
}

}  // namespace gradclip
