#include "server/group/redis/link.h"

#include <openssl/rand.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/group/clock.h"
#include "server/group/redis/milliseconds.h"
#include "server/group/redis/script.h"

namespace gradclip {
namespace {

constexpr std::string_view kInstanceKey = "gradclip:instance";
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(20);
constexpr absl::Duration kLastBackoff = absl::Seconds(1);
constexpr absl::Duration kShortestLease = absl::Seconds(3);
// What is handed to a connection before it has sent what it has.
constexpr size_t kMaxUnsentBytes = size_t{1} << 20;

bool Begins(std::string_view text, std::string_view prefix) {
  return text.starts_with(prefix);
}

// Errors after which this Redis can't serve for now, whatever is asked.
bool IsOfTheWhole(std::string_view error) {
  for (const std::string_view code :
       {"READONLY", "LOADING", "MASTERDOWN", "BUSY", "NOAUTH", "WRONGPASS", "NOREPLICAS", "MISCONF",
        "CLUSTERDOWN", "UNKILLABLE"}) {
    if (Begins(error, code)) return true;
  }
  return false;
}

}  // namespace

RedisLink::RedisLink(RedisAddress address, const RedisOptions& options, const GroupTimes& times,
                     std::string server, RedisCounts& counts, Log* log)
    : address_(std::move(address)),
      password_file_(options.password_file),
      password_(options.password),
      timeout_(options.timeout),
      server_(std::move(server)),
      server_key_(absl::StrCat("gradclip:server:", server_)),
      // A server that dies is missed once the lease is over, and then the grace begins.
      lease_(std::max(times.reconnect_grace, kShortestLease)),
      beat_(std::min(lease_ / 3, absl::Seconds(1))),
      // Its calls are judged by its key as long as there are steps with them.
      server_ttl_(2 * lease_ + 2 * times.reconnect_grace + absl::Minutes(10)),
      instance_ttl_(2 * times.job_ttl + absl::Hours(48)),
      counts_(counts),
      log_(log),
      down_since_(SteadyNow()),
      backoff_(kFirstBackoff),
      why_down_(absl::UnavailableError("it has not been reached yet")) {}

std::array<pollfd, 2> RedisLink::polled() const {
  std::array<pollfd, 2> polled = {pollfd{-1, 0, 0}, pollfd{-1, 0, 0}};
  if (state_ == State::kDown) return polled;
  polled[0] = {commands_->fd(), commands_->events(), 0};
  polled[1] = {messages_->fd(), messages_->events(), 0};
  return polled;
}

absl::Time RedisLink::wake() const {
  absl::Time wake = absl::InfiniteFuture();
  if (away_.ok() && state_ != State::kReady) wake = down_since_ + timeout_;
  if (state_ == State::kDown) return std::min(wake, retry_);
  if (state_ == State::kGreeting) return std::min(wake, connecting_since_ + timeout_);
  if (!queue_.empty() && commands_->unsent_bytes() < kMaxUnsentBytes) return absl::InfinitePast();
  wake = std::min({wake, next_beat_, ping_sent_ + timeout_});
  if (!in_flight_.empty()) wake = std::min(wake, in_flight_.front().command.sent + timeout_);
  return wake;
}

void RedisLink::Move(const std::array<pollfd, 2>& polled, absl::Time now) {
  if (state_ == State::kDown && now >= retry_) {
    // (What poll() found was of the connections before.)
    if (absl::Status started = Connect(now); !started.ok()) Fail(started, now);
  } else if (state_ != State::kDown) {
    if (absl::Status moved = MoveConnections(polled, now); !moved.ok()) Fail(moved, now);
  }
  if (state_ != State::kReady && away_.ok() &&
      (refused_ || overdue_ || now >= down_since_ + timeout_)) {
    GoAway(why_down_);
  }
}

absl::Status RedisLink::MoveConnections(const std::array<pollfd, 2>& polled, absl::Time now) {
  if (absl::Status moved = commands_->Move(polled[0].revents); !moved.ok()) return moved;
  if (absl::Status moved = messages_->Move(polled[1].revents); !moved.ok()) return moved;
  if (absl::Status taken = TakeReplies(now); !taken.ok()) return taken;
  if (state_ == State::kGreeting) {
    if (greeted_ && subscribed_) {
      BecomeReady(now);
    } else if (now >= connecting_since_ + timeout_) {
      return absl::UnavailableError(
          absl::StrCat("it has not answered for ", absl::FormatDuration(timeout_)));
    }
  }
  if (state_ != State::kReady) return absl::OkStatus();
  if (absl::Status answers = Watch(now); !answers.ok()) return answers;
  if (now >= next_beat_) Beat(now);
  while (!queue_.empty() && commands_->unsent_bytes() < kMaxUnsentBytes) {
    RedisCommand command = std::move(queue_.front());
    queue_.pop_front();
    Transmit(std::move(command), /*internal=*/false, now);
  }
  if (absl::Status moved = commands_->Move(0); !moved.ok()) return moved;
  return messages_->Move(0);
}

absl::StatusOr<std::string> RedisLink::Password() const {
  if (password_file_.empty()) return password_;
  std::ifstream file(password_file_);
  std::string password((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && !file.eof()) {
    return absl::UnavailableError(
        absl::StrCat("the file of its password, ", password_file_, ", can't be read"));
  }
  while (!password.empty() && (password.back() == '\n' || password.back() == '\r')) {
    password.pop_back();
  }
  return password;
}

// The link's own operations of the script.
RedisCommand RedisLink::Hello(std::string operation, std::string new_instance) const {
  return {
      .operation = std::move(operation),
      .keys = {std::string(kInstanceKey)},
      .arguments = {absl::StrCat(ToMilliseconds(lease_)), absl::StrCat(ToMilliseconds(server_ttl_)),
                    absl::StrCat(ToMilliseconds(instance_ttl_)), std::move(new_instance)}};
}

absl::Status RedisLink::Connect(absl::Time now) {
  const absl::StatusOr<std::string> password = Password();
  if (!password.ok()) return password.status();
  for (std::unique_ptr<RedisConnection>* connection : {&commands_, &messages_}) {
    absl::StatusOr<std::unique_ptr<RedisConnection>> started = RedisConnection::Start(address_);
    if (!started.ok()) return started.status();
    *connection = *std::move(started);
  }
  state_ = State::kGreeting;
  connecting_since_ = now;
  ++epoch_;
  greeted_ = subscribed_ = refused_ = false;
  ping_sent_ = absl::InfiniteFuture();

  if (!password->empty()) {
    std::vector<std::string> login = {"AUTH", *password};
    if (!address_.user.empty()) login.insert(login.begin() + 1, address_.user);
    messages_->Send({login.begin(), login.end()});
    Transmit({.arguments = std::move(login)}, /*internal=*/true, now);
  }
  if (address_.database != 0) {
    Transmit({.arguments = {"SELECT", absl::StrCat(address_.database)}}, /*internal=*/true, now);
  }
  unsigned char random[16];
  if (RAND_bytes(random, sizeof(random)) != 1) return absl::UnavailableError("no random numbers");
  std::string instance = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(random), sizeof(random)));
  // (Its error is clear where a password is missing.)
  Transmit({.arguments = {"PING"}}, /*internal=*/true, now);
  Transmit({.operation = "load", .with_script = true}, /*internal=*/true, now);
  RedisCommand hello = Hello("hello", std::move(instance));
  hello.with_script = true;
  Transmit(std::move(hello), /*internal=*/true, now);
  messages_->Send({"SUBSCRIBE", server_key_});
  return absl::OkStatus();
}

