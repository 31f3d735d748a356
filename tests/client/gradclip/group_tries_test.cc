// A rank's calls against servers that a test scripts: what they send, and when they go on with the
// next attempt.
#include "client/gradclip/group_tries.h"

#include <atomic>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/client/gradclip/fake_server.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Code = grpc::StatusCode;

Group RankOne() {
  Group group;
  group.job = "run7";
  group.step = 120;
  group.rank = 1;
  group.world_size = 2;
  return group;
}

CallOptions CallOf(const Group& group) {
  CallOptions call;
  call.group = group;
  return call;
}

CallOptions Attempts(int most) {
  Group group = RankOne();
  group.max_attempts = most;
  return CallOf(group);
}

ClientOptions QuickRetries() {
  ClientOptions options;
  options.initial_backoff = absl::Milliseconds(1);
  return options;
}

ClipOptions MaxNormOne(ReplyMode reply = ReplyMode::kFastest) {
  ClipOptions options;
  options.max_norm = 1;
  options.reply = reply;
  return options;
}

// A server that ends the calls of ranks as a test says, and notes the groups they came with.
class RankServer {
 public:
  // `end`: what the call of this number, from 1 on, ends with.
  explicit RankServer(std::function<grpc::Status(int call)> end =
                          [](int) { return grpc::Status::OK; })
      : end_(std::move(end)) {
    set_instance("first");
    server_.info = [this](v1::GetServerInfoResponse& response) {
      ++asked_;
      response.set_instance(instance_.Get());
      return grpc::Status::OK;
    };
    server_.compute_norm = [this](NormStream& stream, v1::ComputeNormResponse& response) {
      response.mutable_norm()->set_total_norm(5);
      return end_(Note(ReadAll(stream).starts.at(0).group()));
    };
    server_.clip = [this](ClipStream& stream) {
      const grpc::Status status = end_(Note(ReadAll(stream).starts.at(0).group()));
      if (status.ok()) SendResult(stream, 0.5);
      return status;
    };
  }

  std::string address() const { return server_.address(); }
  void set_instance(const std::string& instance) { instance_.Set(instance); }
  int asked() const { return asked_; }  // how often for the instance
  std::vector<v1::Group> groups() const {
    const std::lock_guard lock(mutex_);
    return groups_;
  }
  std::vector<uint32_t> attempts() const {
    std::vector<uint32_t> attempts;
    for (const v1::Group& group : groups()) attempts.push_back(group.attempt());
    return attempts;
  }
  FakeServer& server() { return server_; }

 private:
  int Note(const v1::Group& group) {
    const std::lock_guard lock(mutex_);
    groups_.push_back(group);
    return static_cast<int>(groups_.size());
  }

  const std::function<grpc::Status(int call)> end_;
  mutable std::mutex mutex_;
  std::vector<v1::Group> groups_;  // guarded by mutex_
  std::atomic<int> asked_ = 0;
  Shared<std::string> instance_;
  FakeServer server_;
};

// A server that its first call finds going away, and that is of the instance `then` from there on.
class RestartingServer : public RankServer {
 public:
  explicit RestartingServer(const std::string& then)
      : RankServer([this, then](int call) {
          if (call > 1) return grpc::Status::OK;
          set_instance(then);
          return grpc::Status(Code::UNAVAILABLE, "going away");
        }) {}
};

class GroupTriesTest : public ::testing::Test {
 protected:
  std::vector<float> values_ = {2, -4};
  const std::vector<Tensor> gradient_ = {{"w", DType::kFloat32, {2}, values_.data()}};
};

TEST(CheckGroup, NamesFieldValueAndWhatIsAllowed) {
  const auto refused = [](void (*change)(Group&)) {
    Group group = RankOne();
    change(group);
    const absl::Status status = CheckGroup(group);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refused([](Group& group) { group.job.clear(); }),
            "group.job has 0 bytes; it must be UTF-8 of 1 to 256");
  EXPECT_EQ(refused([](Group& group) { group.job.assign(257, 'j'); }),
            "group.job has 257 bytes; it must be UTF-8 of 1 to 256");
  EXPECT_THAT(refused([](Group& group) { group.job = "\xc3"; }), HasSubstr("it must be UTF-8"));
  EXPECT_EQ(refused([](Group& group) { group.world_size = 0; }),
            "group.world_size is 0; it must be at least 1");
  EXPECT_EQ(refused([](Group& group) { group.rank = 2; }),
            "group.rank is 2, and group.world_size 2; ranks are 0 .. world_size - 1");
  EXPECT_EQ(refused([](Group& group) { group.timeout = absl::ZeroDuration(); }),
            "group.timeout is 0; it must be > 0");
  EXPECT_EQ(refused([](Group& group) { group.timeout = -absl::Seconds(1); }),
            "group.timeout is -1s; it must be > 0");
  EXPECT_EQ(refused([](Group& group) { group.max_attempts = 0; }),
            "group.max_attempts is 0; it must be at least 1");
}

