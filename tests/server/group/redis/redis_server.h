// A redis-server of a test's own, on a free port, that keeps nothing on disk. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_SERVER_H_
#define GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_SERVER_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "server/group/redis/options.h"

namespace gradclip {

class RedisServer {
 public:
  // With more arguments of redis-server's. Waits until it answers.
  explicit RedisServer(std::vector<std::string> arguments = {});
  ~RedisServer();

  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  // Its process is killed, or started anew at the same port.
  void Kill();
  void Start();
  // Stands still, and goes on.
  void Freeze() const;
  void Thaw() const;

  RedisAddress address() const;
  uint16_t port() const { return port_; }

  // A command, and its answer as text: elements one a line, errors with "-" before them.
  std::string Ask(const std::vector<std::string>& words) const;

 private:
  bool TryStart();

  std::vector<std::string> arguments_;
  std::string folder_;
  uint16_t port_ = 0;
  pid_t process_ = -1;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_GROUP_REDIS_REDIS_SERVER_H_
