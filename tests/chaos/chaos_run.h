// A job of 16 ranks, three servers and a Redis that writes everything to disk, each a process of
// its own, and the faults that befall them.
#ifndef GRADCLIP_TESTS_CHAOS_CHAOS_RUN_H_
#define GRADCLIP_TESTS_CHAOS_CHAOS_RUN_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "tests/chaos/faults.h"
#include "tests/chaos/history.h"
#include "tests/e2e/process.h"
#include "tests/server/group/redis/redis_server.h"

namespace gradclip {

// Not thread-safe.
class ChaosRun {
 public:
  static constexpr uint32_t kRanks = 16;
  static constexpr uint32_t kServers = 3;

  // `server`: the program's name.
  ChaosRun(std::string server, uint64_t seed, uint64_t steps);
  // Kills all. Where the test has failed the histories stay, and it says where.
  ~ChaosRun();
  ChaosRun(const ChaosRun&) = delete;
  ChaosRun& operator=(const ChaosRun&) = delete;

  // Until every rank has done all steps, or `enough`, which is asked each second, is true. Things
  // fail for as long as `faults`; then all are whole. Returns what ranks said that gave up, which
  // servers ended by themselves, and which ranks had still not ended some minutes after the faults.
  std::vector<std::string> Run(
      absl::Duration faults, const std::function<bool()>& enough = [] { return false; });

  std::vector<Call> ReadCalls() const;
  int kills(Fault::Target target) const { return Count(target, true); }
  int freezes(Fault::Target target) const { return Count(target, false); }

 private:
  // Something that can be made to fail.
  struct Victim {
    std::function<void()> kill, start, freeze, thaw;
    bool is_whole = true;
  };

  static Victim MakeVictim(std::unique_ptr<Process>& process, std::function<void()> start);
  void StartServer(uint32_t server);
  void StartRank(uint32_t rank);
  std::string HistoryOf(uint32_t rank) const;

  void Cause(const Fault& fault);
  void HealNext();
  // Heals what is to be healed until then. False as soon as no rank runs any more, or one has given
  // up.
  bool WaitUntil(absl::Time time);
  void NoteServersThatEnded();
  bool IsEnough();
  bool AnyRankRuns();
  int Count(Fault::Target target, bool is_kill) const;

  const std::string program_;
  const uint64_t seed_;
  const uint64_t steps_;
  const std::string folder_;
  RedisServer redis_;
  std::string addresses_[kServers];
  std::unique_ptr<Process> servers_[kServers];
  std::unique_ptr<Process> ranks_[kRanks];
  bool has_ended_[kRanks] = {};
  std::map<Fault::Target, std::vector<Victim>> victims_;
  std::multimap<absl::Time, std::function<void()>> heals_;  // by when they are due
  std::map<std::pair<Fault::Target, bool>, int> caused_;    // bool: is_kill
  std::vector<std::string> gave_up_;
  std::function<bool()> enough_;
  absl::Time ask_next_;  // whether it is enough
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CHAOS_CHAOS_RUN_H_
