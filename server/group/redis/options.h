// Where the Redis of a group's steps is, and how to come in. Values and pure functions.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_OPTIONS_H_
#define GRADCLIP_SERVER_GROUP_REDIS_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradclip {

// One database of one Redis.
struct RedisAddress {
  std::string host;  // a name, an IPv4 address, or an IPv6 address without brackets
  uint16_t port = 6379;
  uint32_t database = 0;
  std::string user;  // empty: Redis's own default user

  // "HOST:PORT/DB", by which all servers know it alike; the user is none of it.
  std::string Describe() const;
};

// redis://[USER@]HOST[:PORT][/DB]. INVALID_ARGUMENT, with the text and what is wrong with it, for
// anything else; a password in it is refused and not repeated.
absl::StatusOr<RedisAddress> ParseRedisUrl(std::string_view url);

// Several, with commas between. INVALID_ARGUMENT also where one is named twice.
absl::StatusOr<std::vector<RedisAddress>> ParseRedisUrls(std::string_view urls);

struct RedisOptions {
  // At least one. All servers of a job must name the same ones, in any order: a job's steps are at
  // the one that the hash of its name and of these says.
  std::vector<RedisAddress> endpoints;

  // Of all endpoints. The file is read anew at each connection, so that a password may be changed
  // without a restart; it wins. Both empty: none is sent.
  std::string password_file;
  std::string password;

  // A Redis that has not answered or could not be reached for this long is away: calls get
  // UNAVAILABLE.
  absl::Duration timeout = absl::Seconds(5);

  // Steps of one job that may be open at once, each holding its ranks' contributions in Redis.
  uint32_t max_open_steps = 64;

  // Commands to one endpoint that may wait for their answers; calls beyond get UNAVAILABLE.
  size_t max_commands = size_t{1} << 18;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_OPTIONS_H_
