// Servers that are replaced one after another under load, as an upgrade does it: each is told to
// stop (SIGTERM), ends when its calls have, and is started anew at its address before the next
// one's turn. Clients that know both addresses lose no call.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gradclip/client.h"
#include "tests/e2e/process.h"
#include "tests/server/group/redis/redis_server.h"

namespace gradclip {
namespace {

constexpr int kRounds = 3;
constexpr uint64_t kLeastCallsBetween = 20;  // of all clients, while both servers are there

class RollingRestart : public testing::Test {
 protected:
  void Serve(std::vector<std::string> flags) {
    flags_ = std::move(flags);
    flags_.push_back("--log-level=warning");
    for (Place& place : places_) {
      place.server = std::make_unique<ServerProcess>(flags_);
      place.address = place.server->address();
      ASSERT_NE(place.address, "");
    }
  }

  // A list that begins with the server of this number.
  std::string Addresses(size_t first) const {
    return places_[first % 2].address + "," + places_[(first + 1) % 2].address;
  }

  // Runs `client` on threads of its own, each with its number, until all servers have been replaced
  // several times. It makes calls until stop_, and Note()s how each has ended.
  void ReplaceServersUnderLoad(int clients, const std::function<void(uint32_t)>& client) {
    std::vector<std::thread> threads;
    for (int i = 0; i < clients; ++i) threads.emplace_back(client, i);
    for (int round = 0; round < kRounds; ++round) {
      for (Place& place : places_) {
        AwaitCalls();
        place.server->process().Signal(SIGTERM);
        EXPECT_EQ(place.server->process().Wait(), 0) << place.server->process().err();
        std::vector<std::string> flags = flags_;
        flags.push_back("--listen=" + place.address);
        // (A client that looks for the server may have the port for a moment.)
        place.server = std::make_unique<ServerProcess>(flags);
        for (int i = 0; i < 20 && place.server->address().empty(); ++i) {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          place.server = std::make_unique<ServerProcess>(flags);
        }
        EXPECT_NE(place.server->address(), "");
      }
    }
    AwaitCalls();
    stop_ = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_THAT(failures_, testing::IsEmpty());
  }

  void Note(const absl::Status& status) {
    ++calls_;
    if (status.ok()) return;
    const std::lock_guard lock(mutex_);
    failures_.push_back(status.ToString());
  }

  std::atomic<bool> stop_ = false;

 private:
  struct Place {
    std::string address;
    std::unique_ptr<ServerProcess> server;
  };

  void AwaitCalls() {
    const uint64_t enough = calls_ + kLeastCallsBetween;
    while (calls_ < enough && !HasFailed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  bool HasFailed() {
    const std::lock_guard lock(mutex_);
    return !failures_.empty();
  }

  std::vector<std::string> flags_;
  Place places_[2];
  std::atomic<uint64_t> calls_ = 0;
  std::mutex mutex_;
  std::vector<std::string> failures_;  // guarded by mutex_
};

Tensor TensorOf(std::vector<float>& elements) {
  return {"w", DType::kFloat32, {static_cast<int64_t>(elements.size())}, elements.data()};
}

TEST_F(RollingRestart, LosesNoCall) {
  Serve({});
  ReplaceServersUnderLoad(4, [this](uint32_t number) {
    Client client(Addresses(number));
    const ReplyMode replies[] = {ReplyMode::kCoefficient, ReplyMode::kGradientIfChanged,
                                 ReplyMode::kGradient};
    const size_t sizes[] = {1, size_t{16} << 10, size_t{1} << 20};
    for (size_t i = number; !stop_; ++i) {
      std::vector<float> values(sizes[i / 3 % 3], 1.0f);
      const double norm = std::sqrt(static_cast<double>(values.size()));
      ClipOptions options;
      options.max_norm = norm / 2;
      options.epsilon = 0;
      options.reply = replies[i % 3];
      CallOptions call;
      call.timeout = absl::Minutes(1);
      const auto answer = client.Clip({{TensorOf(values)}}, options, call);
      Note(answer.status());
      if (!answer.ok()) continue;
      EXPECT_EQ(answer->norm.total_norm, norm);
      EXPECT_EQ(std::count(values.begin(), values.end(), 0.5f),
                static_cast<int64_t>(values.size()));
    }
  });
}

// The ranks of a job begin at both servers, and go on through their replacement.
TEST_F(RollingRestart, LosesNoStepOfAGroup) {
  constexpr uint32_t kRanks = 4;
  const RedisServer redis;
  Serve({"--group-store=redis://" + redis.address().Describe()});
  ReplaceServersUnderLoad(kRanks, [this](uint32_t rank) {
    Client client(Addresses(rank));
    std::vector<float> values(1024);
    CallOptions call;
    call.timeout = absl::Minutes(1);
    call.group.emplace();
    call.group->job = "job";
    call.group->rank = rank;
    call.group->world_size = kRanks;
    call.group->max_attempts = 10;
    ClipOptions options;
    options.max_norm = 32;
    options.epsilon = 0;
    // Rank 0 decides when it is enough, and tells the others by its gradient.
    for (bool last = false; !last; ++call.group->step) {
      last = rank == 0 && stop_;
      std::fill(values.begin(), values.end(), last ? 2.0f : 1.0f);
      const auto answer = client.Clip({{TensorOf(values)}}, options, call);
      Note(answer.status());
      if (!answer.ok()) return;
      const double whole = std::sqrt(1024.0 * (3 + (answer->norm.total_norm > 64 ? 4 : 1)));
      EXPECT_EQ(answer->norm.total_norm, whole);
      EXPECT_EQ(answer->coefficient, 32 / whole);
      last = answer->norm.total_norm > 64;
    }
  });
}

}  // namespace
}  // namespace gradclip
