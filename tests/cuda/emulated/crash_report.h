// While alive, a touch of closed memory by this thread is told on stderr with the kernel's block
// and thread before it ends the process. Under a sanitizer it does nothing: their reports say more.
// Not thread-safe: one at a time.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CRASH_REPORT_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CRASH_REPORT_H_

namespace gradclip::emulated_cuda {

class CrashReport {
 public:
  CrashReport();
  ~CrashReport();
  CrashReport(const CrashReport&) = delete;
  CrashReport& operator=(const CrashReport&) = delete;
};

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CRASH_REPORT_H_
