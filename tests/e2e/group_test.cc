// Ranks of a group as the client library and the command are, against a server of its own process.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"
#include "tests/e2e/command_fixture.h"
#include "tests/e2e/process.h"
#include "tests/server/group/redis/redis_server.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

constexpr int64_t kElements = 3 * 4096;

std::vector<float> Shard(uint32_t rank) {
  std::vector<float> shard(kElements);
  for (size_t i = 0; i < shard.size(); ++i) {
    shard[i] = static_cast<float>(i % 97) * 0.01f + static_cast<float>(rank);
  }
  return shard;
}

Tensor TensorOf(std::vector<float>& elements) {
  return {"w", DType::kFloat32, {static_cast<int64_t>(elements.size())}, elements.data()};
}

CallOptions RankOf(uint32_t rank, uint32_t world_size, uint64_t step = 1) {
  CallOptions call;
  call.group.emplace();
  call.group->job = "job";
  call.group->step = step;
  call.group->rank = rank;
  call.group->world_size = world_size;
  return call;
}

// For CallOptions::progress. The server had been asked for its instance before the first byte went.
std::function<void(uint64_t, uint64_t)> NotifyWhenSent(absl::Notification& sent) {
  return [&sent](uint64_t done, uint64_t total) {
    if (done == total && !sent.HasBeenNotified()) sent.Notify();
  };
}

class GroupClients : public testing::Test {
 protected:
  void Serve(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--listen=" + address_, "--memory-socket=" + folder_ / "memory"});
    server_ = std::make_unique<ServerProcess>(more);
  }

  static ClipOptions Limit(ReplyMode reply = ReplyMode::kFastest) {
    ClipOptions options;
    options.max_norm = 1;
    options.reply = reply;
    return options;
  }

  void ExpectToGoOnElsewhere(const std::vector<std::string>& flags, uint32_t attempt);

  const Folder folder_;
  const std::string address_ = "unix:" + folder_ / "server";
  std::unique_ptr<ServerProcess> server_;
};

