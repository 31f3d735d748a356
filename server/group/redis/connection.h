// One connection to a Redis, which never blocks but for the look-up of its name. Not thread-safe.
//
//   poll() for fd() and events(), then Move(), then Next() until it gives null
#ifndef GRADCLIP_SERVER_GROUP_REDIS_CONNECTION_H_
#define GRADCLIP_SERVER_GROUP_REDIS_CONNECTION_H_

#include <hiredis/hiredis.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/group/redis/options.h"

namespace gradclip {

struct FreeRedisReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using RedisReply = std::unique_ptr<redisReply, FreeRedisReply>;

// What a reply holds, where it is of that kind; it may be any other. They view the reply.
std::optional<std::string_view> TextOf(const redisReply& reply);  // strings and states, not errors
std::optional<std::string_view> ErrorOf(const redisReply& reply);
// The texts of an array of nothing but texts.
std::optional<std::vector<std::string_view>> TextsOf(const redisReply& reply);

// The same view; which of the two types Abseil takes is up to how it was built.
inline absl::string_view Abseil(std::string_view text) {
  return {text.data(), text.size()};
}

class RedisConnection {
 public:
  // Begins to connect. UNAVAILABLE where that fails at once.
  static absl::StatusOr<std::unique_ptr<RedisConnection>> Start(const RedisAddress& address);

  int fd() const { return context_->fd; }
  short events() const;

  // Queues a command of at least one word.
  void Send(const std::vector<std::string_view>& words);
  size_t unsent_bytes() const;

  // Reads and writes what can be, as poll() has found. An error (UNAVAILABLE) ends the connection.
  absl::Status Move(short revents);

  // The next reply that has come; null: none yet. The same errors, for what is no reply at all.
  absl::StatusOr<RedisReply> Next();

 private:
  struct FreeContext {
    void operator()(redisContext* context) const { redisFree(context); }
  };
  using Context = std::unique_ptr<redisContext, FreeContext>;

  explicit RedisConnection(Context context) : context_(std::move(context)) {}

  const Context context_;
  bool connected_ = false;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_CONNECTION_H_
