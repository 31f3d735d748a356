// Ranks of one step that come to different servers, which share a Redis.
#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/group/redis/redis_server.h"
#include "tests/server/rpc/group_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

class GroupServersTest : public GroupTest {
 protected:
  GroupServersTest() {
    options_.group_store = absl::StrCat("redis://", redis_.address().Describe());
    for (int i = 0; i < 2; ++i) servers_.push_back(StartServer());
  }

  std::unique_ptr<Server> StartServer() {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_, log_);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }

  RedisServer redis_;
  std::vector<std::unique_ptr<Server>> servers_;
};

TEST_F(GroupServersTest, GiveAllRanksOneNorm) {
  for (uint64_t step = 0; step < 20; ++step) {
    Rank one = Send(*servers_[0], Start(0, 2, 1, step), {3});
    Rank two = Send(*servers_[1], Start(1, 2, 1, step), {4});
    for (Rank* rank : {&one, &two}) {
      const Reply reply = rank->Finish();
      ASSERT_TRUE(reply.status.ok()) << Message(reply);
      EXPECT_EQ(reply.result.norm().total_norm(), 5);
    }
  }
}

TEST_F(GroupServersTest, ShareAnInstance) {
  std::string instances[2];
  for (int i = 0; i < 2; ++i) {
    const Rank rank = Connect(*servers_[i]);
    while (instances[i].empty()) {
      grpc::ClientContext context;
      v1::GetServerInfoResponse info;
      ASSERT_TRUE(rank.stub->GetServerInfo(&context, {}, &info).ok());
      instances[i] = info.instance();
    }
  }
  EXPECT_EQ(instances[0], instances[1]);
}

TEST_F(GroupServersTest, ACancelAtOneEndsTheStepAtTheOther) {
  Rank waiting = Send(*servers_[0], Start(0, 2, 1), {3});
  Rank leaving = Begin(*servers_[1], Start(1, 2, 1));
  while (servers_[1]->group_calls() == 0) std::this_thread::yield();
  leaving.context->TryCancel();
  const Reply reply = waiting.Finish();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(Message(reply), HasSubstr("rank 1 cancelled its call"));
}

TEST_F(GroupServersTest, RanksOfAServerThatStopsGoOnWithAnother) {
  Rank waiting = Send(*servers_[0], Start(0, 2, 1), {3});
  {
    Rank cut = Begin(*servers_[1], Start(1, 2, 1));
    while (servers_[1]->group_calls() == 0) std::this_thread::yield();
    servers_[1]->Drain(absl::ZeroDuration());
    EXPECT_FALSE(cut.Finish().status.ok());
  }
  const Reply again = Send(*servers_[0], Start(1, 2, 1), {4}).Finish();
  ASSERT_TRUE(again.status.ok()) << Message(again);
  EXPECT_EQ(again.result.norm().total_norm(), 5);
  EXPECT_TRUE(waiting.Finish().status.ok());
}

TEST_F(GroupServersTest, AskingAtAnotherServerGivesTheSameAnswer) {
  Rank one = Send(*servers_[0], Start(0, 2, 1), {3});
  EXPECT_TRUE(Send(*servers_[0], Start(1, 2, 1), {4}).Finish().status.ok());
  EXPECT_TRUE(one.Finish().status.ok());
  const Reply again = Send(*servers_[1], Start(1, 2, 1), {4}).Finish();
  ASSERT_TRUE(again.status.ok()) << Message(again);
  EXPECT_EQ(again.result.norm().total_norm(), 5);
  EXPECT_EQ(Send(*servers_[1], Start(1, 2, 1), {5}).Finish().status.error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(GroupServersTest, WithoutRedisGroupsAreUnavailableAndAllElseWorks) {
  redis_.Kill();
  const Reply refused = Send(*servers_[0], Start(0, 1, 1), {3}).Finish();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE) << Message(refused);
  EXPECT_TRUE(Send(*servers_[0], ClipStart(1, 1), {3}).Finish().status.ok());
  redis_.Start();
  uint64_t step = 1;
  while (!Send(*servers_[0], Start(0, 1, 1, ++step), {3}).Finish().status.ok()) {
  }
}

TEST_F(GroupServersTest, ARankThatWaitsTooLongForMemoryAbortsTheStepForAll) {
  options_.memory_budget = options_.max_call_bytes = uint64_t{20} << 20;
  options_.group_admission_timeout = absl::Milliseconds(100);
  servers_[0] = StartServer();
  Rank holder = Begin(*servers_[0], ClipStart(1, 4 << 20));
  while (servers_[0]->reserved_bytes() == 0) std::this_thread::yield();
  Rank waiting = Send(*servers_[1], Start(1, 2, 1), {1});
  Rank starved = Begin(*servers_[0], Start(0, 2, 1 << 20));
  for (Rank* rank : {&waiting, &starved}) {
    const Reply reply = rank->AwaitEnd();
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << Message(reply);
    EXPECT_THAT(Message(reply), HasSubstr("waited 100ms (--group-admission-timeout)"));
  }
}

}  // namespace
}  // namespace gradclip
