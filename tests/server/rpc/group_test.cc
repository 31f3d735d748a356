// Ranks of a group against a real server, as callers in any language see it.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/client/files/file_bytes.h"
#include "tests/server/rpc/group_fixture.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(GroupTest, AllRanksGetTheNormOfTheWholeGradientToTheBit) {
  Serve();
  constexpr uint32_t kRanks = 5;
  constexpr int64_t kBlock = 4096;  // ranks cut the gradient where blocks end
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::string> shards;
  std::vector<v1::ClipGradNormRequest> starts;
  std::vector<v1::ClipGradNormRequest> alone;
  int64_t elements = 0;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    std::vector<float> shard((rank + 1) * kBlock);
    for (float& element : shard) element = std::ldexp(normal(random), static_cast<int>(rank) * 9);
    starts.push_back(Start(rank, kRanks, static_cast<int64_t>(shard.size())));
    shards.push_back(Bytes(shard));
    alone.push_back(Data(shards.back()));
    elements += static_cast<int64_t>(shard.size());
  }
  alone.insert(alone.begin(), ClipStart(1, elements));
  const Reply whole = Clip(alone);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  const std::vector<Reply> replies = RunAll(starts, shards);
  std::string gradient;
  for (const Reply& reply : replies) {
    ASSERT_TRUE(reply.status.ok()) << Message(reply);
    EXPECT_EQ(reply.result.norm().total_norm(), whole.result.norm().total_norm());
    EXPECT_EQ(reply.result.coefficient(), whole.result.coefficient());
    EXPECT_TRUE(reply.result.clipped());
    gradient += reply.gradient;
  }
  EXPECT_TRUE(gradient == whole.gradient);
}

