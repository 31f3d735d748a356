// The store of a server that all ranks of a job come to. Nothing survives the server.
#ifndef GRADCLIP_SERVER_GROUP_MEMORY_STORE_H_
#define GRADCLIP_SERVER_GROUP_MEMORY_STORE_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/group/job.h"
#include "server/group/step.h"
#include "server/group/store.h"
#include "server/memory/budget.h"

namespace gradclip {

class MemoryStore final : public Store {
 public:
  // max_bytes (--max-group-bytes): of all that is kept of steps and jobs; one account may take
  // half. Answers that are kept make room for new steps before those are refused.
  MemoryStore(const GroupTimes& times, uint64_t max_bytes, std::string instance);
  ~MemoryStore() override;  // REQUIRES: no seat is left

  absl::StatusOr<std::shared_ptr<Seat>> Join(const Participant& participant,
                                             OnOutcome on_outcome) override;
  bool spans_servers() const override { return false; }
  std::vector<Endpoint> endpoints() const override { return {{.name = "memory", .up = true}}; }
  std::string instance() const override { return instance_; }
  void StopOpening() override;

  uint64_t used_bytes() const { return budget_.used_bytes(); }

 private:
  class MemorySeat;
  struct KeptStep;
  struct KeptJob;
  // What is to be called once the lock is given back.
  using Deliveries =
      std::vector<std::pair<OnOutcome, absl::StatusOr<std::shared_ptr<const Outcome>>>>;

  // What seats do.
  void Contribute(MemorySeat& seat, const Contribution& contribution);
  void Leave(MemorySeat& seat, Leaving why);
  void Abort(MemorySeat& seat, const absl::Status& why);
  void GoAway(MemorySeat& seat, absl::FunctionRef<void(Step& step, absl::Time now)> event);

  // REQUIRE: mutex_.
  absl::StatusOr<std::shared_ptr<Seat>> Sit(const Participant& participant, OnOutcome on_outcome,
                                            absl::Time now, Deliveries& deliveries);
  absl::StatusOr<std::shared_ptr<KeptStep>> FindOrOpen(const Participant& participant,
                                                       absl::Time now, Deliveries& deliveries);
  absl::Status Reserve(const std::string& account, uint64_t bytes, MemoryBudget::Reservation& room);
  bool ForgetOldest(const std::string* account);  // null: anybody's
  void Forget(KeptStep& kept);
  // After any event: whoever has to be told is, and the next look at the step is planned.
  void Settle(KeptStep& kept, absl::Time now, Deliveries& deliveries);
  void Plan(KeptStep& kept, absl::Time when);
  void ForgetIdleJobs(absl::Time now);

  void Run();  // the thread: timeouts, graces, and forgetting
  static absl::StatusOr<std::shared_ptr<const Outcome>> AnswerOf(const Step& step);
  static void Deliver(Deliveries& deliveries);

  const GroupTimes times_;
  const std::string instance_;
  MemoryBudget budget_;

  std::mutex mutex_;
  std::condition_variable changed_;  // the first of planned_, or stop_
  // Guarded by mutex_.
  std::map<std::string, std::unique_ptr<KeptJob>> jobs_;
  std::map<const Step*, std::shared_ptr<KeptStep>> steps_;
  std::set<std::pair<absl::Time, KeptStep*>> planned_;
  absl::Time jobs_swept_;
  uint64_t seats_ = 0;  // that were ever taken
  bool opening_ = true;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_MEMORY_STORE_H_
