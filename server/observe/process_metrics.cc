#include "server/observe/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>

namespace gradclip {
namespace {

// What /proc/self/stat says (proc(5)).
struct Stat {
  uint64_t user_ticks = 0;
  uint64_t system_ticks = 0;
  uint64_t start_ticks = 0;  // since the machine was started
  uint64_t virtual_bytes = 0;
  uint64_t resident_pages = 0;
};

std::optional<Stat> ReadStat() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  // The second field is the program's name in brackets, and may hold anything.
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  constexpr int kFirst = 3;
  constexpr int kUserTicks = 14;
  constexpr int kSystemTicks = 15;
  constexpr int kStartTicks = 22;
  constexpr int kVirtualBytes = 23;
  constexpr int kResidentPages = 24;
  Stat stat;
  std::string word;
  for (int field = kFirst; field <= kResidentPages; ++field) {
    if (!(fields >> word)) return std::nullopt;
    const uint64_t value = std::strtoull(word.c_str(), nullptr, 10);
    if (field == kUserTicks) stat.user_ticks = value;
    if (field == kSystemTicks) stat.system_ticks = value;
    if (field == kStartTicks) stat.start_ticks = value;
    if (field == kVirtualBytes) stat.virtual_bytes = value;
    if (field == kResidentPages) stat.resident_pages = value;
  }
  return stat;
}

double TicksToSeconds(uint64_t ticks) {
  return static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// When the machine was started, in seconds since 1970; 0 where that can't be read.
double BootSeconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    constexpr char kName[] = "btime ";
    if (line.rfind(kName, 0) == 0) return std::strtod(line.c_str() + strlen(kName), nullptr);
  }
  return 0;
}

double StartSeconds() {
  const std::optional<Stat> stat = ReadStat();
  return stat.has_value() ? BootSeconds() + TicksToSeconds(stat->start_ticks) : 0;
}

std::optional<double> OpenDescriptors() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  if (folder == nullptr) return std::nullopt;
  double count = -1;  // the folder's own
  // readdir() is safe on a stream that no other thread has.
  while (const dirent* const entry = readdir(folder.get())) {
    if (entry->d_name[0] != '.') ++count;
  }
  return count;
}

}  // namespace

ProcessMetrics::ProcessMetrics() : start_seconds_(StartSeconds()) {}

void ProcessMetrics::Collect(Families& families) const {
  if (const std::optional<Stat> stat = ReadStat(); stat.has_value()) {
    AddCounter(families, "process_cpu_seconds_total",
               "Processor time in user and system mode, of all threads, in seconds.",
               TicksToSeconds(stat->user_ticks + stat->system_ticks));
    AddGauge(families, "process_virtual_memory_bytes", "Size of the address space in bytes.",
             static_cast<double>(stat->virtual_bytes));
    AddGauge(
        families, "process_resident_memory_bytes", "Memory that is resident, in bytes.",
        static_cast<double>(stat->resident_pages) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  }
  AddGauge(families, "process_start_time_seconds",
           "When the process was started, in seconds since 1970.", start_seconds_);
  if (const std::optional<double> open = OpenDescriptors(); open.has_value()) {
    AddGauge(families, "process_open_fds", "Open file descriptors.", *open);
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    AddGauge(families, "process_max_fds", "Most file descriptors that may be open.",
             static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace gradclip
