#include "server/group/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

namespace gradclip {
namespace {

using testing::HasSubstr;

class GroupAdmissionTest : public testing::Test {
 protected:
  // One rank's call.
  struct Rank {
    std::unique_ptr<GroupAdmission::Place> place;
    std::optional<absl::StatusOr<GroupAdmission::Share>> told;

    bool Declare(uint64_t bytes) {
      return place->Declare(bytes, [this](absl::StatusOr<GroupAdmission::Share> answer) {
        EXPECT_FALSE(told.has_value());
        told = std::move(answer);
      });
    }
    bool admitted() const { return told.has_value() && told->ok(); }
    // As a call that ends does.
    void Leave() {
      place.reset();
      told.reset();
    }
  };

  void Take(Rank& rank, uint32_t number, uint32_t world_size, const std::string& job = "a") {
    Participant participant;
    participant.step.job = job;
    participant.rank = number;
    participant.world_size = world_size;
    rank.place = admission_.Take(participant);
  }

  MemoryBudget budget_{100};
  GroupAdmission admission_{budget_};
};

TEST_F(GroupAdmissionTest, TakesAllInOnePieceOnceAllHaveDeclared) {
  Rank ranks[3];
  for (uint32_t i = 0; i < 3; ++i) Take(ranks[i], i, 3);
  EXPECT_TRUE(ranks[0].Declare(50));
  EXPECT_TRUE(ranks[1].Declare(0));
  EXPECT_EQ(budget_.used_bytes(), 0u);
  EXPECT_TRUE(ranks[2].Declare(20));
  EXPECT_EQ(budget_.used_bytes(), 70u);
  EXPECT_TRUE(ranks[0].admitted());
  EXPECT_FALSE(ranks[1].told.has_value());  // it waits for nothing
  EXPECT_TRUE(ranks[2].admitted());
  ranks[0].Leave();
  EXPECT_EQ(budget_.used_bytes(), 70u);
  ranks[2].Leave();
  EXPECT_EQ(budget_.used_bytes(), 0u);
}

TEST_F(GroupAdmissionTest, ServesStepsInTheOrderInWhichTheyWereComplete) {
  Rank a[2];
  Rank b[2];
  Rank c[2];
  for (uint32_t i = 0; i < 2; ++i) {
    Take(a[i], i, 2, "a");
    Take(b[i], i, 2, "b");
    Take(c[i], i, 2, "c");
  }
  a[0].Declare(40);
  for (Rank& rank : b) rank.Declare(40);
  for (Rank& rank : c) rank.Declare(10);
  a[1].Declare(10);
  EXPECT_TRUE(b[0].admitted() && b[1].admitted());
  EXPECT_TRUE(c[0].admitted() && c[1].admitted());
  EXPECT_FALSE(a[0].admitted());
  EXPECT_TRUE(a[0].place->waiting_since().has_value());
  for (Rank& rank : b) rank.Leave();
  EXPECT_TRUE(a[0].admitted() && a[1].admitted());
  EXPECT_FALSE(a[0].place->waiting_since().has_value());
}

TEST_F(GroupAdmissionTest, AStepThatNeverFitsIsRefused) {
  Rank ranks[2];
  for (uint32_t i = 0; i < 2; ++i) Take(ranks[i], i, 2);
  ranks[0].Declare(60);
  ranks[1].Declare(60);
  for (const Rank& rank : ranks) {
    ASSERT_TRUE(rank.told.has_value());
    EXPECT_EQ(rank.told->status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(rank.told->status().message()),
                HasSubstr("its 2 ranks need 120 bytes together; the server keeps at most 100"));
  }
}

TEST_F(GroupAdmissionTest, ACallThatLeavesTakesBackWhatItSaid) {
  Rank ranks[2];
  for (uint32_t i = 0; i < 2; ++i) Take(ranks[i], i, 2);
  ranks[0].Declare(60);
  ranks[0].Leave();
  Take(ranks[0], 0, 2);
  ranks[1].Declare(60);
  EXPECT_EQ(budget_.used_bytes(), 0u);
  ranks[0].Declare(30);
  EXPECT_EQ(budget_.used_bytes(), 90u);
}

TEST_F(GroupAdmissionTest, AStepThatAllHaveLeftWaitsNoMore) {
  MemoryBudget::Reservation all;
  ASSERT_TRUE(budget_.TryReserve("other", 100, &all));
  Rank ranks[2];
  for (uint32_t i = 0; i < 2; ++i) Take(ranks[i], i, 2);
  for (Rank& rank : ranks) rank.Declare(10);
  EXPECT_EQ(budget_.waiting(), 1u);
  for (Rank& rank : ranks) rank.Leave();
  EXPECT_EQ(budget_.waiting(), 0u);
}

TEST_F(GroupAdmissionTest, ARankThatComesBackFindsItsPart) {
  Rank ranks[2];
  for (uint32_t i = 0; i < 2; ++i) Take(ranks[i], i, 2);
  for (Rank& rank : ranks) rank.Declare(10);
  ranks[0].Leave();
  Take(ranks[0], 0, 2);
  EXPECT_TRUE(ranks[0].Declare(10));
  EXPECT_TRUE(ranks[0].admitted());
  EXPECT_EQ(budget_.used_bytes(), 20u);
  // But no more than that,
  ranks[0].Leave();
  Take(ranks[0], 0, 2);
  EXPECT_FALSE(ranks[0].Declare(11));
  // and not what all have given back.
  ranks[0].place.reset();
  ranks[1].told.reset();
  Take(ranks[0], 0, 2);
  EXPECT_EQ(budget_.used_bytes(), 0u);
  EXPECT_FALSE(ranks[0].Declare(10));
  EXPECT_FALSE(ranks[0].told.has_value());
}

TEST_F(GroupAdmissionTest, ASecondCallOfARankHasNoPlace) {
  Rank one;
  Rank two;
  Take(one, 0, 2);
  Take(two, 0, 2);
  EXPECT_NE(one.place, nullptr);
  EXPECT_EQ(two.place, nullptr);
}

}  // namespace
}  // namespace gradclip
