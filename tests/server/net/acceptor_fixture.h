// An acceptor that hands its connections to the test.
#ifndef GRADCLIP_TESTS_SERVER_NET_ACCEPTOR_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_NET_ACCEPTOR_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/net/acceptor.h"
#include "tests/client/files/file_bytes.h"

namespace gradclip {

inline const Acceptor::Limits kMany = {.connections = 1000, .connections_per_peer = 1000};

// What is handed on, held as gRPC would.
class Taken {
 public:
  struct One {
    FileDescriptor connection;
    Peer peer;
  };

  void Take(FileDescriptor connection, const Peer& peer) {
    const std::lock_guard lock(mutex_);
    all_.push_back({std::move(connection), peer});
    changed_.notify_all();
  }

  // The next one.
  One Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !all_.empty(); });
    One one = std::move(all_.front());
    all_.erase(all_.begin());
    return one;
  }

  bool empty() {
    const std::lock_guard lock(mutex_);
    return all_.empty();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<One> all_;
};

class AcceptorTest : public testing::Test {
 protected:
  void Listen(const std::vector<std::string>& addresses, Acceptor::Limits limits = kMany) {
    std::vector<Listener> listeners;
    for (const std::string& address : addresses) {
      absl::StatusOr<Listener> listener = Listener::Open(address, std::nullopt);
      ASSERT_TRUE(listener.ok()) << listener.status();
      addresses_.push_back(listener->address());
      listeners.push_back(*std::move(listener));
    }
    acceptor_ = std::make_unique<Acceptor>(
        std::move(listeners), limits,
        [this](FileDescriptor connection, const Peer& peer) {
          taken_.Take(std::move(connection), peer);
        },
        log_, hits_);
    ASSERT_TRUE(acceptor_->Start().ok());
  }

  std::string UnixAddress() { return absl::StrCat("unix:", folder_ / "socket"); }

  const Folder folder_;
  const FileDescriptor null_{open("/dev/null", O_WRONLY | O_CLOEXEC)};
  Log log_{LogFormat::kText, LogLevel::kInfo, null_.get()};
  LimitHits hits_;
  Taken taken_;
  std::vector<std::string> addresses_;
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_NET_ACCEPTOR_FIXTURE_H_
