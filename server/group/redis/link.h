// A server's link to one Redis: two connections, one for commands, many of which may be on their
// way at once, and one on which Redis tells of what other servers did. Either both are up or none:
// where one fails both are made anew, and all commands that have not been answered are sent again,
// in their order. So a command may be carried out twice, but none of an older connection once the
// new one is up (the script refuses it, by the epoch), nor in another Redis than the one it was
// meant for (the instance: see README.md).
//
// Not thread-safe; all handlers are called by Move().
#ifndef GRADCLIP_SERVER_GROUP_REDIS_LINK_H_
#define GRADCLIP_SERVER_GROUP_REDIS_LINK_H_

#include <poll.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/group/redis/connection.h"
#include "server/group/redis/options.h"
#include "server/group/store.h"
#include "server/observe/log.h"

namespace gradclip {

// What has been done, for people and metrics.
struct RedisCounts {
  std::atomic<uint64_t> commands = 0;     // sent, those sent again included
  std::atomic<uint64_t> messages = 0;     // that came from other servers
  std::atomic<uint64_t> connections = 0;  // made and ready
  std::atomic<uint64_t> failures = 0;     // of connections, made or not
};

struct RedisCommand {
  // Answered with what Redis said, which may be anything but an error, or with
  //   RESOURCE_EXHAUSTED  Redis has no memory left, and did nothing
  //   INTERNAL            Redis refused it
  // Never called where the command was given up (RedisLink::Handlers).
  using OnReply = std::function<void(absl::StatusOr<const redisReply*>)>;

  // One of the script's operations, or empty: `arguments` are the whole command.
  std::string operation = {};
  std::vector<std::string> keys = {};       // without the server's own
  std::vector<std::string> arguments = {};  // from the fourth on
  OnReply on_reply = {};
  // Not given up where Redis is away.
  bool persists = false;

  // The link's.
  bool with_script = false;  // its text, which Redis did not know
  absl::Time sent = absl::InfiniteFuture();
};

class RedisLink {
 public:
  struct Handlers {
    // A message, as step.lua has them.
    std::function<void(std::string_view)> message;
    // Both connections are up, for the first time or again: messages may have been missed. `anew`:
    // it may be another Redis, or have lost what it knew, and all commands were given up.
    std::function<void(bool anew)> ready;
    // Redis has been out of reach for the time of RedisOptions, or refuses the password: all
    // commands but those that persist were given up. `why` says so. Called again only after ready.
    std::function<void(const absl::Status& why)> away;
  };

  // `server`: 10 letters and digits of its own. `log` may be null; it and `counts` must outlive
  // this.
  RedisLink(RedisAddress address, const RedisOptions& options, const GroupTimes& times,
            std::string server, RedisCounts& counts, Log* log);

  void Handle(Handlers handlers) { handlers_ = std::move(handlers); }
  // Called before ready() and away(): instance() and reachable() are new.
  void Observe(std::function<void()> changed) { changed_ = std::move(changed); }

  void Run(RedisCommand command) { queue_.push_back(std::move(command)); }
  size_t commands() const { return queue_.size() + in_flight_.size(); }

  // What to wait for: these (of which some may have no descriptor), until then.
  std::array<pollfd, 2> polled() const;
  absl::Time wake() const;
  // Does what there is to do, as poll() has found.
  void Move(const std::array<pollfd, 2>& polled, absl::Time now);

  // Of the Redis reached last; empty before any.
  const std::string& instance() const { return instance_; }
  absl::Duration lease() const { return lease_; }
  // OK unless away.
  const absl::Status& reachable() const { return away_; }
  bool ready() const { return state_ == State::kReady; }

 private:
  enum class State { kDown, kGreeting, kReady };
  // A command on its way; `internal` ones are the link's own, and not sent again.
  struct InFlight {
    RedisCommand command;
    bool internal = false;
  };

  absl::Status Connect(absl::Time now);
  absl::Status MoveConnections(const std::array<pollfd, 2>& polled, absl::Time now);
  absl::Status TakeReplies(absl::Time now);
  absl::Status TakeReply(const redisReply& reply, absl::Time now);
  absl::Status TakeMessage(const redisReply& reply, absl::Time now);
  absl::Status TakeError(InFlight answered, std::string_view error, absl::Time now);
  absl::Status Greeted(const redisReply& reply);
  absl::Status Watch(absl::Time now);
  void Beat(absl::Time now);
  void Transmit(RedisCommand command, bool internal, absl::Time now);
  void BecomeReady(absl::Time now);
  void Fail(const absl::Status& why, absl::Time now);
  void GoAway(const absl::Status& why);
  absl::StatusOr<std::string> Password() const;
  RedisCommand Hello(std::string operation, std::string new_instance) const;

  const RedisAddress address_;
  const std::string password_file_;
  const std::string password_;
  const absl::Duration timeout_;
  const std::string server_;
  const std::string server_key_;
  const absl::Duration lease_;
  const absl::Duration beat_;
  const absl::Duration server_ttl_;
  const absl::Duration instance_ttl_;
  RedisCounts& counts_;
  Log* const log_;
  Handlers handlers_;
  std::function<void()> changed_ = [] {};

  State state_ = State::kDown;
  std::unique_ptr<RedisConnection> commands_;
  std::unique_ptr<RedisConnection> messages_;
  uint64_t epoch_ = 0;
  bool greeted_ = false;     // the script has answered hello
  bool subscribed_ = false;  // so messages come
  bool refused_ = false;     // the password or the user
  bool overdue_ = false;     // it was up, and has not answered for the whole timeout
  std::string greeted_instance_;
  std::string instance_;

  std::deque<RedisCommand> queue_;
  std::deque<InFlight> in_flight_;
  absl::Time next_beat_;
  absl::Time ping_sent_ = absl::InfiniteFuture();

  absl::Time down_since_;
  absl::Time connecting_since_;
  absl::Time retry_ = absl::InfinitePast();
  absl::Duration backoff_;
  absl::Status why_down_;
  absl::Status away_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_LINK_H_
