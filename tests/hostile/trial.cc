#include "tests/hostile/trial.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "tests/hostile/server_meter.h"

namespace gradclip::hostile {
namespace {

constexpr absl::Duration kAttackTime = absl::Seconds(8);

std::string BytesText(uint64_t bytes) {
  if (bytes < 10'000) return absl::StrFormat("%d B", bytes);
  if (bytes < 1'000'000) return absl::StrFormat("%.1f kB", static_cast<double>(bytes) / 1e3);
  return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

// Three digits, or "-" where there is nothing to divide by.
std::string RatioText(double value, double by) {
  if (by <= 0) return "-";
  const double ratio = value / by;
  return absl::StrFormat("%.*f", ratio < 10 ? 2 : ratio < 100 ? 1 : 0, ratio);
}

std::string MillisecondsText(absl::Duration duration) {
  const double milliseconds = absl::ToDoubleMilliseconds(duration);
  return absl::StrFormat("%.*f", milliseconds < 10 ? 1 : 0, milliseconds);
}

uint64_t Above(uint64_t value, uint64_t base) {
  return value > base ? value - base : 0;
}

// Until the server has done what it was sent, and does little more than answer the probe; or 10 s.
void AwaitQuiet(Attacker& attacker, pid_t pid) {
  const absl::Time latest = absl::Now() + absl::Seconds(10);
  while (absl::Now() < latest) {
    const absl::Time begin = absl::Now();
    const absl::Duration used = ProcessorTime(pid);
    attacker.Settle();
    if (ProcessorTime(pid) - used < (absl::Now() - begin) / 10) return;
  }
}

}  // namespace

Figures RunTrial(const Attack& attack, const std::string& address, pid_t pid) {
  Figures figures;
  // The first call makes what the server keeps.
  ClipOnce(address, absl::Seconds(5)).IgnoreError();
  const uint64_t resident = ResidentBytes(pid);
  const absl::Duration server_time = ProcessorTime(pid);
  Attacker attacker(address, absl::Now() + kAttackTime);
  {
    const PeakMemory memory(pid);
    const Probe probe(address);
    const absl::Time begin = absl::Now();
    const absl::Duration attacker_time = ProcessorTimeOfThisThread();
    const absl::Status ran = attack.run(attacker);
    figures.attacker_time = ProcessorTimeOfThisThread() - attacker_time;
    AwaitQuiet(attacker, pid);
    figures.wall = absl::Now() - begin;
    if (!ran.ok() && !absl::IsUnavailable(ran)) attacker.Note(std::string(ran.message()));
    figures.server_time = std::max(absl::ZeroDuration(), ProcessorTime(pid) - server_time);
    figures.peak_bytes = Above(memory.peak_bytes(), resident);
    figures.during = probe.seen();
    figures.sent_bytes = attacker.sent_bytes();
    figures.remarks = attacker.Remarks();
  }
  attacker.CloseAll();
  const absl::Time left = absl::Now();
  while (absl::Now() - left < absl::Seconds(5) && !figures.after.has_value()) {
    if (ClipOnce(address, absl::Seconds(2)).ok()) figures.after = absl::Now() - left;
    absl::SleepFor(absl::Milliseconds(20));
  }
  AwaitQuiet(attacker, pid);
  absl::SleepFor(absl::Seconds(1) - std::min(absl::Seconds(1), absl::Now() - left));
  figures.left_bytes = Above(ResidentBytes(pid), resident);
  figures.died = !IsRunning(pid);
  return figures;
}

std::string TableHead() {
  return absl::StrFormat("| %-22s | %8s | %8s | %8s | %5s | %9s | %5s | %9s | %-16s | %8s | %s |\n",
                         "attack", "sent", "its ms", "our ms", "ratio", "held", "ratio", "left",
                         "others answered", "after ms", "what happened") +
         "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|---|\n";
}

std::string TableRow(const Attack& attack, const Figures& figures) {
  std::string others = absl::StrFormat("%d/%d", figures.during.answered, figures.during.asked);
  if (figures.during.answered > 0) {
    absl::StrAppend(&others, ", ", MillisecondsText(figures.during.longest), " ms");
  }
  return absl::StrFormat(
      "| %-22s | %8s | %8s | %8s | %5s | %9s | %5s | %9s | %-16s | %8s | %s |\n", attack.name,
      BytesText(figures.sent_bytes), MillisecondsText(figures.attacker_time),
      MillisecondsText(figures.server_time),
      RatioText(absl::ToDoubleSeconds(figures.server_time),
                absl::ToDoubleSeconds(figures.attacker_time)),
      BytesText(figures.peak_bytes),
      RatioText(static_cast<double>(figures.peak_bytes), static_cast<double>(figures.sent_bytes)),
      BytesText(figures.left_bytes), others,
      figures.after.has_value() ? MillisecondsText(*figures.after) : "never",
      figures.died ? absl::StrCat("THE SERVER DIED; ", figures.remarks) : figures.remarks);
}

}  // namespace gradclip::hostile
