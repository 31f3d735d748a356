#include "server/group/redis/redis_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <sstream>

#include "tests/server/group/redis/redis_fixture.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class RedisStoreTest : public RedisFixture {
 protected:
  RedisStoreTest() { UseServer(server_); }

  std::vector<std::string> Keys() const {
    std::istringstream lines(server_.Ask({"KEYS", "*"}));
    std::vector<std::string> keys;
    for (std::string key; std::getline(lines, key);) keys.push_back(key);
    return keys;
  }

  RedisServer server_;
};

TEST_F(RedisStoreTest, WantsAnEndpoint) {
  options_.endpoints.clear();
  EXPECT_EQ(RedisStore::Make(options_, times_, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RedisStoreTest, EveryKeyExpires) {
  const std::unique_ptr<RedisStore> store = Make();
  const Call waiting = Join(*store, Rank(0, 3, 7));
  const Call lost = Join(*store, Rank(1, 3, 7));
  const Call sent = Join(*store, Rank(2, 3, 7));
  ASSERT_TRUE(lost.seat.ok());
  (*lost.seat)->Leave(Leaving::kLostConnection);
  sent.Contribute(1);
  ASSERT_TRUE(RunStep(*store, 5).ok());
  const Call cancelled = Join(*store, Rank(0, 2, 6));
  (*cancelled.seat)->Leave(Leaving::kCancelled);
  store->WaitUntilIdle();
  const std::vector<std::string> keys = Keys();
  // The instance, the server, and of the job: itself, its open steps, its aborted attempts, three
  // steps, two of them with sums, and one with calls.
  EXPECT_EQ(keys.size(), 2u + 3 + 3 + 2 + 1) << testing::PrintToString(keys);
  for (const std::string& key : keys) {
    EXPECT_GT(std::stoll(server_.Ask({"PTTL", key})), 0) << key;
    if (key.find("gradclip:{") == 0) {
      EXPECT_THAT(key, Not(HasSubstr("job}")));
    }
  }
}

TEST_F(RedisStoreTest, TheScriptIsLoadedAgainWhereRedisHasForgottenIt) {
  const std::unique_ptr<RedisStore> store = Make();
  const Call first = Join(*store, Rank(0));
  store->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"SCRIPT", "FLUSH"}), "OK");
  const Call second = Join(*store, Rank(1));
  store->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"SCRIPT", "FLUSH"}), "OK");
  first.Contribute(9);
  second.Contribute(16);
  ASSERT_TRUE(first.Get().ok()) << first.status();
  EXPECT_EQ((*second.Get())->total.Norm(), 5);
  EXPECT_EQ(store->counts().connections, 1u);
}

TEST_F(RedisStoreTest, WhoWaitsIsAnsweredThoughTheSubscriptionsConnectionIsLost) {
  const std::unique_ptr<RedisStore> one = Make();
  const std::unique_ptr<RedisStore> other = Make();
  const Call first = Join(*one, Rank(0));
  const Call second = Join(*other, Rank(1));
  first.Contribute(9);
  one->WaitUntilIdle();
  other->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"CLIENT", "KILL", "TYPE", "pubsub"}), "2");
  second.Contribute(16);
  ASSERT_TRUE(first.Get().ok()) << first.status();
  ASSERT_TRUE(second.Get().ok()) << second.status();
  EXPECT_EQ((*first.Get())->total.Norm(), 5);
}

TEST_F(RedisStoreTest, WhoWaitsIsAnsweredThoughTheCommandsConnectionIsLost) {
  const std::unique_ptr<RedisStore> one = Make();
  const std::unique_ptr<RedisStore> other = Make();
  for (uint64_t step = 0; step < 50; ++step) {
    const Call first = Join(*one, Rank(0, 2, step));
    const Call second = Join(*other, Rank(1, 2, step));
    first.Contribute(9);
    second.Contribute(16);
    server_.Ask({"CLIENT", "KILL", "TYPE", "normal"});
    ASSERT_TRUE(first.Get().ok()) << first.status();
    ASSERT_TRUE(second.Get().ok()) << second.status();
    EXPECT_EQ((*first.Get())->total.Norm(), 5);
  }
}