TEST(CheckGroup, TakesWhatIsAtTheLimits) {
  Group group = RankOne();
  group.job.assign(256, 'j');
  group.timeout = absl::Nanoseconds(1);
  group.step = std::numeric_limits<uint64_t>::max();
  EXPECT_TRUE(CheckGroup(group).ok());
}

TEST_F(GroupTriesTest, SendEveryFieldInBothCalls) {
  RankServer server;
  Client client(server.address());
  Group group = RankOne();
  group.generation = 4;
  group.timeout = absl::Milliseconds(1500);
  group.attempt = 3;
  group.job_secret = std::string("s\0\xff", 3);
  const auto norm = client.ComputeNorm(gradient_, {}, CallOf(group));
  ASSERT_TRUE(norm.ok()) << norm.status();
  EXPECT_EQ(norm->attempt, 3u);
  const auto clipped = client.Clip(gradient_, MaxNormOne(), CallOf(group));
  ASSERT_TRUE(clipped.ok()) << clipped.status();
  EXPECT_EQ(clipped->norm.attempt, 3u);
  EXPECT_THAT(values_, ElementsAre(1, -2));
  ASSERT_EQ(server.groups().size(), 2u);
  for (const v1::Group& sent : server.groups()) {
    EXPECT_EQ(sent.job(), "run7");
    EXPECT_EQ(sent.generation(), 4u);
    EXPECT_EQ(sent.step(), 120u);
    EXPECT_EQ(sent.rank(), 1u);
    EXPECT_EQ(sent.world_size(), 2u);
    EXPECT_EQ(sent.timeout().seconds(), 1);
    EXPECT_EQ(sent.timeout().nanos(), 500'000'000);
    EXPECT_EQ(sent.attempt(), 3u);
    EXPECT_EQ(sent.job_secret(), group.job_secret);
  }
}

TEST_F(GroupTriesTest, LeaveTheTimeoutToTheServerUnlessItIsGiven) {
  RankServer server;
  Client client(server.address());
  ASSERT_TRUE(client.ComputeNorm(gradient_, {}, CallOf(RankOne())).ok());
  EXPECT_FALSE(server.groups().at(0).has_timeout());
}

TEST_F(GroupTriesTest, AskOnceForEachConnectionWhichInstanceTheServerIs) {
  RankServer server;
  Client client(server.address());
  ASSERT_TRUE(client.ComputeNorm(gradient_).ok());
  EXPECT_EQ(server.asked(), 0);  // a call without a group has no use for it
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.ComputeNorm(gradient_, {}, CallOf(RankOne())).ok());
  }
  EXPECT_EQ(server.asked(), 1);
}

TEST_F(GroupTriesTest, GoOnWithTheNextAttemptAfterAborted) {
  RankServer server([](int call) {
    return call < 3 ? grpc::Status(Code::ABORTED, "rank 0 is lost") : grpc::Status::OK;
  });
  Client client(server.address());
  const auto answer = client.Clip(gradient_, MaxNormOne(), Attempts(3));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->norm.attempt, 2u);
  EXPECT_THAT(server.attempts(), ElementsAre(0, 1, 2));
  EXPECT_THAT(values_, ElementsAre(1, -2));
}

TEST_F(GroupTriesTest, MakeNoMoreAttemptsThanTheyMay) {
  RankServer server([](int) { return grpc::Status(Code::ABORTED, "rank 0 is lost"); });
  Client client(server.address());
  const absl::Status status = client.ComputeNorm(gradient_, {}, Attempts(2)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 is lost"));
  EXPECT_THAT(server.attempts(), ElementsAre(0, 1));
}

TEST_F(GroupTriesTest, EndWithOtherErrorsAtOnce) {
  for (const Code code : {Code::FAILED_PRECONDITION, Code::ALREADY_EXISTS, Code::PERMISSION_DENIED,
                          Code::RESOURCE_EXHAUSTED, Code::DEADLINE_EXCEEDED}) {
    RankServer server([code](int) { return grpc::Status(code, "no"); });
    Client client(server.address());
    const absl::Status status = client.ComputeNorm(gradient_, {}, Attempts(5)).status();
    EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code));
    EXPECT_THAT(server.attempts(), ElementsAre(0));
  }
}

TEST_F(GroupTriesTest, StayWithinTheAttemptAfterUnavailable) {
  RankServer server([](int call) {
    return call < 3 ? grpc::Status(Code::UNAVAILABLE, "the store is away") : grpc::Status::OK;
  });
  Client client(server.address(), QuickRetries());
  const auto answer = client.ComputeNorm(gradient_, {}, Attempts(5));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->attempt, 0u);
  EXPECT_THAT(server.attempts(), ElementsAre(0, 0, 0));
}