TEST_F(GroupClients, RanksClipAsOneCallerWithTheWholeGradientDoes) {
  Serve();
  std::vector<float> whole;
  for (const uint32_t rank : {0u, 1u, 2u}) {
    const std::vector<float> shard = Shard(rank);
    whole.insert(whole.end(), shard.begin(), shard.end());
  }
  Client client(address_);
  const auto alone = client.Clip({{TensorOf(whole)}}, Limit());
  ASSERT_TRUE(alone.ok()) << alone.status();
  uint64_t step = 0;
  for (const ReplyMode reply : {ReplyMode::kCoefficient, ReplyMode::kGradient}) {
    // The last rank shares its memory.
    ++step;
    std::vector<float> clipped[3];
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < 3; ++rank) {
      threads.emplace_back([&, rank] {
        clipped[rank] = Shard(rank);
        absl::StatusOr<ClipAnswer> answer;
        if (rank < 2) {
          answer = client.Clip({{TensorOf(clipped[rank])}}, Limit(reply), RankOf(rank, 3, step));
        } else {
          SharedGradientOptions options;
          options.require_shared = true;
          auto shared =
              SharedGradient::Make(client, {{{"w", DType::kFloat32, {kElements}}}}, options);
          ASSERT_TRUE(shared.ok()) << shared.status();
          void* const memory = shared->tensors()[0].data;
          std::memcpy(memory, clipped[rank].data(), kElements * sizeof(float));
          answer = shared->Clip(Limit(reply), RankOf(rank, 3, step));
          std::memcpy(clipped[rank].data(), memory, kElements * sizeof(float));
        }
        ASSERT_TRUE(answer.ok()) << answer.status();
        EXPECT_EQ(answer->norm.total_norm, alone->norm.total_norm);
        EXPECT_EQ(answer->coefficient, alone->coefficient);
        EXPECT_EQ(answer->norm.attempt, 0u);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (uint32_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(std::memcmp(clipped[rank].data(), whole.data() + rank * kElements,
                            kElements * sizeof(float)),
                0);
    }
  }
}

TEST_F(GroupClients, SayWhatIsWrongWithAGroupBeforeTheyCall) {
  Client client("unix:/nowhere");
  std::vector<float> shard = Shard(0);
  const auto error = [&](const CallOptions& call) {
    return std::string(client.ComputeNorm({{TensorOf(shard)}}, {}, call).status().message());
  };
  CallOptions call = RankOf(2, 2);
  EXPECT_THAT(error(call), HasSubstr("group.rank is 2, and group.world_size 2"));
  call = RankOf(0, 1);
  call.group->job.clear();
  EXPECT_THAT(error(call), HasSubstr("group.job has 0 bytes"));
  call.group->job = "\xff";
  EXPECT_THAT(error(call), HasSubstr("group.job"));
  call = RankOf(0, 1);
  call.group->timeout = absl::ZeroDuration();
  EXPECT_THAT(error(call), HasSubstr("group.timeout is 0"));
  call = RankOf(0, 1);
  call.group->max_attempts = 0;
  EXPECT_THAT(error(call), HasSubstr("group.max_attempts is 0"));
  ClipOptions known = Limit();
  known.total_norm = 1;
  EXPECT_EQ(client.Clip({{TensorOf(shard)}}, known, RankOf(0, 1)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(GroupClients, GoOnWithTheNextAttemptWhereTheyAreToldTo) {
  Serve();
  Client client(address_);
  std::vector<float> shards[2] = {Shard(0), Shard(1)};
  // A rank that gives up by its own clock ends the attempt.
  CallOptions impatient = RankOf(1, 2);
  impatient.timeout = absl::Seconds(1);  // enough to have come to the step
  EXPECT_EQ(client.ComputeNorm({{TensorOf(shards[1])}}, {}, impatient).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  const auto told = client.ComputeNorm({{TensorOf(shards[1])}}, {}, RankOf(1, 2)).status();
  EXPECT_EQ(told.code(), absl::StatusCode::kAborted) << told;
  std::vector<std::thread> threads;
  for (const uint32_t rank : {1u, 0u}) {
    threads.emplace_back([&, rank] {
      CallOptions call = RankOf(rank, 2);
      call.group->max_attempts = 3;
      const auto answer = client.ComputeNorm({{TensorOf(shards[rank])}}, {}, call);
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_EQ(answer->attempt, 1u);
    });
    // The other one comes to the first attempt while this one waits in the second.
    absl::SleepFor(absl::Milliseconds(100));
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(GroupClients, AreToldWhereTheServerWasRestartedAmidAStep) {
  Serve();
  ClientOptions options;
  options.initial_backoff = absl::Milliseconds(10);
  options.max_retries = 100;
  Client client(address_, options);
  std::vector<float> shard = Shard(0);
  absl::StatusOr<NormAnswer> answer;
  absl::Notification sent;
  CallOptions call = RankOf(0, 2);
  call.progress = NotifyWhenSent(sent);
  std::thread waiting([&] { answer = client.ComputeNorm({{TensorOf(shard)}}, {}, call); });
  sent.WaitForNotification();  // else it might only meet the second server
  server_->process().Signal(SIGKILL);
  server_.reset();
  Serve();
  waiting.join();
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kAborted) << answer.status();
  EXPECT_THAT(std::string(answer.status().message()),
              HasSubstr("the server was restarted amid step 1 of the job, attempt 0"));
}

// Two ranks, whose first server dies when the first of them has sent its gradient. They are
// answered by the second server, in the attempt that is given.
void GroupClients::ExpectToGoOnElsewhere(const std::vector<std::string>& flags, uint32_t attempt) {
  const std::string other = "unix:" + folder_ / "other";
  Serve(flags);
  std::vector<std::string> of_other = flags;
  of_other.push_back("--listen=" + other);
  const ServerProcess second(of_other);
  ClientOptions options;
  options.initial_backoff = absl::Milliseconds(10);
  const std::string addresses = address_ + "," + other;
  std::vector<float> shards[2] = {Shard(0), Shard(1)};
  std::vector<float> whole = shards[0];
  whole.insert(whole.end(), shards[1].begin(), shards[1].end());
  const auto alone = Client(other).ComputeNorm({{TensorOf(whole)}});
  ASSERT_TRUE(alone.ok()) << alone.status();

  absl::Notification sent;
  std::vector<std::thread> threads;
  absl::StatusOr<NormAnswer> answers[2];
  const auto start = [&](uint32_t rank) {
    threads.emplace_back([&, rank] {
      Client client(addresses, options);
      CallOptions call = RankOf(rank, 2);
      call.group->max_attempts = 3;
      if (rank == 0) call.progress = NotifyWhenSent(sent);
      answers[rank] = client.ComputeNorm({{TensorOf(shards[rank])}}, {}, call);
    });
  };
  start(0);
  sent.WaitForNotification();
  server_->process().Signal(SIGKILL);
  server_.reset();
  start(1);  // finds nobody at the first address
  for (std::thread& thread : threads) thread.join();
  for (const auto& answer : answers) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->total_norm, alone->total_norm);
    EXPECT_EQ(answer->attempt, attempt);
  }
}

TEST_F(GroupClients, GoOnAtAnotherAddressWhereTheirServerDies) {
  // Rank 0 learns that another server may know nothing of the step.
  ExpectToGoOnElsewhere({}, /*attempt=*/1);
}

TEST_F(GroupClients, CompleteTheStepAtAnotherServerOfOneRedisWhereTheirsDies) {
  const RedisServer redis;
  ExpectToGoOnElsewhere({"--group-store=redis://" + redis.address().Describe()}, /*attempt=*/0);
}

using GroupCommand = Command;

TEST_F(GroupCommand, StartsWithTheAttemptItIsGivenAtAnAddressThatAnswers) {
  const std::string file = GRADCLIP_TEST_DATA "/gradients/step-090.safetensors";
  Process process("gradclip",
                  {"norm", file, "--server", "unix:/no/such/socket," + server_.address(), "--job",
                   "a", "--step", "1", "--rank", "0", "--world-size", "1", "--generation", "2",
                   "--attempt", "3", "--group-timeout", "30s", "--json"});
  ASSERT_EQ(process.Wait(), 0) << process.err();
  EXPECT_EQ(nlohmann::json::parse(process.out())["attempt"], 3);
  const Ran alone = Run({"norm", file, "--json"});
  EXPECT_FALSE(nlohmann::json::parse(alone.out).contains("attempt"));
}

TEST_F(GroupCommand, ProcessesAreRanks) {
  const std::string file = GRADCLIP_TEST_DATA "/gradients/step-090.safetensors";
  WriteFile(Out("secret"), "s\n");
  const auto rank = [&](const std::string& number, const std::string& verb,
                        std::vector<std::string> more) {
    std::vector<std::string> arguments = {verb,
                                          file,
                                          "--job",
                                          "run7",
                                          "--step",
                                          verb == "norm" ? "1" : "2",
                                          "--rank",
                                          number,
                                          "--world-size",
                                          "2",
                                          "--job-secret-file",
                                          Out("secret")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return WithServer(arguments);
  };
  Process one("gradclip", rank("0", "norm", {"--json"}));
  const Ran two = [&] {
    Process process("gradclip", rank("1", "norm", {}));
    Ran ran;
    ran.status = process.Wait();
    ran.out = process.out();
    ran.err = process.err();
    return ran;
  }();
  ASSERT_EQ(one.Wait(), 0) << one.err();
  ASSERT_EQ(two.status, 0) << two.err;
  EXPECT_THAT(two.out, HasSubstr("rank 1 of 2 of run7, step 1, attempt 0"));
  const nlohmann::json json = nlohmann::json::parse(one.out());
  EXPECT_EQ(json["attempt"], 0);
  const Ran alone = Run({"norm", file, "--json"});
  const double norm = nlohmann::json::parse(alone.out)["total_norm"];
  EXPECT_NEAR(json["total_norm"].get<double>(), std::sqrt(2.0) * norm, 1e-12 * norm);

  Process clip("gradclip", rank("0", "clip", {"--max-norm", "1", "-o", Out("a.safetensors")}));
  Process other("gradclip", rank("1", "clip", {"--max-norm", "2", "-o", Out("b.safetensors")}));
  EXPECT_EQ(clip.Wait(), 1);
  EXPECT_EQ(other.Wait(), 1);
  EXPECT_THAT(clip.err(), HasSubstr("ranks must declare the same: max_norm is "));
}

TEST_F(GroupCommand, NamesTheFlagThatIsMissingOrWrong) {
  const std::string file = GRADCLIP_TEST_DATA "/gradients/step-090.safetensors";
  EXPECT_THAT(Run({"norm", file, "--rank", "1"}).err, HasSubstr("--rank needs --job"));
  EXPECT_THAT(Run({"norm", file, "--job", "a", "--step", "1", "--rank", "1"}).err,
              HasSubstr("--job needs --world-size"));
  EXPECT_THAT(Run({"norm", file, "--step", "-1"}).err,
              HasSubstr("--step: must be a whole number from 0"));
  EXPECT_THAT(Run({"norm", file, "--job", "a", "--step", "1", "--rank", "0", "--world-size", "1",
                   "--job-secret-file", "/nowhere"})
                  .err,
              HasSubstr("--job-secret-file /nowhere can't be read"));
  const std::vector<std::string> rank = {"norm", file,     "--job", "a",           "--step",
                                         "1",    "--rank", "1",     "--world-size"};
  const auto wrong = [&](std::vector<std::string> more) {
    more.insert(more.begin(), rank.begin(), rank.end());
    const Ran ran = Run(more);
    EXPECT_EQ(ran.status, 1);
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    return ran.err;
  };
  EXPECT_THAT(wrong({"0"}), HasSubstr("--world-size: must be a whole number from 1"));
  EXPECT_THAT(wrong({"1"}), HasSubstr("group.rank is 1, and group.world_size 1"));
  EXPECT_THAT(wrong({"2", "--group-timeout", "0s"}),
              HasSubstr("--group-timeout: must be a time over 0"));
  EXPECT_THAT(wrong({"2", "--max-attempts", "0"}),
              HasSubstr("--max-attempts: must be a whole number from 1"));
}

}  // namespace
}  // namespace gradclip