absl::Status RedisLink::TakeReplies(absl::Time now) {
  // A handler never ends the connections; so both stay while their replies are taken.
  while (true) {
    const absl::StatusOr<RedisReply> reply = commands_->Next();
    if (!reply.ok()) return reply.status();
    if (*reply == nullptr) break;
    if (absl::Status taken = TakeReply(**reply, now); !taken.ok()) return taken;
  }
  while (true) {
    const absl::StatusOr<RedisReply> message = messages_->Next();
    if (!message.ok()) return message.status();
    if (*message == nullptr) return absl::OkStatus();
    if (absl::Status taken = TakeMessage(**message, now); !taken.ok()) return taken;
  }
}

absl::Status RedisLink::TakeReply(const redisReply& reply, absl::Time now) {
  if (in_flight_.empty()) return absl::UnavailableError("it has answered what nobody asked");
  InFlight answered = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (!in_flight_.empty()) {
    // The next has had Redis's attention from now on.
    in_flight_.front().command.sent = std::max(in_flight_.front().command.sent, now);
  }
  if (const std::optional<std::string_view> error = ErrorOf(reply)) {
    return TakeError(std::move(answered), *error, now);
  }
  if (answered.internal) return Greeted(reply);
  if (!answered.command.operation.empty()) {
    const std::optional<std::vector<std::string_view>> texts = TextsOf(reply);
    if (texts.has_value() && texts->size() == 1 && texts->front() == "stale") {
      in_flight_.push_front(std::move(answered));
      return absl::UnavailableError("it has forgotten this server");
    }
  }
  if (answered.command.on_reply) answered.command.on_reply(&reply);
  return absl::OkStatus();
}