TEST_F(RedisStoreTest, AJobMayHaveOnlySoManyOpenSteps) {
  options_.max_open_steps = 3;
  const std::unique_ptr<RedisStore> store = Make();
  std::vector<Call> open;
  for (uint64_t step = 0; step < 3; ++step) open.push_back(Join(*store, Rank(0, 2, step)));
  const absl::Status refused = Join(*store, Rank(0, 2, 3)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the job has 3 open steps"));
  EXPECT_TRUE(RunStep(*store, 3, "another").ok());
  // Another attempt takes the place of the one before.
  const Call next = Join(*store, Rank(0, 2, 2, 1));
  EXPECT_EQ(open.back().status().code(), absl::StatusCode::kAborted);
  (*open[0].seat)->Leave(Leaving::kCancelled);
  EXPECT_TRUE(RunStep(*store, 4).ok());
}

TEST_F(RedisStoreTest, CallsOfTheSameServerAreToldWhatAnotherOfThemHasEnded) {
  const std::unique_ptr<RedisStore> store = Make();
  const Call old = Join(*store, Rank(0, 2, 1));
  const Call other = Join(*store, Rank(0, 2, 2));
  Participant hurried = Rank(0, 2, 3);
  hurried.timeout = absl::Milliseconds(1);
  const Call late = Join(*store, hurried);
  store->WaitUntilIdle();
  const Call next = Join(*store, Rank(1, 2, 1, 1));
  EXPECT_EQ(old.status().code(), absl::StatusCode::kAborted) << old.status();
  EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded) << late.status();
  Participant restarted = Rank(1, 2, 1);
  restarted.step.generation = 1;
  const Call young = Join(*store, restarted);
  for (const Call* call : {&other, &next}) {
    EXPECT_EQ(call->status().code(), absl::StatusCode::kAborted) << call->status();
    EXPECT_THAT(std::string(call->status().message()), HasSubstr("generation 1 of the job"));
  }
}

TEST_F(RedisStoreTest, AStoppingServerOpensNoStepsAndFinishesThoseOfOthers) {
  const std::unique_ptr<RedisStore> stopping = Make();
  const std::unique_ptr<RedisStore> other = Make();
  const Call first = Join(*other, Rank(0));
  other->WaitUntilIdle();
  stopping->StopOpening();
  const absl::Status refused = RunStep(*stopping, 2);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the server is stopping"));
  const Call second = Join(*stopping, Rank(1));
  first.Contribute(9);
  second.Contribute(16);
  EXPECT_TRUE(first.Get().ok()) << first.status();
  EXPECT_TRUE(second.Get().ok()) << second.status();
}

