#include "tests/hostile/attack.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace gradclip::hostile {

absl::StatusOr<Http2Connection*> Attacker::Connect() {
  absl::StatusOr<std::unique_ptr<Http2Connection>> connection = Http2Connection::Connect(address_);
  if (!connection.ok()) return connection.status();
  connections_.push_back(*std::move(connection));
  return connections_.back().get();
}

absl::StatusOr<Http2Connection*> Attacker::Begin(
    const std::vector<std::pair<uint16_t, uint32_t>>& settings) {
  absl::StatusOr<Http2Connection*> connection = Connect();
  if (!connection.ok()) return connection;
  if (absl::Status begun = (*connection)->Begin(settings); !begun.ok()) return begun;
  return connection;
}

absl::StatusOr<Http2Connection*> Attacker::BeginUnacknowledged() {
  absl::StatusOr<Http2Connection*> connection = Connect();
  if (!connection.ok()) return connection;
  if (absl::Status sent = (*connection)->SendPreface(); !sent.ok()) return sent;
  (*connection)->set_reads(false);
  return connection;
}

void Attacker::CloseAll() {
  sent_before_ = sent_bytes();
  connections_.clear();
}

bool Attacker::HasTime() const {
  return absl::Now() < deadline_;
}

void Attacker::Poll() {
  for (const auto& connection : connections_) {
    // A connection that the server has closed has nothing more to say.
    if (!connection->received().closed) connection->Poll().IgnoreError();
  }
}

void Attacker::Settle() {
  const absl::Time end = absl::Now() + absl::Milliseconds(300);
  while (absl::Now() < end) {
    Poll();
    absl::SleepFor(absl::Milliseconds(5));
  }
}

void Attacker::Note(std::string_view remark) {
  if (!remarks_.empty()) remarks_ += "; ";
  remarks_ += remark;
}

std::string Attacker::Remarks() const {
  uint64_t closed = 0;
  const Http2Connection* refused = nullptr;
  for (const auto& connection : connections_) {
    closed += connection->received().closed ? 1 : 0;
    if (connection->received().goaway_code > 0) refused = connection.get();
  }
  std::string remarks = remarks_;
  const auto add = [&](std::string_view remark) {
    if (!remarks.empty()) remarks += "; ";
    remarks += remark;
  };
  if (refused != nullptr) {
    add(absl::StrCat("GOAWAY ", refused->received().goaway_code, " \"",
                     absl::CEscape(refused->received().goaway_text.substr(0, 60)), "\""));
  }
  if (closed > 0) {
    add(connections_.size() == 1 ? "the server closed the connection"
                                 : absl::StrCat("the server closed ", closed, " of ",
                                                connections_.size(), " connections"));
  }
  return remarks;
}

absl::Status Flood(Attacker& attacker, Http2Connection& connection, std::string_view frames,
                   uint64_t times) {
  constexpr size_t kBatchBytes = size_t{64} << 10;
  std::string batch;
  uint64_t in_batch = 0;
  for (; in_batch < times && batch.size() < kBatchBytes; ++in_batch) batch += frames;
  for (uint64_t sent = 0; sent < times && attacker.HasTime(); sent += in_batch) {
    if (absl::Status out = connection.Send(batch, attacker.deadline()); !out.ok()) return out;
  }
  return absl::OkStatus();
}

uint64_t Attacker::sent_bytes() const {
  uint64_t bytes = sent_before_;
  for (const auto& connection : connections_) bytes += connection->sent_bytes();
  return bytes;
}

}  // namespace gradclip::hostile