TEST_F(GroupTriesTest, MakeNoOtherAttemptWhereMemoryWasChanged) {
  RankServer server;
  std::atomic<int> calls = 0;
  server.server().clip = [&calls](ClipStream& stream) {
    ++calls;
    ReadAll(stream);
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    SendData(stream, std::string(4, '\0'));
    return grpc::Status(Code::ABORTED, "late");
  };
  Client client(server.address());
  const auto answer = client.Clip(gradient_, MaxNormOne(ReplyMode::kGradient), Attempts(5));
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kDataLoss) << answer.status();
  EXPECT_EQ(calls, 1);
}

TEST_F(GroupTriesTest, EndTheAttemptWhereTheServerWasRestarted) {
  RestartingServer server("second");
  Client client(server.address(), QuickRetries());
  const absl::Status status = client.ComputeNorm(gradient_, {}, Attempts(1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("the server was restarted amid step 120 of the job, attempt 0"),
                    HasSubstr("instance second, before first"),
                    HasSubstr("All ranks may go on with the next attempt")));
  EXPECT_THAT(server.attempts(), ElementsAre(0));  // the second server was not asked
}

TEST_F(GroupTriesTest, GoOnByThemselvesWhereTheServerWasRestarted) {
  RestartingServer server("second");
  Client client(server.address(), QuickRetries());
  const auto answer = client.ComputeNorm(gradient_, {}, Attempts(2));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->attempt, 1u);
  EXPECT_THAT(server.attempts(), ElementsAre(0, 1));
}

TEST_F(GroupTriesTest, TakeAnEmptyInstanceForUnknown) {
  RestartingServer server("");
  Client client(server.address(), QuickRetries());
  const auto answer = client.ComputeNorm(gradient_, {}, Attempts(1));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(server.attempts(), ElementsAre(0, 0));
}

TEST_F(GroupTriesTest, GoToAnotherAddressWithinTheAttemptWhereTheStoreIsOne) {
  RankServer one([](int) { return grpc::Status(Code::UNAVAILABLE, "going away"); });
  RankServer two;  // of the same instance, as with a store that both share
  Client client(absl::StrCat(one.address(), ",", two.address()), QuickRetries());
  const auto answer = client.ComputeNorm(gradient_, {}, Attempts(1));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(one.attempts(), ElementsAre(0, 0));  // it may have been the connection
  EXPECT_THAT(two.attempts(), ElementsAre(0));
  // The address that worked is where the next call goes, too.
  ASSERT_TRUE(client.ComputeNorm(gradient_, {}, Attempts(1)).ok());
  EXPECT_THAT(one.attempts(), ElementsAre(0, 0));
}

TEST_F(GroupTriesTest, MeetAtTheFirstAddressAfterAStepThatWasAborted) {
  RankServer one([](int call) {
    return call <= 2 ? grpc::Status(Code::UNAVAILABLE, "too busy") : grpc::Status::OK;
  });
  RankServer two([](int) { return grpc::Status(Code::ABORTED, "a rank is at another server"); });
  Client client(absl::StrCat(one.address(), ",", two.address()), QuickRetries());
  const auto answer = client.ComputeNorm(gradient_, {}, Attempts(2));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(one.attempts(), ElementsAre(0, 0, 1));
  EXPECT_THAT(two.attempts(), ElementsAre(0));
}

TEST_F(GroupTriesTest, GoToAnotherAddressAfterACallThatItsTimeoutEnded) {
  absl::Notification ended;
  RankServer one([&ended](int) {
    ended.WaitForNotification();
    return grpc::Status::OK;
  });
  RankServer two;
  Client client(absl::StrCat(one.address(), ",", two.address()), QuickRetries());
  CallOptions call = Attempts(1);
  call.timeout = absl::Milliseconds(200);
  EXPECT_EQ(client.ComputeNorm(gradient_, {}, call).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(client.ComputeNorm(gradient_, {}, Attempts(1)).ok());
  EXPECT_THAT(two.attempts(), ElementsAre(0));
  ended.Notify();
}

TEST_F(GroupTriesTest, NameTheServerThatAnsweredWithAnError) {
  RankServer one([](int) { return grpc::Status(Code::UNAVAILABLE, "going away"); });
  RankServer two([](int) { return grpc::Status(Code::ALREADY_EXISTS, "taken"); });
  Client client(absl::StrCat(one.address(), ",", two.address()), QuickRetries());
  const absl::Status status = client.ComputeNorm(gradient_, {}, Attempts(1)).status();
  EXPECT_EQ(status.message(), absl::StrCat("server ", two.address(), ": taken (tried 3 times)"));
}

}  // namespace
}  // namespace gradclip
