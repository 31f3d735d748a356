#include "tests/server/group/redis/redis_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/group/redis/connection.h"

namespace gradclip {
namespace {

// One that was free a moment ago.
uint16_t FreePort() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(listener);
  return ntohs(address.sin_port);
}

std::string ToText(const redisReply& reply) {
  if (reply.type == REDIS_REPLY_INTEGER) return absl::StrCat(reply.integer);
  if (reply.type == REDIS_REPLY_NIL) return "";
  if (reply.type != REDIS_REPLY_ARRAY) {
    return absl::StrCat(reply.type == REDIS_REPLY_ERROR ? "-" : "",
                        std::string(reply.str, reply.len));
  }
  std::string text;
  for (size_t i = 0; i < reply.elements; ++i) {
    absl::StrAppend(&text, ToText(*reply.element[i]), "\n");
  }
  return text;
}

}  // namespace

RedisServer::RedisServer(std::vector<std::string> arguments) : arguments_(std::move(arguments)) {
  std::string folder = (std::filesystem::temp_directory_path() / "gradclip-redis-XXXXXX").string();
  EXPECT_NE(mkdtemp(folder.data()), nullptr);
  folder_ = folder;
  for (int i = 0; i < 20; ++i) {
    port_ = FreePort();
    if (TryStart()) return;
  }
  ADD_FAILURE() << "redis-server does not start (Debian's package redis-server)";
}

RedisServer::~RedisServer() {
  Kill();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void RedisServer::Kill() {
  if (process_ <= 0) return;
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

void RedisServer::Start() {
  // Its port is taken for a moment where a connection to another has happened to get it.
  for (int tries = 0; tries < 100; ++tries) {
    if (TryStart()) return;
    absl::SleepFor(absl::Milliseconds(50));
  }
  FAIL() << "redis-server does not start again";
}
void RedisServer::Freeze() const {
  if (process_ > 0) kill(process_, SIGSTOP);
}
void RedisServer::Thaw() const {
  if (process_ > 0) kill(process_, SIGCONT);
}

bool RedisServer::TryStart() {
  std::vector<std::string> words = {"redis-server", "--port",      absl::StrCat(port_),
                                    "--bind",       "127.0.0.1",   "--dir",
                                    folder_,        "--save",      "",
                                    "--logfile",    "redis.log",   "--maxclients",
                                    "1000",         "--daemonize", "no"};
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  process_ = fork();
  if (process_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    const int nothing = open("/dev/null", O_RDWR);
    for (const int fd : {0, 1, 2}) dup2(nothing, fd);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  for (int i = 0; i < 3000; ++i) {
    if (waitpid(process_, nullptr, WNOHANG) == process_) {
      process_ = -1;
      return false;  // another one has the port
    }
    // With a password it answers that one is wanted.
    const std::string answer = Ask({"PING"});
    if (answer == "PONG" || answer.starts_with("-NOAUTH")) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  Kill();
  return false;
}

RedisAddress RedisServer::address() const {
  RedisAddress address;
  address.host = "127.0.0.1";
  address.port = port_;
  return address;
}

std::string RedisServer::Ask(const std::vector<std::string>& words) const {
  const std::unique_ptr<redisContext, decltype(&redisFree)> context(
      redisConnect("127.0.0.1", port_), &redisFree);
  if (context == nullptr || context->err != 0) return "-not connected";
  std::vector<const char*> argv;
  std::vector<size_t> sizes;
  for (const std::string& word : words) {
    argv.push_back(word.data());
    sizes.push_back(word.size());
  }
  const RedisReply reply(static_cast<redisReply*>(
      redisCommandArgv(context.get(), static_cast<int>(words.size()), argv.data(), sizes.data())));
  return reply == nullptr ? "-no answer" : ToText(*reply);
}

}  // namespace gradclip