TEST_F(RedisStoreTest, NumbersBeyondWhatLuaCountsAreToldApart) {
  const std::unique_ptr<RedisStore> store = Make();
  constexpr uint64_t kHigh = 18446744073709551614u;
  ASSERT_TRUE(RunStep(*store, kHigh).ok());
  EXPECT_EQ(RunStep(*store, kHigh - 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(RunStep(*store, kHigh + 1).ok());
  EXPECT_TRUE(RunStep(*store, 9007199254740993u, "another").ok());
  EXPECT_TRUE(RunStep(*store, 9007199254740994u, "another").ok());
}

TEST_F(RedisStoreTest, ManyAbortedStepsAreOverTogether) {
  const std::unique_ptr<RedisStore> store = Make();
  for (uint64_t step = 1; step <= 70; ++step) {
    const Call call = Join(*store, Rank(0, 2, step));
    (*call.seat)->Leave(Leaving::kCancelled);
    store->WaitUntilIdle();
  }
  std::string over;
  for (const std::string& key : Keys()) {
    if (key.ends_with(":job")) over = server_.Ask({"HGET", key, "over"});
  }
  EXPECT_EQ(over, "6");
  EXPECT_EQ(Join(*store, Rank(0, 2, 6, 1)).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RedisStoreTest, OneInstanceForAllServersAndAnotherAfterRedisWasRestarted) {
  const std::unique_ptr<RedisStore> one = Make();
  const std::unique_ptr<RedisStore> other = Make();
  one->WaitUntilIdle();
  other->WaitUntilIdle();
  const std::string before = one->instance();
  EXPECT_EQ(before.size(), 32u);
  EXPECT_EQ(other->instance(), before);
  server_.Kill();
  server_.Start();
  WaitUntilUsable(*one);
  WaitUntilUsable(*other);
  EXPECT_NE(one->instance(), before);
  EXPECT_EQ(other->instance(), one->instance());
}

TEST_F(RedisStoreTest, JobsSpreadOverEndpointsAndStayWhereTheyAre) {
  const RedisServer second;
  options_.endpoints = {server_.address(), second.address()};
  const std::unique_ptr<RedisStore> one = Make();
  options_.endpoints = {second.address(), server_.address()};
  const std::unique_ptr<RedisStore> other = Make();
  std::map<std::string, int> jobs_at;
  for (int i = 0; i < 40; ++i) {
    const std::string job = absl::StrCat("job", i);
    EXPECT_EQ(one->EndpointOf(job), other->EndpointOf(job));
    ++jobs_at[one->EndpointOf(job)];
    const Call first = Join(*one, Rank(0, 2, 1, 0, job));
    const Call partner = Join(*other, Rank(1, 2, 1, 0, job));
    first.Contribute(9);
    partner.Contribute(16);
    ASSERT_TRUE(first.Get().ok()) << first.status();
    ASSERT_TRUE(partner.Get().ok()) << partner.status();
  }
  ASSERT_EQ(jobs_at.size(), 2u);
  for (const auto& [endpoint, jobs] : jobs_at) EXPECT_GT(jobs, 4) << endpoint;
  EXPECT_EQ(one->instance(), other->instance());
}

TEST_F(RedisStoreTest, AMissingEndpointFailsItsOwnJobsOnly) {
  RedisServer second;
  options_.endpoints = {server_.address(), second.address()};
  options_.timeout = absl::Seconds(2);
  second.Kill();
  const std::unique_ptr<RedisStore> store = Make();
  bool seen[2] = {};
  for (int i = 0; !seen[0] || !seen[1]; ++i) {
    const std::string job = absl::StrCat("job", i);
    const bool is_there = store->EndpointOf(job) == server_.address().Describe();
    const absl::Status status = RunStep(*store, 1, job);
    EXPECT_EQ(status.code(), is_there ? absl::StatusCode::kOk : absl::StatusCode::kUnavailable);
    seen[is_there ? 1 : 0] = true;
  }
  EXPECT_FALSE(store->reachable());
  EXPECT_EQ(store->instance(), "");
}

TEST_F(RedisStoreTest, AnotherDatabaseIsAnotherStore) {
  const std::unique_ptr<RedisStore> one = Make();
  options_.endpoints[0].database = 3;
  const std::unique_ptr<RedisStore> other = Make();
  ASSERT_TRUE(RunStep(*one, 5).ok());
  ASSERT_TRUE(RunStep(*other, 4).ok());
  EXPECT_NE(one->instance(), other->instance());
}

TEST_F(RedisStoreTest, AFullRedisRefusesNewCallsAndFinishesTheOthers) {
  const std::unique_ptr<RedisStore> store = Make();
  const Call first = Join(*store, Rank(0));
  const Call second = Join(*store, Rank(1));
  store->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"CONFIG", "SET", "maxmemory", "1"}), "OK");
  const absl::Status refused = RunStep(*store, 2);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("maxmemory"));
  first.Contribute(9);
  second.Contribute(16);
  EXPECT_TRUE(first.Get().ok()) << first.status();
  EXPECT_TRUE(second.Get().ok()) << second.status();
  EXPECT_EQ(server_.Ask({"CONFIG", "SET", "maxmemory", "0"}), "OK");
  EXPECT_TRUE(RunStep(*store, 2).ok());
}

