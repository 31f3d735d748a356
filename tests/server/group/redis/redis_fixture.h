// Stores, as servers have them, at a redis-server of the test's own.
#ifndef GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/group/redis/redis_store.h"
#include "tests/server/group/redis/redis_server.h"
#include "tests/server/group/store_contract.h"

namespace gradclip {

class RedisFixture : public testing::Test {
 protected:
  using Call = RankCall;

  static Participant Rank(uint32_t rank, uint32_t world_size = 2, uint64_t step = 1,
                          uint32_t attempt = 0, const std::string& job = "job") {
    Participant participant;
    participant.step = {job, 0, step, attempt};
    participant.rank = rank;
    participant.world_size = world_size;
    participant.terms = {{"group.world_size", absl::StrCat(world_size)}};
    participant.timeout = absl::Minutes(1);
    participant.secret_hash = std::string(32, 's');
    return participant;
  }

  std::unique_ptr<RedisStore> Make() const {
    absl::StatusOr<std::unique_ptr<RedisStore>> store = RedisStore::Make(options_, times_, nullptr);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  static Call Join(Store& store, const Participant& participant) {
    Call call;
    call.seat = store.Join(participant, call.told.Callback());
    return call;
  }

  // A step of one rank.
  static absl::Status RunStep(Store& store, uint64_t step, const std::string& job = "job") {
    const Call call = Join(store, Rank(0, 1, step, 0, job));
    call.Contribute(4);
    return call.status();
  }

  // A step of two ranks, with the norm 5.
  static void ExpectStepOfTwo(Store& store, uint64_t step, uint32_t attempt) {
    const Call first = Join(store, Rank(0, 2, step, attempt));
    const Call second = Join(store, Rank(1, 2, step, attempt));
    first.Contribute(9);
    second.Contribute(16);
    ASSERT_TRUE(first.Get().ok()) << first.status();
    ASSERT_TRUE(second.Get().ok()) << second.status();
    EXPECT_EQ((*second.Get())->total.Norm(), 5);
  }

  // Steps of a job of their own, until one succeeds.
  void WaitUntilUsable(Store& store) {
    const std::string job = absl::StrCat("usable", jobs_++);
    absl::Status status;
    for (uint64_t step = 0; step < 3000; ++step) {
      status = RunStep(store, step, job);
      if (status.ok()) return;
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      absl::SleepFor(absl::Milliseconds(20));
    }
    ADD_FAILURE() << status;
  }

  void UseServer(const RedisServer& server) {
    options_.endpoints = {server.address()};
    options_.timeout = absl::Seconds(2);
  }

  RedisOptions options_;
  GroupTimes times_;
  int jobs_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_FIXTURE_H_