absl::Status RedisLink::TakeError(InFlight answered, std::string_view error, absl::Time now) {
  RedisCommand& command = answered.command;
  if (Begins(error, "NOSCRIPT") && !command.operation.empty() && !command.with_script) {
    command.with_script = true;
    if (answered.internal) {
      Transmit(std::move(command), /*internal=*/true, now);
    } else {
      queue_.push_back(std::move(command));
    }
    return absl::OkStatus();
  }
  // It knows the script, which is all that was wanted.
  if (answered.internal && command.operation == "load" && Begins(error, "OOM")) {
    return absl::OkStatus();
  }
  const std::string text = absl::Utf8SafeCEscape(Abseil(error.substr(0, 200)));
  if (answered.internal || IsOfTheWhole(error)) {
    refused_ = Begins(error, "WRONGPASS") || Begins(error, "NOAUTH") || Begins(error, "NOPERM") ||
               absl::StrContains(Abseil(error), "without any password configured");
    in_flight_.push_front(std::move(answered));
    return absl::UnavailableError(absl::StrCat("it says: ", text));
  }
  if (!command.on_reply) return absl::OkStatus();
  if (Begins(error, "OOM")) {
    command.on_reply(absl::ResourceExhaustedError(
        absl::StrCat("Redis at ", address_.Describe(),
                     " has no memory left for more steps (its own maxmemory). Try later")));
  } else {
    command.on_reply(
        absl::InternalError(absl::StrCat("Redis at ", address_.Describe(), " says: ", text)));
  }
  return absl::OkStatus();
}

// What the link's own commands are answered.
absl::Status RedisLink::Greeted(const redisReply& reply) {
  const std::optional<std::string_view> text = TextOf(reply);
  if (text == "OK" || text == "PONG") return absl::OkStatus();  // AUTH, SELECT, PING
  const std::optional<std::vector<std::string_view>> texts = TextsOf(reply);
  if (texts.has_value() && texts->size() == 1 && texts->front() == "loaded") {
    return absl::OkStatus();
  }
  if (!texts.has_value() || texts->size() != 2 || texts->front() != "hello") {
    return absl::UnavailableError("it has forgotten this server, or is no Redis");
  }
  greeted_ = true;
  greeted_instance_ = std::string(texts->back());
  return absl::OkStatus();
}

absl::Status RedisLink::TakeMessage(const redisReply& reply, absl::Time) {
  if (const std::optional<std::string_view> error = ErrorOf(reply)) {
    refused_ = Begins(*error, "WRONGPASS") || Begins(*error, "NOAUTH") || Begins(*error, "NOPERM");
    return absl::UnavailableError(
        absl::StrCat("it says: ", absl::Utf8SafeCEscape(Abseil(error->substr(0, 200)))));
  }
  if (TextOf(reply) == "OK") return absl::OkStatus();  // AUTH
  const bool is_push = reply.type == REDIS_REPLY_ARRAY && reply.elements >= 2;
  const std::optional<std::string_view> kind = is_push ? TextOf(*reply.element[0]) : std::nullopt;
  if (kind == "subscribe") {
    subscribed_ = true;
  } else if (kind == "pong") {
    ping_sent_ = absl::InfiniteFuture();
  } else if (kind == "message" && reply.elements == 3) {
    if (const std::optional<std::string_view> text = TextOf(*reply.element[2])) {
      counts_.messages.fetch_add(1, std::memory_order_relaxed);
      // Before the first hello is through there is nothing that it could be about.
      if (state_ == State::kReady) handlers_.message(*text);
    }
  } else {
    return absl::UnavailableError("it has sent what is no message");
  }
  return absl::OkStatus();
}

