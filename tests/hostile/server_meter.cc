#include "tests/hostile/server_meter.h"

#include <ctime>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace gradclip::hostile {
namespace {

absl::Duration TimeOf(clockid_t clock) {
  timespec time = {};
  if (clock_gettime(clock, &time) != 0) return absl::ZeroDuration();
  return absl::DurationFromTimespec(time);
}

}  // namespace

bool IsRunning(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string word;
  // The name in parentheses has no space in it.
  file >> word >> word >> word;
  return file && word != "Z" && word != "X";
}

absl::Duration ProcessorTime(pid_t pid) {
  clockid_t clock = 0;
  if (clock_getcpuclockid(pid, &clock) != 0) return absl::ZeroDuration();
  return TimeOf(clock);
}

absl::Duration ProcessorTimeOfThisThread() {
  return TimeOf(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t ResidentBytes(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  uint64_t size = 0;
  uint64_t resident = 0;
  file >> size >> resident;
  constexpr uint64_t kPageBytes = 4096;
  return resident * kPageBytes;
}

PeakMemory::PeakMemory(pid_t pid)
    : peak_(ResidentBytes(pid)), thread_([this, pid] {
        while (!stop_) {
          peak_ = std::max<uint64_t>(peak_, ResidentBytes(pid));
          absl::SleepFor(absl::Milliseconds(5));
        }
      }) {}

PeakMemory::~PeakMemory() {
  stop_ = true;
  thread_.join();
}

}  // namespace gradclip::hostile
