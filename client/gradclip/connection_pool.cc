#include "client/gradclip/connection_pool.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/gradclip/socket.h"

namespace gradclip {
namespace {

// As many as a client's threads usually are.
constexpr size_t kMaxIdle = 8;

}  // namespace

ConnectionPool::ConnectionPool(std::string address, std::optional<TlsOptions> tls)
    : address_(std::move(address)),
      addresses_(absl::StrSplit(address_, ',')),
      tls_(std::move(tls)) {}

absl::StatusOr<std::unique_ptr<Connection>> ConnectionPool::Take(absl::Time deadline) {
  while (true) {
    std::unique_ptr<Connection> connection;  // destroyed, where it is dead, without the lock
    {
      std::lock_guard lock(mutex_);
      if (idle_.empty()) break;
      connection = std::move(idle_.back());
      idle_.pop_back();
    }
    if (connection->Alive()) return connection;
  }
  return Open(deadline);
}

absl::StatusOr<std::unique_ptr<Connection>> ConnectionPool::Open(absl::Time deadline) {
  if (addresses_.size() == 1) return Connection::Open(address_, deadline, tls_);
  for (const std::string& address : addresses_) {
    if (const auto parsed = ParseServerAddress(address); !parsed.ok()) return parsed.status();
  }
  size_t first = 0;
  {
    std::lock_guard lock(mutex_);
    first = begin_;
  }
  std::vector<std::string> errors;
  for (size_t i = 0; i < addresses_.size(); ++i) {
    const size_t index = (first + i) % addresses_.size();
    // A host that says nothing leaves the others their share of the time.
    const absl::Duration share =
        (deadline - absl::Now()) / static_cast<double>(addresses_.size() - i);
    auto opened = Connection::Open(addresses_[index], absl::Now() + share, tls_);
    if (opened.ok()) {
      std::lock_guard lock(mutex_);
      begin_ = index;
      return opened;
    }
    const bool silent = absl::IsDeadlineExceeded(opened.status()) && absl::Now() < deadline;
    errors.push_back(absl::StrCat(
        addresses_[index], ": ",
        silent ? "no answer within its share of the call's timeout" : opened.status().message()));
    if (!silent && !absl::IsUnavailable(opened.status()))
      return absl::Status(opened.status().code(), absl::StrJoin(errors, "; "));
  }
  return absl::UnavailableError(absl::StrJoin(errors, "; "));
}

void ConnectionPool::GiveBack(std::unique_ptr<Connection> connection) {
  std::lock_guard lock(mutex_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(connection));
}

void ConnectionPool::Lose(const std::string& address) {
  CloseIdle([&](const Connection& idle) { return idle.address() == address; });
}

void ConnectionPool::PassOver(const std::string& address) {
  Lose(address);
  std::lock_guard lock(mutex_);
  if (addresses_[begin_] == address) begin_ = (begin_ + 1) % addresses_.size();
}

void ConnectionPool::StartOver() {
  CloseIdle([&](const Connection& idle) { return idle.address() != addresses_.front(); });
  std::lock_guard lock(mutex_);
  begin_ = 0;
}

void ConnectionPool::CloseIdle(absl::FunctionRef<bool(const Connection&)> is_meant) {
  std::vector<std::unique_ptr<Connection>> closed;  // after the lock is released
  std::lock_guard lock(mutex_);
  const auto meant = std::stable_partition(idle_.begin(), idle_.end(),
                                           [&](const auto& idle) { return !is_meant(*idle); });
  std::move(meant, idle_.end(), std::back_inserter(closed));
  idle_.erase(meant, idle_.end());
}

}  // namespace gradclip
