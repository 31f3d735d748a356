// A memory socket with its registry, and a look at its log. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_SHM_MEMORY_SOCKET_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_SHM_MEMORY_SOCKET_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "server/memory/budget.h"
#include "server/observe/log.h"
#include "server/shm/memory_socket.h"
#include "server/shm/registry.h"
#include "tests/server/shm/memfds.h"
#include "tests/server/shm/memory_client.h"

namespace gradclip {

class MemorySocketTest : public testing::Test {
 protected:
  MemorySocketTest() {
    std::string folder = testing::TempDir() + "gradclip-XXXXXX";
    folder_ = mkdtemp(folder.data());
    chmod(folder_.c_str(), 0755);
    options_.path = folder_ / "memory";
    options_.idle_timeout = absl::Seconds(600);
    log_file_ = FileDescriptor(open((folder_ / "log").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    log_.emplace(LogFormat::kText, LogLevel::kDebug, log_file_.get());
    registry_.emplace(limits_, budget_);
  }

  ~MemorySocketTest() override {
    socket_.reset();
    EXPECT_EQ(registry_->regions(), 0);
    EXPECT_EQ(registry_->bytes(), 0);
    EXPECT_EQ(budget_.used_bytes(), 0);
    EXPECT_EQ(MemfdMappings(), 0);
    std::filesystem::remove_all(folder_);
  }

  void Listen() {
    auto socket = MemorySocket::Listen(options_, *registry_, *log_);
    ASSERT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
  }

  // Starts with other limits.
  void Listen(const RegionLimits& limits) {
    registry_.emplace(limits, budget_);
    Listen();
  }

  MemoryClient Connect() const { return MemoryClient(options_.path); }

  [[nodiscard]] bool AwaitConnections(uint64_t count) const {
    return Await([&] { return socket_->connections() == count; });
  }

  // A client that has registered `bytes`.
  MemoryClient Registered(uint64_t bytes, RegionToken* token = nullptr) const {
    MemoryClient client = Connect();
    const auto answer = client.Register(MakeMemfd(bytes), bytes);
    EXPECT_TRUE(answer.has_value() && answer->code == absl::StatusCode::kOk);
    if (token != nullptr && answer.has_value()) *token = answer->token;
    return client;
  }

  // Whether the answer refuses with this code and these words.
  static void ExpectRefused(const std::optional<MemoryClient::Answer>& answer,
                            absl::StatusCode code, const std::string& text) {
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->code, code) << answer->message;
    EXPECT_THAT(answer->message, testing::HasSubstr(text));
    EXPECT_EQ(answer->token, RegionToken{});
  }
  static void ExpectOk(const std::optional<MemoryClient::Answer>& answer) {
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->code, absl::StatusCode::kOk) << answer->message;
    EXPECT_EQ(answer->message, "");
    EXPECT_NE(answer->token, RegionToken{});
  }

  // What was logged, all of it once the socket is gone. Ends the log.
  std::string ReadLog() {
    socket_.reset();
    log_.reset();
    return LogSoFar();
  }

  // Takes no descriptor.
  std::string LogSoFar() const {
    std::string text(kMiB, '\0');
    const ssize_t count = pread(log_file_.get(), text.data(), text.size(), 0);
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }

  std::filesystem::path folder_;
  MemorySocketOptions options_;
  RegionLimits limits_{1024, 1024, 1024 * kMiB, 1024 * kMiB};
  MemoryBudget budget_{1024 * kMiB};
  FileDescriptor log_file_;
  std::optional<Log> log_;
  std::optional<RegionRegistry> registry_;
  std::unique_ptr<MemorySocket> socket_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SHM_MEMORY_SOCKET_FIXTURE_H_
