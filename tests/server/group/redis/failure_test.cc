// Redis and servers that die, stand still, lose their memory or talk nonsense.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "tests/server/group/redis/redis_fixture.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class RedisFailure : public RedisFixture {
 protected:
  RedisFailure() { UseServer(server_); }

  RedisServer server_;
};

TEST_F(RedisFailure, AServerStartsWithoutRedisAndGoesOnWhenItIsThere) {
  server_.Kill();
  options_.timeout = absl::Seconds(2);
  const std::unique_ptr<RedisStore> store = Make();
  const absl::Status first = RunStep(*store, 1);
  EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(first.message()),
              AllOf(HasSubstr("job \"job\", step 1"), HasSubstr(server_.address().Describe()),
                    HasSubstr("Connection refused"), HasSubstr("ask again")));
  // From then on at once.
  EXPECT_EQ(RunStep(*store, 1).code(), absl::StatusCode::kUnavailable);
  server_.Start();
  WaitUntilUsable(*store);
  EXPECT_TRUE(RunStep(*store, 1).ok());
}

TEST_F(RedisFailure, CallsAreToldWhenRedisIsKilledAndStepsGoOnAfterIt) {
  options_.timeout = absl::Seconds(2);
  const std::unique_ptr<RedisStore> store = Make();
  const Call waiting = Join(*store, Rank(0));
  const Call sending = Join(*store, Rank(1));
  waiting.Contribute(9);
  store->WaitUntilIdle();
  server_.Kill();
  const absl::Status told = waiting.status();
  EXPECT_EQ(told.code(), absl::StatusCode::kUnavailable) << told;
  EXPECT_THAT(std::string(told.message()), HasSubstr("unknown: ask again"));
  sending.Contribute(16);
  EXPECT_EQ(sending.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(store->reachable());
  server_.Start();
  WaitUntilUsable(*store);
  ExpectStepOfTwo(*store, /*step=*/1, /*attempt=*/1);
}

TEST_F(RedisFailure, ARedisThatComesBackEmptyLeavesTheOutcomeUnknownAndTheAttemptOver) {
  options_.timeout = absl::Minutes(1);
  const std::unique_ptr<RedisStore> store = Make();
  const Call waiting = Join(*store, Rank(0));
  const Call sending = Join(*store, Rank(1));
  waiting.Contribute(9);
  store->WaitUntilIdle();
  server_.Kill();
  server_.Start();
  for (const Call* call : {&waiting, &sending}) {
    EXPECT_EQ(call->status().code(), absl::StatusCode::kUnavailable) << call->status();
    EXPECT_THAT(std::string(call->status().message()), HasSubstr("unknown: ask again"));
  }
  // Who knows whether it was committed; it is not committed again.
  const absl::Status again = Join(*store, Rank(0)).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition) << again;
  ExpectStepOfTwo(*store, /*step=*/1, /*attempt=*/1);
}

TEST_F(RedisFailure, SoDoesAContributionThatWentWithItsJoin) {
  options_.timeout = absl::Minutes(1);
  const std::unique_ptr<RedisStore> store = Make();
  store->WaitUntilIdle();
  server_.Freeze();
  const uint64_t commands = store->counts().commands;
  const Call call = Join(*store, Rank(0));
  call.Contribute(9);
  while (store->counts().commands == commands) absl::SleepFor(absl::Milliseconds(1));
  // It may have been the last one, and another rank been told so.
  server_.Kill();
  server_.Start();
  EXPECT_EQ(call.status().code(), absl::StatusCode::kUnavailable) << call.status();
  EXPECT_THAT(std::string(call.status().message()), HasSubstr("unknown: ask again"));
  const absl::Status again = Join(*store, Rank(0)).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition) << again;
  ExpectStepOfTwo(*store, /*step=*/1, /*attempt=*/1);
}