TEST_F(GroupTest, ComputesOneNorm) {
  Serve();
  std::vector<std::thread> threads;
  std::vector<double> norms(2);
  for (const uint32_t rank : {0u, 1u}) {
    threads.emplace_back([&, rank] {
      const v1::ClipGradNormRequest clip = Start(rank, 2, 1);
      v1::ComputeNormRequest start;
      *start.mutable_start()->mutable_tensors() = clip.start().tensors();
      *start.mutable_start()->mutable_group() = clip.start().group();
      v1::ComputeNormRequest data;
      data.set_data(Bytes<float>({rank == 0 ? 3.0f : 4.0f}));
      v1::NormResult norm;
      EXPECT_TRUE(Compute({start, data}, norm).ok());
      norms[rank] = norm.total_norm();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(norms, std::vector<double>(2, 5));
}

TEST_F(GroupTest, ReplicasCountOnceAndListsStayEachRanksOwn) {
  Serve();
  std::vector<v1::ClipGradNormRequest> starts = {Start(0, 2, 1), Start(1, 2, 1)};
  for (v1::ClipGradNormRequest& start : starts) {
    *start.mutable_start()->add_tensors() = start.start().tensors(0);
    start.mutable_start()->mutable_norm()->set_per_tensor(true);
  }
  starts[1].mutable_start()->mutable_tensors(1)->set_replica(true);
  const std::vector<Reply> replies =
      RunAll(starts, {Bytes<float>({3, 4}), Bytes<float>({12, 1000})});
  for (const Reply& reply : replies) {
    ASSERT_TRUE(reply.status.ok()) << Message(reply);
    EXPECT_EQ(reply.result.norm().total_norm(), 13);
  }
  EXPECT_EQ(replies[0].result.norm().tensors(1).norm(), 4);
  EXPECT_EQ(replies[1].result.norm().tensors(1).norm(), 1000);
}

TEST_F(GroupTest, TheVerdictOnANormThatIsNotFiniteIsOneForAll) {
  Serve();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::string> gradients = {Bytes<float>({1, 2}), Bytes<float>({nan, nan}),
                                              Bytes<float>({3, nan})};
  uint64_t step = 0;
  for (const v1::NonfinitePolicy policy :
       {v1::NONFINITE_PROPAGATE, v1::NONFINITE_ERROR, v1::NONFINITE_SKIP, v1::NONFINITE_ZERO}) {
    ++step;
    std::vector<v1::ClipGradNormRequest> starts;
    for (uint32_t rank = 0; rank < 3; ++rank) {
      starts.push_back(Start(rank, 3, 2, step));
      starts.back().mutable_start()->set_nonfinite(policy);
    }
    const std::vector<Reply> replies = RunAll(starts, gradients);
    for (uint32_t rank = 0; rank < 3; ++rank) {
      const Reply& reply = replies[rank];
      if (policy == v1::NONFINITE_ERROR) {
        EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
        EXPECT_THAT(Message(reply), HasSubstr("3 elements are NaN or infinite, the first of them "
                                              "w[0] of rank 1"));
        continue;
      }
      ASSERT_TRUE(reply.status.ok()) << Message(reply);
      EXPECT_TRUE(std::isnan(reply.result.norm().total_norm()));
      EXPECT_EQ(reply.result.norm().group_nonfinite_elements(), 3u);
      EXPECT_EQ(reply.result.norm().nonfinite_elements(), rank == 0 ? 0u : 3u - rank);
      EXPECT_EQ(reply.result.norm().first_nonfinite(), rank == 0   ? ""
                                                       : rank == 1 ? "w[0]"
                                                                   : "w[1]");
      EXPECT_EQ(reply.result.skipped(), policy != v1::NONFINITE_PROPAGATE);
      if (policy == v1::NONFINITE_ZERO) {
        EXPECT_EQ(reply.gradient, std::string(8, '\0'));
      }
      if (policy == v1::NONFINITE_SKIP) {
        EXPECT_EQ(reply.gradient, gradients[rank]);
      }
    }
  }
}

TEST_F(GroupTest, RanksThatDisagreeAreAllTold) {
  Serve();
  using Change = std::function<void(v1::ClipGradNormStart&)>;
  const std::pair<Change, std::string> changes[] = {
      {[](auto& start) { start.set_max_norm(0.1); }, "max_norm is 0.1 at rank 1 and 1 at rank 0"},
      {[](auto& start) { start.set_epsilon(0); }, "epsilon is 0 at rank 1 and 1e-06 at rank 0"},
      {[](auto& start) { start.mutable_norm()->set_norm_type(INFINITY); },
       "norm.norm_type is inf at rank 1 and 2 at rank 0"},
      {[](auto& start) { start.mutable_norm()->set_pre_scale(0.5); },
       "norm.pre_scale is 0.5 at rank 1 and 1 at rank 0"},
      {[](auto& start) { start.set_nonfinite(v1::NONFINITE_SKIP); },
       "nonfinite is NONFINITE_SKIP at rank 1 and NONFINITE_PROPAGATE at rank 0"},
      {[](auto& start) { start.mutable_group()->set_world_size(3); },
       "group.world_size is 3 at rank 1 and 2 at rank 0"}};
  uint64_t step = 0;
  for (const auto& [change, says] : changes) {
    ++step;
    AwaitRanks(0);  // a rank of the last step may still be leaving
    Rank first = Send(Start(0, 2, 1, step), {1});
    AwaitRanks(1);
    v1::ClipGradNormRequest other = Start(1, 2, 1, step);
    change(*other.mutable_start());
    Rank second = Send(other, {1});
    for (Rank* rank : {&first, &second}) {
      const Reply reply = rank->Finish();
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
      EXPECT_THAT(Message(reply), HasSubstr(says));
    }
  }
}

TEST_F(GroupTest, SaysWhatIsWrongWithAGroup) {
  Serve();
  using Change = std::function<void(v1::ClipGradNormStart&)>;
  const std::pair<Change, std::string> changes[] = {
      {[](auto& start) { start.mutable_group()->clear_job(); }, "group.job has 0 bytes"},
      {[](auto& start) { start.mutable_group()->set_job(std::string(257, 'j')); },
       "group.job has 257 bytes; it must have 1 to 256"},
      {[](auto& start) { start.mutable_group()->set_rank(2); },
       "group.rank is 2, and group.world_size 2"},
      {[](auto& start) { start.mutable_group()->clear_world_size(); },
       "group.rank is 0, and group.world_size 0"},
      {[](auto& start) { start.mutable_group()->mutable_timeout()->set_seconds(-1); },
       "group.timeout is -1s; it must be > 0"},
      {[](auto& start) { start.mutable_group()->mutable_timeout(); }, "group.timeout is 0"},
      {[](auto& start) { start.mutable_group()->set_job_secret(std::string(1025, 's')); },
       "group.job_secret has 1025 bytes"},
      {[](auto& start) { start.set_total_norm(1); }, "total_norm is set together with group"}};
  for (const auto& [change, says] : changes) {
    v1::ClipGradNormRequest start = Start(0, 2);
    change(*start.mutable_start());
    const Reply reply = Begin(start).Finish();
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << says;
    EXPECT_THAT(Message(reply), HasSubstr(says));
  }
}

TEST_F(GroupTest, ARankThatCancelsEndsTheStepForAllAtOnce) {
  Serve();
  Rank waiting = Send(Start(0, 3), {1, 2, 3, 4});
  Rank sending = Begin(Start(1, 3));
  Rank leaving = Begin(Start(2, 3));
  AwaitRanks(3);
  leaving.context->TryCancel();
  for (Rank* rank : {&waiting, &sending}) {
    const Reply reply = rank->AwaitEnd();
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
    EXPECT_THAT(Message(reply), AllOf(HasSubstr("job \"job\", step 1, attempt 0"),
                                      HasSubstr("rank 2 cancelled its call")));
  }
}

TEST_F(GroupTest, ARankThatFailsEndsTheStepForAll) {
  Serve();
  Rank waiting = Send(Start(0, 2), {1, 2, 3, 4});
  Rank failing = Begin(Start(1, 2));
  failing.Write(Data(Bytes<float>({1, 2})));
  AwaitRanks(2);
  EXPECT_EQ(failing.Finish().status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const Reply reply = waiting.Finish();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(Message(reply),
              HasSubstr("rank 1 failed: INVALID_ARGUMENT: the call ended after 8 of the 16"));
}

TEST_F(GroupTest, ARankThatStallsEndsTheStepForAll) {
  options_.idle_timeout = absl::Seconds(1);
  options_.group_timeout = absl::Minutes(1);
  Serve();
  Rank stalled = Begin(Start(1, 2));
  AwaitRanks(1);
  Rank waiting = Send(Start(0, 2), {1, 2, 3, 4});
  const Reply reply = waiting.Finish();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(Message(reply), HasSubstr("rank 1 failed: DEADLINE_EXCEEDED: the caller has sent no "
                                        "whole message for 1s (--idle-timeout)"));
}

TEST_F(GroupTest, WhoWaitsForOthersIsNotIdle) {
  options_.idle_timeout = absl::Seconds(1);
  options_.admission_timeout = absl::Seconds(1);
  Serve();
  Rank waiting = Send(Start(0, 2), {1, 2, 3, 4});
  absl::SleepFor(absl::Seconds(3));
  EXPECT_TRUE(Send(Start(1, 2), {1, 2, 3, 4}).Finish().status.ok());
  EXPECT_TRUE(waiting.Finish().status.ok());
}

TEST_F(GroupTest, TheTimeoutNamesTheMissingRanks) {
  Serve();
  v1::ClipGradNormRequest start = Start(1, 4);
  start.mutable_start()->mutable_group()->mutable_timeout()->set_nanos(100'000'000);
  const Reply reply = Send(start, {1, 2, 3, 4}).Finish();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(Message(reply), HasSubstr("not come: rank 0, 2, 3"));
}

TEST_F(GroupTest, TheServersTimeoutCountsWhereARankGivesNone) {
  options_.group_timeout = absl::Milliseconds(100);
  Serve();
  EXPECT_EQ(Send(Start(1, 4), {1, 2, 3, 4}).Finish().status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
}

// Over TCP and over a unix socket: two ranks have come, one has sent all and waits, and the other's
// connection is lost.
class LostRank : public GroupTest, public testing::WithParamInterface<std::string> {
 protected:
  void LoseOneOfTwo() {
    options_.listen = {GetParam() == "Tcp" ? "127.0.0.1:0" : "unix:" + (folder_ / "socket")};
    Serve();
    waiting_ = Send(Start(0, 2, 1), {3});
    lost_ = Begin(Start(1, 2, 1));
    AwaitRanks(2);
    lost_.LoseConnection();
  }

  const Folder folder_;
  Rank waiting_;
  Rank lost_;
};
INSTANTIATE_TEST_SUITE_P(Over, LostRank, testing::Values("Tcp", "UnixSocket"),
                         [](const auto& info) { return info.param; });

TEST_P(LostRank, MayComeBack) {
  LoseOneOfTwo();
  AwaitRanks(1);
  const Reply back = Send(Start(1, 2, 1), {4}).Finish();
  ASSERT_TRUE(back.status.ok()) << Message(back);
  EXPECT_EQ(back.result.norm().total_norm(), 5);
  EXPECT_TRUE(waiting_.Finish().status.ok());
}

TEST_P(LostRank, EndsTheStepWhereItStaysAway) {
  options_.group_reconnect_grace = absl::Milliseconds(100);
  LoseOneOfTwo();
  const Reply reply = waiting_.Finish();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(Message(reply), HasSubstr("lost the connection of rank 1, and waited 100ms "
                                        "(--group-reconnect-grace)"));
}

TEST_F(GroupTest, ACancelOverAUnixSocketIsNoLostConnection) {
  Folder folder;
  options_.listen = {"unix:" + (folder / "socket")};
  Serve();
  Rank waiting = Send(Start(0, 2, 1), {3});
  Rank leaving = Begin(Start(1, 2, 1));
  AwaitRanks(2);
  leaving.context->TryCancel();
  EXPECT_THAT(Message(waiting.Finish()), HasSubstr("rank 1 cancelled its call"));
}

TEST_F(GroupTest, WhoAsksAgainIsAnsweredAndAnotherGradientIsRefused) {
  Serve();
  const std::vector<Reply> replies =
      RunAll({Start(0, 2, 1), Start(1, 2, 1)}, {Bytes<float>({3}), Bytes<float>({4})});
  EXPECT_TRUE(replies[0].status.ok());
  const Reply again = Send(Start(1, 2, 1), {4}).Finish();
  ASSERT_TRUE(again.status.ok()) << Message(again);
  EXPECT_EQ(again.result.norm().total_norm(), 5);
  EXPECT_EQ(again.gradient, replies[1].gradient);
  const Reply other = Send(Start(1, 2, 1), {5}).Finish();
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(GroupTest, ATriedAgainStepTakesTheNextAttempt) {
  Serve();
  Rank waiting = Send(Start(0, 2, 1), {3});
  Rank leaving = Begin(Start(1, 2, 1));
  AwaitRanks(2);
  leaving.context->TryCancel();
  EXPECT_EQ(waiting.Finish().status.error_code(), grpc::StatusCode::ABORTED);
  std::vector<v1::ClipGradNormRequest> starts = {Start(0, 2, 1), Start(1, 2, 1)};
  for (v1::ClipGradNormRequest& start : starts)
    start.mutable_start()->mutable_group()->set_attempt(1);
  for (const Reply& reply : RunAll(starts, {Bytes<float>({3}), Bytes<float>({4})})) {
    EXPECT_TRUE(reply.status.ok()) << Message(reply);
  }
  EXPECT_EQ(Send(Start(0, 2, 1), {3}).Finish().status.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(GroupTest, AWrongSecretDisturbsNobody) {
  Serve();
  v1::ClipGradNormRequest one = Start(0, 2, 1);
  v1::ClipGradNormRequest two = Start(1, 2, 1);
  one.mutable_start()->mutable_group()->set_job_secret("secret");
  Rank waiting = Send(one, {3});
  AwaitRanks(1);
  EXPECT_EQ(Send(two, {4}).Finish().status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  two.mutable_start()->mutable_group()->set_job_secret("secret");
  EXPECT_TRUE(Send(two, {4}).Finish().status.ok());
  EXPECT_TRUE(waiting.Finish().status.ok());
}

TEST_F(GroupTest, AnAbortReachesARankAmidItsData) {
  Serve();
  Rank sending = Begin(Start(0, 2, 1 << 20));
  Rank leaving = Begin(Start(1, 2));
  sending.Write(Data(std::string(1 << 20, '\0')));
  AwaitRanks(2);
  leaving.context->TryCancel();
  const Reply reply = sending.AwaitEnd();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(Message(reply), HasSubstr("rank 1 cancelled"));
}

TEST_F(GroupTest, GroupsThatNeedMoreMemoryThanThereIsGoOneAfterTheOther) {
  constexpr int64_t kElements = 1 << 20;  // 4 MiB a rank, which take 6
  options_.memory_budget = options_.max_call_bytes = uint64_t{40} << 20;
  Serve();
  const std::string gradient(kElements * 4, '\1');
  // All ways in which the ranks of two groups may come, but for the names of the groups.
  std::mt19937 random(3);
  for (uint64_t step = 1; step <= 6; ++step) {
    std::vector<std::pair<std::string, uint32_t>> order;
    for (uint32_t rank = 0; rank < 4; ++rank) {
      order.emplace_back("a", rank);
      order.emplace_back("b", rank);
    }
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::thread> threads;
    for (const auto& [job, number] : order) {
      threads.emplace_back([&, start = Start(number, 4, kElements, step, job)] {
        Rank rank = Begin(start);
        for (int i = 0; i < 4; ++i) rank.Write(Data(gradient.substr(0, kElements)));
        const Reply reply = rank.Finish();
        EXPECT_TRUE(reply.status.ok()) << Message(reply);
        EXPECT_EQ(reply.gradient.size(), gradient.size());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_F(GroupTest, HoldsNoMemoryWhileARankIsMissing) {
  constexpr int64_t kElements = 1 << 20;
  options_.memory_budget = options_.max_call_bytes = uint64_t{40} << 20;
  Serve();
  const std::string megabyte(1 << 20, '\1');
  std::vector<Rank> ranks;
  for (uint32_t rank = 0; rank < 3; ++rank) {
    ranks.push_back(Begin(Start(rank, 4, kElements)));
    ranks.back().Write(Data(megabyte));
  }
  AwaitRanks(3);
  EXPECT_EQ(server_->reserved_bytes(), 0u);
  // Another caller finds all of it.
  std::vector<v1::ClipGradNormRequest> other_call(33, Data(megabyte));
  other_call[0] = ClipStart(1, 8 << 20);
  const Reply other = Clip(other_call);
  EXPECT_TRUE(other.status.ok()) << Message(other);
}

TEST_F(GroupTest, AGroupThatNeverFitsIsToldSoAtOnce) {
  options_.memory_budget = options_.max_call_bytes = uint64_t{20} << 20;
  Serve();
  const std::string gradient(12 << 20, '\1');
  for (const Reply& reply :
       RunAll({Start(0, 2, 3 << 20), Start(1, 2, 3 << 20)}, {gradient, gradient})) {
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(Message(reply), HasSubstr("--memory-budget"));
  }
  // Where nothing is kept, nothing needs to fit.
  std::vector<v1::ClipGradNormRequest> starts = {Start(0, 2, 3 << 20, 2), Start(1, 2, 3 << 20, 2)};
  for (v1::ClipGradNormRequest& start : starts) {
    start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  }
  for (const Reply& reply : RunAll(starts, {gradient, gradient})) {
    EXPECT_TRUE(reply.status.ok()) << Message(reply);
  }
}

TEST_F(GroupTest, AGroupThatWaitsTooLongForMemoryIsAbortedForAll) {
  options_.memory_budget = options_.max_call_bytes = uint64_t{20} << 20;
  options_.group_admission_timeout = absl::Milliseconds(100);
  Serve();
  Rank holder = Connect();
  holder.Write(ClipStart(1, 4 << 20));
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  const std::string gradient(4 << 20, '\1');
  for (const Reply& reply :
       RunAll({Start(0, 2, 1 << 20), Start(1, 2, 1 << 20)}, {gradient, gradient})) {
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(Message(reply), HasSubstr("waited 100ms (--group-admission-timeout)"));
  }
}

TEST_F(GroupTest, ADrainingServerEndsStepsThatCannotBeFinished) {
  Serve();
  Rank alone = Send(Start(0, 2, 1), {3});
  Rank one = Send(Start(0, 2, 1, 1, "complete"), {3});
  Rank two = Begin(Start(1, 2, 1, 1, "complete"));
  AwaitRanks(3);
  std::thread drain([&] { server_->Drain(absl::Seconds(30)); });
  EXPECT_EQ(alone.Finish().status.error_code(), grpc::StatusCode::ABORTED);
  two.Write(Data(Bytes<float>({4})));
  EXPECT_TRUE(two.Finish().status.ok());
  EXPECT_TRUE(one.Finish().status.ok());
  drain.join();
}

TEST_F(GroupTest, ManyRanksGoThroughManySteps) {
  Serve();
  constexpr uint32_t kRanks = 32;
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const Rank connection = Connect();
      for (uint64_t step = 0; step < 30; ++step) {
        grpc::ClientContext context;
        const auto stream = connection.stub->ClipGradNorm(&context);
        v1::ClipGradNormRequest start = Start(rank, kRanks, 1, step);
        start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
        stream->Write(start);
        stream->Write(Data(Bytes<float>({static_cast<float>(step)})));
        stream->WritesDone();
        const Reply reply = Drain(*stream);
        ASSERT_TRUE(reply.status.ok()) << Message(reply);
        EXPECT_EQ(reply.result.norm().total_norm(),
                  std::sqrt(kRanks * static_cast<double>(step * step)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace gradclip
