#include "server/shm/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uid_t kAnn = 1001;
constexpr uid_t kBob = 1002;

// Limits of 4 regions and 40 pages in all, of 3 and 30 per peer, and a budget of 35 pages.
class RegistryTest : public testing::Test {
 protected:
  ~RegistryTest() override {
    registry_.reset();
    EXPECT_EQ(budget_.used_bytes(), 0);
    EXPECT_EQ(MemfdMappings(), 0);
    EXPECT_EQ(OpenDescriptors(), descriptors_);
  }

  absl::StatusOr<RegionToken> Register(uid_t uid, uint64_t pages) {
    return registry_->Register(uid, MakeMemfd(pages * PageBytes()).get(), pages * PageBytes(),
                               /*read_only=*/false);
  }

  void ExpectExhausted(uid_t uid, uint64_t pages, const std::string& flag,
                       const std::string& numbers) {
    const absl::Status status = Register(uid, pages).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("(" + flag + ")"), HasSubstr(numbers)));
  }

  static std::string Bytes(uint64_t pages) { return std::to_string(pages * PageBytes()); }

  const size_t descriptors_ = OpenDescriptors();
  MemoryBudget budget_{35 * PageBytes()};
  std::optional<RegionRegistry> registry_{
      std::in_place, RegionLimits{4, 3, 40 * PageBytes(), 30 * PageBytes()}, budget_};
};

TEST_F(RegistryTest, FindsWhatWasRegistered) {
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  Fill(memfd, 3);
  const auto token = registry_->Register(kAnn, memfd.get(), PageBytes(), true);
  ASSERT_TRUE(token.ok());
  const std::shared_ptr<Region> region = registry_->Find(*token);
  ASSERT_NE(region, nullptr);
  EXPECT_TRUE(IsFilled(region->data(), PageBytes(), 3));
  EXPECT_TRUE(region->read_only());
  EXPECT_EQ(registry_->regions(), 1);
  EXPECT_EQ(registry_->bytes(), PageBytes());
  EXPECT_EQ(budget_.used_bytes(), PageBytes());
}

TEST_F(RegistryTest, FindsNothingByAnyOtherToken) {
  const auto token = Register(kAnn, 1);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(registry_->Find(RegionToken{}), nullptr);
  for (size_t bit = 0; bit < 8 * token->size(); ++bit) {
    RegionToken near = *token;
    near[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(registry_->Find(near), nullptr);
  }
  registry_->Forget(RegionToken{});
  EXPECT_NE(registry_->Find(*token), nullptr);
}

TEST_F(RegistryTest, MakesTokensThatHaveNothingInCommon) {
  std::set<RegionToken> tokens;
  std::array<std::set<std::byte>, sizeof(RegionToken)> values;
  for (int i = 0; i < 256; ++i) {
    const auto token = Register(kAnn, 1);
    ASSERT_TRUE(token.ok());
    tokens.insert(*token);
    for (size_t j = 0; j < token->size(); ++j) values[j].insert((*token)[j]);
    registry_->Forget(*token);
  }
  EXPECT_EQ(tokens.size(), 256);
  // Of 256 random values some 162 are different; less than 100 happens once in 10^20 or so.
  for (const auto& at : values) EXPECT_GE(at.size(), 100);
}

TEST_F(RegistryTest, ForgetsAtOnceAndUnmapsWhenNobodyUsesIt) {
  const auto token = Register(kAnn, 10);
  ASSERT_TRUE(token.ok());
  std::shared_ptr<Region> used = registry_->Find(*token);
  registry_->Forget(*token);
  EXPECT_EQ(registry_->Find(*token), nullptr);
  EXPECT_EQ(registry_->regions(), 0);
  EXPECT_EQ(registry_->bytes(), 10 * PageBytes());
  EXPECT_EQ(budget_.used_bytes(), 10 * PageBytes());
  EXPECT_EQ(MemfdMappings(), 2);
  EXPECT_TRUE(IsFilled(used->data(), used->size(), 0));
  used.reset();
  EXPECT_EQ(registry_->bytes(), 0);
  EXPECT_EQ(budget_.used_bytes(), 0);
  EXPECT_EQ(MemfdMappings(), 0);
  registry_->Forget(*token);  // no effect
}

TEST_F(RegistryTest, RegionsInUseMayOutliveIt) {
  const auto token = Register(kAnn, 1);
  ASSERT_TRUE(token.ok());
  const std::shared_ptr<Region> used = registry_->Find(*token);
  registry_.reset();
  EXPECT_TRUE(IsFilled(used->data(), used->size(), 0));
  EXPECT_EQ(budget_.used_bytes(), PageBytes());
}

TEST_F(RegistryTest, ChargesWholePages) {
  const uint64_t length = PageBytes() + 1;
  ASSERT_TRUE(registry_->Register(kAnn, MakeMemfd(length).get(), length, false).ok());
  EXPECT_EQ(registry_->bytes(), 2 * PageBytes());
  EXPECT_EQ(budget_.used_bytes(), 2 * PageBytes());
}

TEST_F(RegistryTest, LimitsTheRegionsOfAPeer) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Register(kAnn, 1).ok());
  ExpectExhausted(kAnn, 1, "--max-regions-per-peer", "user 1001 has 3 regions, of at most 3");
  EXPECT_TRUE(Register(kBob, 1).ok());
}

TEST_F(RegistryTest, LimitsTheRegionsOfAll) {
  for (const uid_t uid : {kAnn, kAnn, kBob, kBob}) ASSERT_TRUE(Register(uid, 1).ok());
  ExpectExhausted(kAnn, 1, "--max-regions", "the server has 4 regions, of at most 4");
}