absl::Status RedisLink::Watch(absl::Time now) {
  const bool stuck = !in_flight_.empty() && now >= in_flight_.front().command.sent + timeout_;
  if (!stuck && now < ping_sent_ + timeout_) return absl::OkStatus();
  overdue_ = true;
  return absl::UnavailableError(
      absl::StrCat("it has not answered for ", absl::FormatDuration(timeout_)));
}

void RedisLink::Beat(absl::Time now) {
  next_beat_ = now + beat_;
  Transmit(Hello("renew", ""), /*internal=*/true, now);
  if (ping_sent_ == absl::InfiniteFuture()) {
    messages_->Send({"PING"});
    ping_sent_ = now;
  }
}

void RedisLink::Transmit(RedisCommand command, bool internal, absl::Time now) {
  counts_.commands.fetch_add(1, std::memory_order_relaxed);
  command.sent = now;
  if (command.operation.empty()) {
    commands_->Send({command.arguments.begin(), command.arguments.end()});
  } else {
    // Whatever keeps or ends what there is is done though Redis is full.
    const RedisScript& script = command.operation == "join" || command.operation == "load"
                                    ? RedisScript::WhereThereIsMemory()
                                    : RedisScript::Always();
    const std::string key_count = absl::StrCat(command.keys.size() + 1);
    const std::string epoch = absl::StrCat(epoch_);
    std::vector<std::string_view> words = {command.with_script ? "EVAL" : "EVALSHA",
                                           command.with_script ? script.text : script.sha1,
                                           key_count, server_key_};
    words.insert(words.end(), command.keys.begin(), command.keys.end());
    words.insert(words.end(), {command.operation, server_, epoch});
    words.insert(words.end(), command.arguments.begin(), command.arguments.end());
    commands_->Send(words);
  }
  in_flight_.push_back({std::move(command), internal});
}

void RedisLink::BecomeReady(absl::Time now) {
  counts_.connections.fetch_add(1, std::memory_order_relaxed);
  state_ = State::kReady;
  backoff_ = kFirstBackoff;
  overdue_ = false;
  next_beat_ = now + beat_;
  away_ = absl::OkStatus();
  const bool anew = instance_ != greeted_instance_;
  const bool first = instance_.empty();
  instance_ = greeted_instance_;
  if (log_ != nullptr) {
    log_->Info("Redis is reached", {{"redis", address_.Describe()}, {"instance", instance_}});
    if (anew && !first) {
      log_->Warning("Redis was restarted or replaced: its steps may be lost",
                    {{"redis", address_.Describe()}});
    }
  }
  if (anew && !first) queue_.clear();
  changed_();
  handlers_.ready(anew && !first);
}

void RedisLink::Fail(const absl::Status& why, absl::Time now) {
  counts_.failures.fetch_add(1, std::memory_order_relaxed);
  if (state_ == State::kReady) down_since_ = now;
  why_down_ = why;
  state_ = State::kDown;
  commands_.reset();
  messages_.reset();
  while (!in_flight_.empty()) {
    if (!in_flight_.back().internal) queue_.push_front(std::move(in_flight_.back().command));
    in_flight_.pop_back();
  }
  retry_ = now + backoff_;
  backoff_ = std::min(2 * backoff_, kLastBackoff);
}

void RedisLink::GoAway(const absl::Status& why) {
  away_ = absl::UnavailableError(
      absl::StrCat("Redis at ", address_.Describe(), " can't be used: ", why.message()));
  if (log_ != nullptr) {
    log_->Warning("Redis can't be used: grouped calls are refused until it is back",
                  {{"redis", address_.Describe()}, {"why", why.message()}});
  }
  std::erase_if(queue_, [](const RedisCommand& command) { return !command.persists; });
  changed_();
  handlers_.away(away_);
}

}  // namespace gradclip
