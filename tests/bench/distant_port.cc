#include "tests/bench/distant_port.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <deque>
#include <list>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/net/file_descriptor.h"
#include "tests/server/net/dial.h"

namespace gradclip::bench {
namespace {

void SendAtOnce(const FileDescriptor& socket) {
  const int yes = 1;
  setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
}

// One way of a connection.
class Way {
 public:
  Way(int from, int to) : from_(from), to_(to) {}

  int from() const { return from_; }
  absl::Time due() const { return under_way_.empty() ? absl::InfiniteFuture() : under_way_[0].due; }

  // What has come. False at the end.
  bool Take(absl::Time now, absl::Duration delay) {
    std::array<char, 65536> bytes;
    const ssize_t count = recv(from_, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count <= 0) return false;
    under_way_.push_back({now + delay, std::string(bytes.data(), count)});
    return true;
  }

  bool Deliver(absl::Time now) {
    while (due() <= now) {
      const std::string& bytes = under_way_[0].bytes;
      if (send(to_, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return false;
      under_way_.pop_front();
    }
    return true;
  }

 private:
  struct UnderWay {
    absl::Time due;
    std::string bytes;
  };
  const int from_;
  const int to_;
  std::deque<UnderWay> under_way_;
};

struct Connection {
  Connection(FileDescriptor near_end, FileDescriptor far_end)
      : near(std::move(near_end)),
        far(std::move(far_end)),
        ways{Way(near.get(), far.get()), Way(far.get(), near.get())} {}

  const FileDescriptor near;
  const FileDescriptor far;
  std::array<Way, 2> ways;
};

}  // namespace

DistantPort::DistantPort(uint16_t port, absl::Duration delay)
    : to_(absl::StrCat("127.0.0.1:", port)), delay_(delay), thread_([this] { Run(); }) {}

DistantPort::~DistantPort() {
  stop_.Send();
  thread_.join();
}

void DistantPort::Run() const {
  prctl(PR_SET_TIMERSLACK, 1UL);  // nanoseconds; 50 us otherwise
  std::list<Connection> connections;
  while (true) {
    std::vector<pollfd> polled = {{stop_.get(), POLLIN, 0}, {listener_.socket(), POLLIN, 0}};
    absl::Time due = absl::InfiniteFuture();
    for (const Connection& connection : connections) {
      for (const Way& way : connection.ways) {
        polled.push_back({way.from(), POLLIN, 0});
        due = std::min(due, way.due());
      }
    }
    const timespec longest = absl::ToTimespec(
        std::clamp(due - absl::Now(), absl::ZeroDuration(), absl::Duration(absl::Seconds(1))));
    ppoll(polled.data(), polled.size(), &longest, nullptr);
    if (polled[0].revents != 0) return;

    const absl::Time now = absl::Now();
    auto of_way = polled.begin() + 2;
    std::erase_if(connections, [&](Connection& connection) {
      bool is_up = true;
      for (Way& way : connection.ways) {
        if (of_way++->revents != 0) is_up = way.Take(now, delay_) && is_up;
        is_up = way.Deliver(now) && is_up;
      }
      return !is_up;
    });
    if (polled[1].revents != 0) {
      FileDescriptor near(listener_.Accept());
      FileDescriptor far = Dial(to_);
      if (!near.ok() || !far.ok()) continue;
      SendAtOnce(near);
      SendAtOnce(far);
      connections.emplace_back(std::move(near), std::move(far));
    }
  }
}

}  // namespace gradclip::bench
