// What every Store has to do, as tests. A store's own test file instantiates them:
//
//   INSTANTIATE_TEST_SUITE_P(Memory, StoreContract, testing::Values(StoreKind{...}));
#ifndef GRADCLIP_TESTS_SERVER_GROUP_STORE_CONTRACT_H_
#define GRADCLIP_TESTS_SERVER_GROUP_STORE_CONTRACT_H_

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/group/store.h"

namespace gradclip {

// What one call was told.
class Told {
 public:
  using Answer = absl::StatusOr<std::shared_ptr<const Outcome>>;

  Store::OnOutcome Callback() {
    return [shared = shared_](Answer answer) {
      const std::lock_guard lock(shared->mutex);
      EXPECT_FALSE(shared->answer.has_value()) << "told twice";
      shared->answer = std::move(answer);
      shared->changed.notify_all();
    };
  }

  // Waits for it.
  Answer Get() const {
    std::unique_lock lock(shared_->mutex);
    if (!shared_->changed.wait_for(lock, std::chrono::seconds(60),
                                   [&] { return shared_->answer.has_value(); })) {
      return absl::InternalError("was told nothing for a minute");
    }
    return *shared_->answer;
  }

  bool yet() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->answer.has_value();
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Answer> answer;
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

// A call of one rank.
struct RankCall {
  absl::StatusOr<std::shared_ptr<Store::Seat>> seat;
  Told told;

  Told::Answer Get() const {
    if (!seat.ok()) return seat.status();
    return told.Get();
  }
  absl::Status status() const { return Get().status(); }
  void Contribute(double value) const;  // where it has a seat
};

// Of p = 2, with the sum of squares `value`.
inline Contribution ContributionOf(double value, uint64_t nonfinite = 0, std::string first = "") {
  Contribution contribution;
  contribution.partial = NormPartial(2);
  contribution.partial.AddSum(value, 0);
  contribution.nonfinite_elements = nonfinite;
  contribution.first_nonfinite = std::move(first);
  return contribution;
}

inline void RankCall::Contribute(double value) const {
  if (seat.ok()) (*seat)->Contribute(ContributionOf(value));
}

// Some store, as servers see it.
struct StoreKind {
  // Stores that see the same steps, as many as asked for where ranks may come to different servers,
  // else one.
  std::function<std::vector<std::unique_ptr<Store>>(const GroupTimes& times, int servers)> make;
  std::string name;
  // Waits until all that calls of the store have done so far has come to the step. Null where it
  // has when they return.
  std::function<void(Store& store)> settle = nullptr;
};
inline std::ostream& operator<<(std::ostream& out, const StoreKind& kind) {
  return out << kind.name;
}

class StoreContract : public testing::TestWithParam<StoreKind> {
 protected:
  using Call = RankCall;

  // Each call returns once what it did has come to the step, so that tests say in which order
  // things happen; unless `in_order` is false.
  void Make(const GroupTimes& times = {}, bool in_order = true);

  // Ranks come to the stores in turn.
  Store& StoreOf(uint32_t rank) { return *stores_[rank % stores_.size()]; }

  Participant Rank(uint32_t rank, uint32_t world_size = 2, uint64_t step = 1,
                   uint32_t attempt = 0) const {
    Participant participant;
    participant.step = {job_, 0, step, attempt};
    participant.rank = rank;
    participant.world_size = world_size;
    participant.terms = {
        {"rpc", "ClipGradNorm"}, {"group.world_size", absl::StrCat(world_size)}, {"max_norm", "1"}};
    participant.timeout = absl::Minutes(1);
    participant.secret_hash = std::string(32, 's');
    return participant;
  }

  Call Join(const Participant& participant) {
    Call call;
    call.seat = StoreOf(participant.rank).Join(participant, call.told.Callback());
    return call;
  }

  static Contribution Of(double value, uint64_t nonfinite = 0, std::string first = "") {
    return ContributionOf(value, nonfinite, std::move(first));
  }

  // A job of each test's own, as stores may be shared.
  const std::string job_ = absl::StrCat("job-", absl::Hex(std::random_device()()));
  std::vector<std::unique_ptr<Store>> stores_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_GROUP_STORE_CONTRACT_H_