TEST_F(RedisStoreTest, TheDatabaseHoldsSomethingElseUnderAKey) {
  const std::unique_ptr<RedisStore> store = Make();
  ASSERT_TRUE(RunStep(*store, 1).ok());
  for (const std::string& key : Keys()) {
    if (!key.ends_with(":job")) continue;
    server_.Ask({"SET", key, "nonsense"});
  }
  const absl::Status status = RunStep(*store, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("WRONGTYPE"));
  EXPECT_TRUE(RunStep(*store, 2, "another").ok());
}

class Passwords : public RedisFixture {
 protected:
  Passwords() : server_({"--requirepass", "right"}) { UseServer(server_); }
  ~Passwords() override { std::remove(file_.c_str()); }

  void Write(const std::string& password) const { std::ofstream(file_) << password << "\n"; }

  const std::string file_ = absl::StrCat(testing::TempDir(), "/gradclip-redis-password-", getpid());
  RedisServer server_;
};

TEST_F(Passwords, AWrongOneIsAClearErrorAtOnceAndTheFileIsReadAnew) {
  options_.password_file = file_;
  options_.timeout = absl::Minutes(10);
  Write("wrong-one");
  const std::unique_ptr<RedisStore> store = Make();
  const absl::Status refused = RunStep(*store, 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr(server_.address().Describe()), HasSubstr("WRONGPASS"),
                    Not(HasSubstr("wrong-one"))));
  EXPECT_FALSE(store->reachable());
  Write("right");
  WaitUntilUsable(*store);
  EXPECT_TRUE(store->reachable());
}

TEST_F(Passwords, NoneIsAClearError) {
  const std::unique_ptr<RedisStore> store = Make();
  EXPECT_THAT(std::string(RunStep(*store, 1).message()), HasSubstr("NOAUTH"));
}

TEST_F(Passwords, AFileThatIsNotThereIsAClearError) {
  options_.password_file = "/nonexistent/password";
  options_.timeout = absl::Milliseconds(200);
  const std::unique_ptr<RedisStore> store = Make();
  EXPECT_THAT(std::string(RunStep(*store, 1).message()),
              AllOf(HasSubstr("/nonexistent/password"), HasSubstr("can't be read")));
}

TEST_F(Passwords, AUserHasItsOwn) {
  options_.password = "right";
  options_.endpoints[0].user = "default";
  EXPECT_TRUE(RunStep(*Make(), 1).ok());
  options_.endpoints[0].user = "nobody";
  EXPECT_THAT(std::string(RunStep(*Make(), 1).message()), HasSubstr("WRONGPASS"));
}

// The rights that README.md names are enough.
TEST(RedisRights, TheDocumentedOnesAreEnough) {
  const RedisServer server;
  std::vector<std::string> words = {"ACL",         "SETUSER",           "clip", "on", ">pw",
                                    "~gradclip:*", "&gradclip:server:*"};
  for (const char* command : {"eval",      "evalsha",
                              "ping",      "select",
                              "subscribe", "publish",
                              "info",      "time",
                              "hgetall",   "hget",
                              "hset",      "hsetnx",
                              "hmget",     "hdel",
                              "hlen",      "hkeys",
                              "hexists",   "zadd",
                              "zrem",      "zrange",
                              "zcard",     "zremrangebyscore",
                              "del",       "pexpire",
                              "pttl"}) {
    words.push_back(absl::StrCat("+", command));
  }
  ASSERT_EQ(server.Ask(words), "OK");
  RedisOptions options;
  options.endpoints = {server.address()};
  options.endpoints[0].user = "clip";
  options.password = "pw";
  const auto store = RedisStore::Make(options, {}, nullptr);
  ASSERT_TRUE(store.ok());
  Told told;
  Participant participant;
  participant.step = {"job", 0, 1, 0};
  participant.timeout = absl::Minutes(1);
  const auto seat = (*store)->Join(participant, told.Callback());
  ASSERT_TRUE(seat.ok());
  (*seat)->Contribute(Contribution());
  EXPECT_TRUE(told.Get().ok()) << told.Get().status();
}

}  // namespace
}  // namespace gradclip
