#include "server/group/memory_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/group/store_contract.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Memory, StoreContract,
                         testing::Values(StoreKind{[](const GroupTimes& times, int) {
                                                     std::vector<std::unique_ptr<Store>> stores;
                                                     stores.push_back(std::make_unique<MemoryStore>(
                                                         times, uint64_t{64} << 20, "one"));
                                                     return stores;
                                                   },
                                                   "memory"}),
                         [](const auto& info) { return info.param.name; });

class MemoryStoreTest : public testing::Test {
 protected:
  static Participant Rank(uint32_t rank, uint32_t world_size, uint64_t step,
                          const std::string& job = "job", const std::string& account = "a") {
    Participant participant;
    participant.step = {job, 0, step, 0};
    participant.rank = rank;
    participant.world_size = world_size;
    participant.timeout = absl::Minutes(1);
    participant.account = account;
    return participant;
  }

  // One step of one rank, from its beginning to its end.
  static absl::Status RunStep(MemoryStore& store, uint64_t step, const std::string& job = "job",
                              const std::string& account = "a") {
    Told told;
    const auto seat = store.Join(Rank(0, 1, step, job, account), told.Callback());
    if (!seat.ok()) return seat.status();
    (*seat)->Contribute(Contribution());
    return told.Get().status();
  }
};

TEST_F(MemoryStoreTest, MakesRoomByForgettingAnswers) {
  MemoryStore store({}, 32 << 10, "one");
  for (uint64_t step = 0; step < 1000; ++step) ASSERT_TRUE(RunStep(store, step).ok());
  EXPECT_LE(store.used_bytes(), 16u << 10);  // an account's half
  EXPECT_EQ(RunStep(store, 0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(RunStep(store, 999).ok());
}

TEST_F(MemoryStoreTest, RefusesWhatWouldNotFitWithTheLimitsFlagAndTakesItLater) {
  MemoryStore store({}, 32 << 10, "one");
  std::vector<std::shared_ptr<Store::Seat>> seats;
  absl::Status refused;
  for (uint32_t rank = 0; refused.ok(); ++rank) {
    const auto seat = store.Join(Rank(rank, 1000, 1), [](const auto&) {});
    refused = seat.status();
    if (seat.ok()) seats.push_back(*seat);
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--max-group-bytes"));
  // Others have their own half.
  EXPECT_TRUE(RunStep(store, 1, "other", "b").ok());
  seats.front()->Leave(Leaving::kCancelled);
  seats.clear();
  EXPECT_TRUE(RunStep(store, 2).ok());
}

TEST_F(MemoryStoreTest, OneCallersNeedsMakeNobodyElsesAnswersForgotten) {
  MemoryStore store({}, 32 << 10, "one");
  ASSERT_TRUE(RunStep(store, 1, "other", "b").ok());
  for (uint64_t step = 0; step < 100; ++step) ASSERT_TRUE(RunStep(store, step).ok());
  EXPECT_TRUE(RunStep(store, 1, "other", "b").ok());
}

TEST_F(MemoryStoreTest, AJobThatFoundNoRoomIsNotOpened) {
  MemoryStore store({}, 2 << 10, "one");
  EXPECT_EQ(RunStep(store, 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store.used_bytes(), 0u);
}

TEST_F(MemoryStoreTest, ForgetsJobsThatNobodyComesToAnyMore) {
  GroupTimes times;
  times.result_ttl = times.job_ttl = absl::Milliseconds(10);
  MemoryStore store(times, 1 << 20, "one");
  ASSERT_TRUE(RunStep(store, 1).ok());
  while (store.used_bytes() > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(RunStep(store, 1).ok());
}

TEST_F(MemoryStoreTest, AStoppingServerEndsWhatNobodyCanFinish) {
  MemoryStore store({}, 1 << 20, "one");
  Told half, first, second;
  const auto alone = store.Join(Rank(0, 2, 1), half.Callback());
  const auto one = store.Join(Rank(0, 2, 2), first.Callback());
  const auto two = store.Join(Rank(1, 2, 2), second.Callback());
  store.StopOpening();
  EXPECT_EQ(half.Get().status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(half.Get().status().message()), HasSubstr("the server is stopping"));
  (*one)->Contribute(Contribution());
  (*two)->Contribute(Contribution());
  EXPECT_TRUE(first.Get().ok());
  EXPECT_TRUE(second.Get().ok());
  EXPECT_EQ(RunStep(store, 3).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace gradclip
