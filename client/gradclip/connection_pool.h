// The connections of one client, each for one call at a time, to one server or to several that may
// stand in for each other. Those that are idle wait for the next call: a new one costs round trips,
// and starts slowly.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CONNECTION_POOL_H_
#define GRADCLIP_CLIENT_GRADCLIP_CONNECTION_POOL_H_

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/connection.h"
#include "gradclip/client.h"

namespace gradclip {

class ConnectionPool {
 public:
  // address: as of Connection::Open; several with commas between.
  explicit ConnectionPool(std::string address, std::optional<TlsOptions> tls = std::nullopt);

  const std::string& address() const { return address_; }

  // An idle connection that lives, or a new one: to the address that was connected to last, or else
  // to the next in order at which somebody answers. Errors as Connection::Open; of several
  // addresses they name each that was tried. Only an address where nobody answers makes way for the
  // next.
  absl::StatusOr<std::unique_ptr<Connection>> Take(absl::Time deadline);

  // For a later call. REQUIRES: the call over it ended well, so that nothing is under way on it.
  // Beyond a few idle ones it is closed.
  void GiveBack(std::unique_ptr<Connection> connection);

  // Closes the idle ones to `address`: the server is going away, or is lost. A new connection tries
  // it again, as it may be back at once.
  void Lose(const std::string& address);

  // The same, and new connections begin with the address after it: the server may hang.
  void PassOver(const std::string& address);

  // New connections begin with the first address again, and idle ones to others are closed: where
  // each server has steps of its own, ranks that have come apart meet there.
  void StartOver();

 private:
  absl::StatusOr<std::unique_ptr<Connection>> Open(absl::Time deadline);
  void CloseIdle(absl::FunctionRef<bool(const Connection&)> is_meant);

  const std::string address_;
  const std::vector<std::string> addresses_;  // one or more
  const std::optional<TlsOptions> tls_;
  std::mutex mutex_;
  size_t begin_ = 0;  // guarded by mutex_; the address that new connections begin with
  std::vector<std::unique_ptr<Connection>> idle_;  // guarded by mutex_; used last, last
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CONNECTION_POOL_H_
