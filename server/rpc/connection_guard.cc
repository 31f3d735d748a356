#include "server/rpc/connection_guard.h"

#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

// Over TCP. Users of a unix socket may name their ends, or not.
bool IsOneConnection(const std::string& peer) {
  return absl::StartsWith(peer, "ipv4:") || absl::StartsWith(peer, "ipv6:");
}

}  // namespace

absl::Status ConnectionGuard::Begin(const std::string& peer) {
  if (!IsOneConnection(peer)) return absl::OkStatus();
  uint64_t in_progress = 0;
  absl::string_view limit;
  {
    const std::lock_guard lock(mutex_);
    BeginSecond();
    Connection& connection = connections_[peer];
    in_progress = ++connection.in_progress;
    limit = CutFor(connection);
  }
  if (!limit.empty()) DoCut(limit, peer);
  if (in_progress <= limits_.streams) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("this connection has %d calls in progress, as many as one may have "
                      "(--max-streams-per-connection); wait for some of them to end, or open "
                      "another connection",
                      limits_.streams));
}

void ConnectionGuard::End(const std::string& peer, bool reset) {
  if (!IsOneConnection(peer)) return;
  absl::string_view limit;
  {
    const std::lock_guard lock(mutex_);
    BeginSecond();
    const auto found = connections_.find(peer);
    Connection& connection = found->second;
    --connection.in_progress;
    if (reset) ++connection.resets;
    limit = CutFor(connection);
    if (connection.in_progress == 0 && connection.resets == 0) connections_.erase(found);
  }
  if (!limit.empty()) DoCut(limit, peer);
}

absl::string_view ConnectionGuard::CutFor(Connection& connection) const {
  if (connection.cut) return "";
  absl::string_view limit;
  if (connection.resets > limits_.resets_per_second) {
    limit = "max-resets";
  } else if (connection.in_progress >
             TransportStreams(limits_.streams) + limits_.resets_per_second) {
    // It acknowledges no limit, or gRPC would have ended it.
    limit = "max-streams-per-connection";
  }
  connection.cut = !limit.empty();
  return limit;
}

void ConnectionGuard::BeginSecond() {
  const auto now = std::chrono::steady_clock::now();
  if (now - second_ < std::chrono::seconds(1)) return;
  second_ = now;
  for (auto entry = connections_.begin(); entry != connections_.end();) {
    entry->second.resets = 0;
    entry = entry->second.in_progress == 0 ? connections_.erase(entry) : std::next(entry);
  }
}

void ConnectionGuard::DoCut(absl::string_view limit, const std::string& peer) {
  hits_.Count(limit);
  log_.Warning("connection cut: no client that keeps to the rules does this",
               {{"peer", peer}, {"limit", absl::StrCat("--", limit)}});
  cut_(peer);
}

}  // namespace gradclip