TEST_F(RedisFailure, ACommittedStepIsNotOpenedAgainInARedisThatCameBackEmpty) {
  const std::unique_ptr<RedisStore> store = Make();
  ASSERT_TRUE(RunStep(*store, 5).ok());
  server_.Kill();
  server_.Start();
  WaitUntilUsable(*store);
  EXPECT_EQ(RunStep(*store, 5).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(RunStep(*store, 4).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(RunStep(*store, 6).ok());
  // From then on Redis says it to servers that have not seen it.
  const std::unique_ptr<RedisStore> young = Make();
  EXPECT_EQ(RunStep(*young, 5).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RedisFailure, WhatIsOnDiskIsFinalAfterARestartAndWhatWasOpenIsAborted) {
  RedisServer durable({"--appendonly", "yes", "--appendfsync", "always"});
  UseServer(durable);
  options_.timeout = absl::Minutes(1);
  const std::unique_ptr<RedisStore> store = Make();
  ASSERT_TRUE(RunStep(*store, 1).ok());
  const Call cancelled = Join(*store, Rank(0, 2, 2));
  (*cancelled.seat)->Leave(Leaving::kCancelled);
  const Call waiting = Join(*store, Rank(0, 2, 3));
  const Call sending = Join(*store, Rank(1, 2, 3));
  waiting.Contribute(9);
  store->WaitUntilIdle();
  durable.Kill();
  durable.Start();
  for (const Call* call : {&waiting, &sending}) {
    EXPECT_EQ(call->status().code(), absl::StatusCode::kAborted) << call->status();
    EXPECT_THAT(std::string(call->status().message()), HasSubstr("Redis was restarted"));
  }
  EXPECT_EQ(Join(*store, Rank(1, 2, 3)).status().code(), absl::StatusCode::kAborted);
  const absl::Status late = Join(*store, Rank(1, 2, 2)).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(late.message()), HasSubstr("rank 0 cancelled its call"));
  EXPECT_TRUE(RunStep(*store, 1).ok());
}

TEST_F(RedisFailure, ACommitThatIsOnDiskIsAnsweredAfterARestart) {
  RedisServer durable({"--appendonly", "yes", "--appendfsync", "always"});
  UseServer(durable);
  options_.timeout = absl::Minutes(1);
  const std::unique_ptr<RedisStore> one = Make();
  const std::unique_ptr<RedisStore> other = Make();
  for (uint64_t step = 0; step < 5; ++step) {
    // Whoever hears of the commit before Redis dies: those who wait hear the same after it.
    const Call first = Join(*one, Rank(0, 2, step));
    const Call second = Join(*other, Rank(1, 2, step));
    first.Contribute(9);
    one->WaitUntilIdle();
    second.Contribute(16);
    const bool is_committed = second.Get().ok();
    durable.Kill();
    durable.Start();
    EXPECT_TRUE(is_committed) << second.status();
    ASSERT_TRUE(first.Get().ok()) << first.status();
    EXPECT_EQ((*first.Get())->total.Norm(), 5);
    WaitUntilUsable(*one);
    WaitUntilUsable(*other);
  }
}

TEST_F(RedisFailure, AFrozenRedisIsGivenUpAndItsCallsAreLost) {
  options_.timeout = absl::Seconds(2);
  times_.reconnect_grace = absl::Seconds(1);
  const std::unique_ptr<RedisStore> store = Make();
  const std::unique_ptr<RedisStore> patient = [&] {
    options_.timeout = absl::Minutes(5);
    return Make();
  }();
  const Call first = Join(*patient, Rank(0));
  const Call second = Join(*store, Rank(1));
  first.Contribute(9);
  patient->WaitUntilIdle();
  store->WaitUntilIdle();
  server_.Freeze();
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("has not answered for 2s"));
  EXPECT_EQ(RunStep(*store, 2).code(), absl::StatusCode::kUnavailable);
  server_.Thaw();
  // The call that was given up counts as lost, though its server is alive.
  EXPECT_EQ(first.status().code(), absl::StatusCode::kAborted) << first.status();
  EXPECT_THAT(std::string(first.status().message()), HasSubstr("lost the connection of rank 1"));
  WaitUntilUsable(*store);
}

TEST_F(RedisFailure, AShortFreezeIsNoticedByNobody) {
  options_.timeout = absl::Minutes(1);
  const std::unique_ptr<RedisStore> store = Make();
  const Call first = Join(*store, Rank(0));
  server_.Freeze();
  const Call second = Join(*store, Rank(1));
  first.Contribute(9);
  second.Contribute(16);
  server_.Thaw();
  ASSERT_TRUE(first.Get().ok()) << first.status();
  EXPECT_EQ((*second.Get())->total.Norm(), 5);
}

TEST_F(RedisFailure, AForgottenServerAndInstanceAreFoundOut) {
  const std::unique_ptr<RedisStore> store = Make();
  const Call waiting = Join(*store, Rank(0));
  waiting.Contribute(9);
  store->WaitUntilIdle();
  const std::string before = store->instance();
  EXPECT_EQ(server_.Ask({"FLUSHALL"}), "OK");
  EXPECT_EQ(waiting.status().code(), absl::StatusCode::kUnavailable) << waiting.status();
  EXPECT_NE(store->instance(), before);
  EXPECT_TRUE(RunStep(*store, 2).ok());
}

// What a server does that is killed: its process, which has called `life` with a store of its own
// and has come to the end of it.
class DeadServer : public RedisFailure {
 protected:
  template <typename Life>
  void LiveAndDie(const Life& life) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    // No thread is running yet.
    const pid_t server = fork();
    ASSERT_GE(server, 0);
    if (server == 0) {
      const std::unique_ptr<RedisStore> store = Make();
      const auto kept = life(*store);
      store->WaitUntilIdle();
      if (write(ready[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    kill(server, SIGKILL);
    waitpid(server, nullptr, 0);
  }
};

TEST_F(DeadServer, ItsRanksComeBackElsewhereAndTheStepCompletes) {
  LiveAndDie([](RedisStore& store) {
    std::vector<Call> calls;
    calls.push_back(Join(store, Rank(1, 4)));
    calls.push_back(Join(store, Rank(2, 4)));
    calls.back().Contribute(4);
    return calls;
  });
  const std::unique_ptr<RedisStore> store = Make();
  std::vector<Call> calls;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    calls.push_back(Join(*store, Rank(rank, 4)));
    calls.back().Contribute(4);
  }
  for (const Call& call : calls) {
    ASSERT_TRUE(call.Get().ok()) << call.status();
    EXPECT_EQ((*call.Get())->total.Norm(), 4);
  }
}

TEST_F(DeadServer, ItsRanksAreMissedWhereTheyDoNotComeBack) {
  times_.reconnect_grace = absl::Milliseconds(100);
  LiveAndDie([](RedisStore& store) {
    std::vector<Call> calls;
    calls.push_back(Join(store, Rank(1, 3)));
    calls.push_back(Join(store, Rank(2, 3)));
    calls.back().Contribute(4);
    return calls;
  });
  const std::unique_ptr<RedisStore> store = Make();
  const Call call = Join(*store, Rank(0, 3));
  call.Contribute(4);
  EXPECT_EQ(call.status().code(), absl::StatusCode::kAborted) << call.status();
  EXPECT_THAT(std::string(call.status().message()),
              HasSubstr("lost the connection of rank 1, and waited 100ms"));
}

// Accepts connections and sends each the same bytes, whatever it is asked.
class Nonsense {
 public:
  explicit Nonsense(std::string bytes) : bytes_(std::move(bytes)) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_.host = "127.0.0.1";
    address_.port = ntohs(address.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~Nonsense() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
    for (const int connection : connections_) close(connection);
  }

  const RedisAddress& address() const { return address_; }

 private:
  void Run() {
    for (int connection; (connection = accept(listener_, nullptr, nullptr)) >= 0;) {
      [[maybe_unused]] const ssize_t sent =
          send(connection, bytes_.data(), bytes_.size(), MSG_NOSIGNAL);
      connections_.push_back(connection);
    }
  }

  const std::string bytes_;
  RedisAddress address_;
  int listener_ = -1;
  std::vector<int> connections_;
  std::thread thread_;
};

TEST_F(RedisFixture, NonsenseIsNoAnswer) {
  options_.timeout = absl::Milliseconds(200);
  for (const char* bytes :
       {"HTTP/1.1 400 Bad Request\r\n\r\n", "$5\r\nhello\r\n", "*-1\r\n", "*0\r\n", ":1\r\n:2\r\n",
        "*2\r\n$5\r\nhello\r\n*1\r\n:1\r\n", "$-1\r\n", "*3\r\n$7\r\nmessage\r\n:1\r\n:1\r\n",
        "+OK\r\n+OK\r\n+OK\r\n", "*2147483647\r\n", "$99999999999999999999\r\n", "-\r\n", "\r\n",
        "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", ""}) {
    const Nonsense nonsense(bytes);
    options_.endpoints = {nonsense.address()};
    const std::unique_ptr<RedisStore> store = Make();
    EXPECT_EQ(RunStep(*store, 1).code(), absl::StatusCode::kUnavailable) << bytes;
  }
}

// However often Redis dies, stands still or loses connections: no attempt is both committed and
// aborted, and all that are told of a committed one are told the same.
class RedisChaos : public RedisFixture {
 protected:
  static constexpr uint32_t kRanks = 6;
  static constexpr int kDisturbances = 15;

  struct Answers {
    std::set<double> norms;
    uint64_t aborts = 0;
  };

  // The life of one rank, which comes to another server with each call.
  void Live(uint32_t rank) {
    std::mt19937_64 random(rank);
    for (uint64_t step = 0; !done_; ++step) {
      // Where the others have lost a step they never finish it.
      step = std::max(step, front_.load());
      front_ = std::max(step, front_.load());
      for (uint32_t attempt = 0; !done_ && step >= front_;) {
        Participant participant = Rank(rank, kRanks, step, attempt);
        participant.timeout = absl::Milliseconds(400);
        const Call call = Join(*stores_[random() % stores_.size()], participant);
        // Another value each time: a second commit would show.
        call.Contribute(static_cast<double>(1 + random() % 1000));
        const Told::Answer answer = call.Get();
        const absl::StatusCode code = answer.status().code();
        if (code == absl::StatusCode::kUnavailable) {
          absl::SleepFor(absl::Milliseconds(5));
          continue;
        }
        const std::lock_guard lock(mutex_);
        if (answer.ok()) {
          answers_[{step, attempt}].norms.insert((*answer)->total.Norm());
          break;
        }
        if (code == absl::StatusCode::kAborted || code == absl::StatusCode::kDeadlineExceeded) {
          ++answers_[{step, attempt}].aborts;
        } else {
          // Its contribution was taken, and this is another; or the attempt is over.
          ASSERT_TRUE(code == absl::StatusCode::kAlreadyExists ||
                      code == absl::StatusCode::kFailedPrecondition)
              << answer.status();
          const std::string message(answer.status().message());
          if (message.find("that step is over") != std::string::npos ||
              message.find("was committed by") != std::string::npos) {
            break;
          }
        }
        ++attempt;
      }
    }
  }

  void Run(RedisServer& server) {
    UseServer(server);
    options_.timeout = absl::Milliseconds(400);
    times_.reconnect_grace = absl::Milliseconds(200);
    for (int i = 0; i < 3; ++i) stores_.push_back(Make());
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([this, rank] { Live(rank); });
    }
    std::mt19937_64 random(7);
    for (int i = 0; i < kDisturbances; ++i) {
      absl::SleepFor(absl::Milliseconds(50 + random() % 200));
      switch (random() % 4) {
        case 0:
        case 1:
          server.Kill();
          absl::SleepFor(absl::Milliseconds(random() % 600));
          server.Start();
          break;
        case 2:
          server.Ask({"CLIENT", "KILL", "TYPE", random() % 2 == 0 ? "pubsub" : "normal"});
          break;
        default:
          server.Freeze();
          absl::SleepFor(absl::Milliseconds(random() % 700));
          server.Thaw();
      }
    }
    absl::SleepFor(absl::Milliseconds(300));
    done_ = true;
    for (std::thread& thread : threads) thread.join();
    uint64_t committed = 0;
    for (const auto& [attempt, told] : answers_) {
      const std::string where = absl::StrCat("step ", attempt.first, ", attempt ", attempt.second);
      EXPECT_LE(told.norms.size(), 1u) << where;
      if (told.norms.empty()) continue;
      ++committed;
      EXPECT_EQ(told.aborts, 0u) << where;
    }
    EXPECT_GT(committed, 0u);
    std::printf("%d attempts, %d of them committed\n", static_cast<int>(answers_.size()),
                static_cast<int>(committed));
  }

  std::vector<std::unique_ptr<RedisStore>> stores_;
  std::atomic<bool> done_ = false;
  std::atomic<uint64_t> front_ = 0;
  std::mutex mutex_;
  std::map<std::pair<uint64_t, uint32_t>, Answers> answers_;
};

TEST_F(RedisChaos, HoldsTheGuaranteeThoughRedisForgetsAllWithEachDeath) {
  RedisServer server;
  Run(server);
}

TEST_F(RedisChaos, HoldsTheGuaranteeWithARedisThatKeepsAllOnDisk) {
  RedisServer server({"--appendonly", "yes", "--appendfsync", "always"});
  Run(server);
}

}  // namespace
}  // namespace gradclip
