// Floating-point environments that a caller may be in: FTZ, DAZ and every rounding mode. Affects
// the calling thread.
#ifndef GRADCLIP_TESTS_SERVER_BACKEND_ENVIRONMENTS_H_
#define GRADCLIP_TESTS_SERVER_BACKEND_ENVIRONMENTS_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace gradclip {

// The control register: MXCSR without its sticky flags, or FPCR.
uint64_t ControlRegister();

// Names and control registers, the default environment first.
std::vector<std::pair<const char*, uint64_t>> Environments();

// Sets a control register for as long as the object lives.
class Environment {
 public:
  explicit Environment(uint64_t control);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const uint64_t saved_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_BACKEND_ENVIRONMENTS_H_
