#include "server/group/redis/redis_store.h"

#include <openssl/rand.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/group/refusals.h"
#include "server/group/sha256.h"

namespace gradclip {
namespace {

constexpr size_t kServerBytes = 10;  // SERVER_ID in step.lua

}  // namespace

class RedisStore::RedisSeat final : public Store::Seat {
 public:
  RedisSeat(RedisEndpoint& endpoint, std::shared_ptr<RedisCall> call)
      : endpoint_(endpoint), call_(std::move(call)) {}
  ~RedisSeat() override { Go({.kind = Going::Kind::kLost}); }

  bool came_late() const override { return false; }

  void Contribute(const Contribution& contribution) override {
    endpoint_.Contribute(call_, contribution.Serialize());
  }

  void Leave(Leaving why) override {
    Go({.kind = why == Leaving::kCancelled ? Going::Kind::kCancelled : Going::Kind::kLost});
  }

  void Fail(const absl::Status& why) override {
    Go({.kind = Going::Kind::kEnded, .why = RankFailed(call_->participant.rank, why)});
  }

  void Abort(const absl::Status& why) override {
    Go({.kind = Going::Kind::kEnded, .why = RankAborts(call_->participant.rank, why)});
  }

 private:
  void Go(Going going) {
    if (call_->Take() != nullptr) endpoint_.Leave(call_, std::move(going));
  }

  RedisEndpoint& endpoint_;
  const std::shared_ptr<RedisCall> call_;
};

absl::StatusOr<std::unique_ptr<RedisStore>> RedisStore::Make(const RedisOptions& options,
                                                             const GroupTimes& times, Log* log) {
  if (options.endpoints.empty()) {
    return absl::InvalidArgumentError("a store in Redis needs an endpoint");
  }
  unsigned char random[kServerBytes];
  if (RAND_bytes(random, sizeof(random)) != 1) {
    return absl::UnavailableError("the system gives no random numbers");
  }
  constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuv";
  std::string server;
  for (const unsigned char byte : random) server.push_back(kDigits[byte % 32]);
  std::unique_ptr<RedisStore> store(new RedisStore(options, times, std::move(server), log));
  for (const std::unique_ptr<RedisEndpoint>& endpoint : store->endpoints_) {
    if (!endpoint->ok()) return absl::UnavailableError("the system has no descriptor left");
  }
  return store;
}

RedisStore::RedisStore(const RedisOptions& options, const GroupTimes& times, std::string server,
                       Log* log)
    : server_(std::move(server)) {
  for (const RedisAddress& address : options.endpoints) {
    endpoints_.push_back(
        std::make_unique<RedisEndpoint>(address, options, times, server_, counts_, log));
  }
  std::sort(endpoints_.begin(), endpoints_.end(),
            [](const auto& a, const auto& b) { return a->name() < b->name(); });
}

RedisStore::~RedisStore() = default;

absl::StatusOr<std::shared_ptr<Store::Seat>> RedisStore::Join(const Participant& participant,
                                                              OnOutcome on_outcome) {
  RedisEndpoint& endpoint = Choose(participant.step.job);
  if (absl::Status may = endpoint.MayCome(); !may.ok()) {
    return absl::Status(may.code(), absl::StrCat(participant.step.Describe(), ": ", may.message()));
  }
  const auto call = std::make_shared<RedisCall>(
      participant, absl::StrCat(server_, absl::Hex(++calls_)), std::move(on_outcome));
  endpoint.Join(call);
  return std::make_shared<RedisSeat>(endpoint, call);
}

std::string RedisStore::instance() const {
  std::string all;
  for (const std::unique_ptr<RedisEndpoint>& endpoint : endpoints_) {
    const std::string one = endpoint->instance();
    if (one.empty()) return "";
    if (endpoints_.size() == 1) return one;
    absl::StrAppend(&all, endpoint->name(), " ", one, "\n");
  }
  return absl::BytesToHexString(Sha256(all).substr(0, 16));
}

void RedisStore::StopOpening() {
  for (const std::unique_ptr<RedisEndpoint>& endpoint : endpoints_) endpoint->StopOpening();
}

std::vector<Store::Endpoint> RedisStore::endpoints() const {
  std::vector<Endpoint> all;
  all.reserve(endpoints_.size());
  for (const std::unique_ptr<RedisEndpoint>& endpoint : endpoints_) {
    all.push_back({.name = endpoint->name(), .up = endpoint->reachable()});
  }
  return all;
}

bool RedisStore::reachable() const {
  return std::all_of(endpoints_.begin(), endpoints_.end(),
                     [](const auto& endpoint) { return endpoint->reachable(); });
}

const std::string& RedisStore::EndpointOf(std::string_view job) const {
  return Choose(job).name();
}

void RedisStore::WaitUntilIdle() {
  for (const std::unique_ptr<RedisEndpoint>& endpoint : endpoints_) endpoint->WaitUntilIdle();
}

// Rendezvous hashing: where an endpoint is added or taken away, only the jobs that come to it or
// were at it move.
RedisEndpoint& RedisStore::Choose(std::string_view job) const {
  RedisEndpoint* chosen = nullptr;
  std::string highest;
  for (const std::unique_ptr<RedisEndpoint>& endpoint : endpoints_) {
    if (endpoints_.size() == 1) return *endpoint;
    std::string text = endpoint->name();
    text.push_back('\n');
    text.append(job);
    std::string score = Sha256(text);
    if (chosen != nullptr && score <= highest) continue;
    chosen = endpoint.get();
    highest = std::move(score);
  }
  return *chosen;
}

}  // namespace gradclip
