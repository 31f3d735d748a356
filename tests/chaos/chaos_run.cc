#include "tests/chaos/chaos_run.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace gradclip {
namespace {

// Of a whole run's steps, with nothing failing any more.
constexpr absl::Duration kLongestRest = absl::Minutes(2);
constexpr absl::Duration kLongestStep = absl::Milliseconds(500);

std::string MakeFolder() {
  std::string folder = (std::filesystem::temp_directory_path() / "gradclip-chaos-XXXXXX").string();
  EXPECT_NE(mkdtemp(folder.data()), nullptr);
  return folder;
}

bool HasEnded(const Process& process) {
  siginfo_t info = {};
  return waitid(P_PID, process.pid(), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

}  // namespace

ChaosRun::ChaosRun(std::string server, uint64_t seed, uint64_t steps)
    : program_(std::move(server)),
      seed_(seed),
      steps_(steps),
      folder_(MakeFolder()),
      redis_({"--appendonly", "yes", "--appendfsync", "always"}) {
  for (uint32_t i = 0; i < kServers; ++i) {
    addresses_[i] = "127.0.0.1:0";
    StartServer(i);
    victims_[Fault::Target::kServer].push_back(
        MakeVictim(servers_[i], [this, i] { StartServer(i); }));
  }
  for (uint32_t i = 0; i < kRanks; ++i) {
    StartRank(i);
    victims_[Fault::Target::kRank].push_back(MakeVictim(ranks_[i], [this, i] { StartRank(i); }));
  }
  victims_[Fault::Target::kRedis].push_back({.kill = [this] { redis_.Kill(); },
                                             .start = [this] { redis_.Start(); },
                                             .freeze = [this] { redis_.Freeze(); },
                                             .thaw = [this] { redis_.Thaw(); }});
}

ChaosRun::~ChaosRun() {
  for (auto& rank : ranks_) rank.reset();
  for (auto& server : servers_) server.reset();
  if (testing::Test::HasFailure()) {
    std::printf("The ranks' histories are in %s\n", folder_.c_str());
    return;
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

ChaosRun::Victim ChaosRun::MakeVictim(std::unique_ptr<Process>& process,
                                      std::function<void()> start) {
  return {.kill = [&process] { process.reset(); },
          .start = std::move(start),
          .freeze = [&process] { process->Signal(SIGSTOP); },
          .thaw = [&process] { process->Signal(SIGCONT); }};
}

void ChaosRun::StartServer(uint32_t server) {
  const std::vector<std::string> arguments = {
      "--listen=" + addresses_[server],
      absl::StrCat("--group-store=redis://127.0.0.1:", redis_.port()), "--group-reconnect-grace=1s",
      "--compute-threads=1", "--log-level=error"};
  // Its port is taken for a moment where a connection to another has happened to get it.
  for (int tries = 0; tries < 100; ++tries) {
    servers_[server] = std::make_unique<Process>(program_, arguments);
    const std::string line = servers_[server]->ReadLine();
    absl::string_view address = line;
    if (absl::ConsumePrefix(&address, "listening on ")) {
      addresses_[server] = std::string(address);
      return;
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
  ADD_FAILURE() << program_ << " does not start";
}

void ChaosRun::StartRank(uint32_t rank) {
  std::vector<std::string> addresses;
  for (uint32_t i = 0; i < kServers; ++i) addresses.push_back(addresses_[(rank + i) % kServers]);
  ranks_[rank] = std::make_unique<Process>(
      "gradclip-chaos-rank",
      std::vector<std::string>{"--servers", absl::StrJoin(addresses, ","), "--history",
                               HistoryOf(rank), "--rank", absl::StrCat(rank), "--world-size",
                               absl::StrCat(kRanks), "--steps", absl::StrCat(steps_), "--seed",
                               absl::StrCat(seed_)});
}

std::string ChaosRun::HistoryOf(uint32_t rank) const {
  return absl::StrCat(folder_, "/rank-", rank);
}

std::vector<std::string> ChaosRun::Run(absl::Duration faults, const std::function<bool()>& enough) {
  enough_ = enough;
  const absl::Time start = absl::Now();
  for (const Fault& fault : PlanFaults(seed_, kRanks, kServers, faults)) {
    if (!WaitUntil(start + fault.at)) break;
    Cause(fault);
  }
  while (!heals_.empty()) HealNext();
  WaitUntil(absl::Now() + kLongestRest + kLongestStep * static_cast<int64_t>(steps_));
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    if (!has_ended_[rank]) gave_up_.push_back(absl::StrCat("rank ", rank, " has not ended"));
  }
  return gave_up_;
}

void ChaosRun::Cause(const Fault& fault) {
  NoteServersThatEnded();
  Victim& victim = victims_[fault.target][fault.index];
  if (!victim.is_whole) return;
  victim.is_whole = false;
  (fault.is_kill ? victim.kill : victim.freeze)();
  heals_.emplace(absl::Now() + fault.lasts, [&victim, is_kill = fault.is_kill] {
    (is_kill ? victim.start : victim.thaw)();
    victim.is_whole = true;
  });
  ++caused_[{fault.target, fault.is_kill}];
}

void ChaosRun::HealNext() {
  const std::function<void()> heal = std::move(heals_.begin()->second);
  heals_.erase(heals_.begin());
  heal();
}

bool ChaosRun::WaitUntil(absl::Time time) {
  while (absl::Now() < time) {
    NoteServersThatEnded();
    if (!AnyRankRuns() || !gave_up_.empty() || IsEnough()) return false;
    if (!heals_.empty() && heals_.begin()->first <= absl::Now()) {
      HealNext();
    } else {
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return true;
}

bool ChaosRun::IsEnough() {
  if (absl::Now() < ask_next_) return false;
  ask_next_ = absl::Now() + absl::Seconds(1);
  return enough_();
}

// By themselves: a crash, or what a sanitizer found.
void ChaosRun::NoteServersThatEnded() {
  for (uint32_t i = 0; i < kServers; ++i) {
    Victim& victim = victims_[Fault::Target::kServer][i];
    if (!victim.is_whole || !HasEnded(*servers_[i])) continue;
    victim.is_whole = false;
    const int status = servers_[i]->Wait();
    gave_up_.push_back(
        absl::StrCat("server ", i, " ended with ", status, ": ", servers_[i]->err()));
  }
}

bool ChaosRun::AnyRankRuns() {
  bool any = false;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    Victim& victim = victims_[Fault::Target::kRank][rank];
    std::unique_ptr<Process>& process = ranks_[rank];
    if (process != nullptr && victim.is_whole && HasEnded(*process)) {
      victim.is_whole = false;  // nothing can befall it any more
      has_ended_[rank] = true;
      if (process->Wait() != 0)
        gave_up_.push_back(absl::StrCat("rank ", rank, ": ", process->err()));
    }
    any = any || !has_ended_[rank];
  }
  return any;
}

std::vector<Call> ChaosRun::ReadCalls() const {
  std::vector<Call> all;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    const std::vector<Call> calls = ReadHistory(HistoryOf(rank));
    all.insert(all.end(), calls.begin(), calls.end());
  }
  return all;
}

int ChaosRun::Count(Fault::Target target, bool is_kill) const {
  const auto found = caused_.find({target, is_kill});
  return found == caused_.end() ? 0 : found->second;
}

}  // namespace gradclip