TEST_F(RegistryTest, LimitsTheBytesOfAPeer) {
  ASSERT_TRUE(Register(kAnn, 20).ok());
  ExpectExhausted(kAnn, 11, "--max-shared-bytes-per-peer",
                  "a region of " + Bytes(11) + " bytes beside the " + Bytes(20) +
                      " that user 1001 has is over the limit of " + Bytes(30));
  EXPECT_TRUE(Register(kAnn, 10).ok());
}

TEST_F(RegistryTest, LimitsTheBytesOfAll) {
  ASSERT_TRUE(Register(kAnn, 25).ok());
  ExpectExhausted(
      kBob, 16, "--max-shared-bytes",
      "beside the " + Bytes(25) + " that the server has is over the limit of " + Bytes(40));
}

TEST_F(RegistryTest, TakesNoMoreThanTheBudgetHas) {
  ASSERT_TRUE(Register(kAnn, 25).ok());
  ExpectExhausted(kBob, 11, "--memory-budget",
                  "beside the " + Bytes(25) + " of " + Bytes(35) + " bytes");
  EXPECT_TRUE(Register(kBob, 10).ok());
}

TEST_F(RegistryTest, CountsRegionsThatAreForgottenButInUse) {
  std::vector<std::shared_ptr<Region>> used;
  for (int i = 0; i < 3; ++i) {
    const auto token = Register(kAnn, 10);
    ASSERT_TRUE(token.ok());
    used.push_back(registry_->Find(*token));
    registry_->Forget(*token);
  }
  ExpectExhausted(kAnn, 1, "--max-regions-per-peer", "3 regions");
  used.pop_back();
  EXPECT_TRUE(Register(kAnn, 1).ok());
}

TEST_F(RegistryTest, ARefusedRegistrationIsChargedNowhere) {
  const FileDescriptor unsealed = MakeMemfd(PageBytes(), 0);
  EXPECT_EQ(registry_->Register(kAnn, unsealed.get(), PageBytes(), false).status().code(),
            absl::StatusCode::kInvalidArgument);
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  EXPECT_EQ(registry_->Register(kAnn, memfd.get(), UINT64_MAX, false).status().code(),
            absl::StatusCode::kInvalidArgument);
  const FileDescriptor readable(
      open(("/proc/self/fd/" + std::to_string(memfd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(registry_->Register(kAnn, readable.get(), PageBytes(), false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(Register(kAnn, 31).ok());
  EXPECT_EQ(registry_->regions(), 0);
  EXPECT_EQ(registry_->bytes(), 0);
  EXPECT_EQ(budget_.used_bytes(), 0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Register(kAnn, 1).ok());
}

// A sparse memfd of 2^62 bytes costs its owner nothing.
TEST_F(RegistryTest, RefusesHugeSparseMemoryWithoutTouchingIt) {
  const uint64_t length = uint64_t{1} << 62;
  const FileDescriptor memfd = MakeMemfd(length);
  EXPECT_EQ(registry_->Register(kAnn, memfd.get(), length, false).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(RegistryTest, GivesBackMemoryToThoseWhoWaitForTheBudget) {
  const auto token = Register(kAnn, 30);
  ASSERT_TRUE(token.ok());
  bool granted = false;
  const auto admission =
      budget_.Reserve("trainer", 35 * PageBytes(), [&](MemoryBudget::Reservation) {
        granted = true;
        EXPECT_EQ(registry_->regions(), 0);  // no lock is held
        EXPECT_EQ(registry_->bytes(), 0);
        EXPECT_EQ(MemfdMappings(), 0);
      });
  EXPECT_NE(admission.waiter, nullptr);
  // Who waits comes first.
  ExpectExhausted(kBob, 1, "--memory-budget", "used or waited for");
  EXPECT_FALSE(granted);
  registry_->Forget(*token);
  EXPECT_TRUE(granted);
}

TEST_F(RegistryTest, ChargesEachUserAsACallerOfItsOwn) {
  MemoryBudget budget(40 * PageBytes(), {.max_bytes_per_caller = 20 * PageBytes()});
  RegionRegistry registry({4, 3, 40 * PageBytes(), 30 * PageBytes()}, budget);
  const auto add = [&](uid_t uid, uint64_t pages) {
    return registry.Register(uid, MakeMemfd(pages * PageBytes()).get(), pages * PageBytes(), false);
  };
  ASSERT_TRUE(add(kAnn, 15).ok());
  EXPECT_EQ(budget.used_bytes("uid:1001"), 15 * PageBytes());
  const absl::Status status = add(kAnn, 6).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(absl::StrCat("a region of ", 6 * PageBytes(), " bytes beside the ",
                                           15 * PageBytes(),
                                           " that user 1001 has is over the "
                                           "limit of ",
                                           20 * PageBytes())),
                    HasSubstr("(--max-bytes-per-caller)")));
  EXPECT_TRUE(add(kBob, 20).ok());
  EXPECT_EQ(budget.used_bytes("uid:1002"), 20 * PageBytes());
}

TEST_F(RegistryTest, HoldsItsLimitsUnderThreads) {
  std::vector<std::thread> threads;
  for (const uid_t uid : {kAnn, kAnn, kBob, kBob}) {
    threads.emplace_back([this, uid] {
      for (int i = 0; i < 200; ++i) {
        const auto token = Register(uid, 10);
        EXPECT_LE(registry_->bytes(), 40 * PageBytes());
        EXPECT_LE(registry_->regions(), 4);
        if (!token.ok()) continue;
        const std::shared_ptr<Region> region = registry_->Find(*token);
        std::thread user([region] { EXPECT_TRUE(IsFilled(region->data(), region->size(), 0)); });
        registry_->Forget(*token);
        user.join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(registry_->bytes(), 0);
}

}  // namespace
}  // namespace gradclip
