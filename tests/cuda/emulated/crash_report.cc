#include "crash_report.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "device_language.h"
#include "sanitizers.h"

namespace gradclip::emulated_cuda {

#if defined(EMULATED_CUDA_ASAN) || defined(EMULATED_CUDA_TSAN)

CrashReport::CrashReport() = default;
CrashReport::~CrashReport() = default;

#else

namespace {

struct sigaction previous;
constinit thread_local bool runs_kernel = false;

void Report(int, siginfo_t* info, void*) {
  if (runs_kernel) {
    char text[256];
    const int length = std::snprintf(
        text, sizeof text,
        "emulated CUDA: a kernel touches %p, which its device may not; block (%u, %u, %u), thread "
        "(%u, %u, %u)\n",
        info->si_addr, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    [[maybe_unused]] const ssize_t written = write(2, text, static_cast<size_t>(length));
  }
  // The instruction runs again, and ends the process as it would have.
  sigaction(SIGSEGV, &previous, nullptr);
}

}  // namespace

CrashReport::CrashReport() {
  runs_kernel = true;
  struct sigaction action = {};
  action.sa_sigaction = &Report;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous);
}

CrashReport::~CrashReport() {
  sigaction(SIGSEGV, &previous, nullptr);
  runs_kernel = false;
}

#endif

}  // namespace gradclip::emulated_cuda
