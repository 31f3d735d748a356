// What an attack is, and what it works with: connections that it opens and that stay open until
// the server has been measured. Not thread-safe.
#ifndef GRADCLIP_TESTS_HOSTILE_ATTACK_H_
#define GRADCLIP_TESTS_HOSTILE_ATTACK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/hostile/http2_connection.h"

namespace gradclip::hostile {

class Attacker {
 public:
  Attacker(std::string address, absl::Time deadline)
      : address_(std::move(address)), deadline_(deadline) {}

  // A connection that has sent nothing, or the preface and these settings.
  absl::StatusOr<Http2Connection*> Connect();
  absl::StatusOr<Http2Connection*> Begin(
      const std::vector<std::pair<uint16_t, uint32_t>>& settings = {});
  // One that does not acknowledge the server's settings: gRPC does not hold it to the limits there.
  absl::StatusOr<Http2Connection*> BeginUnacknowledged();
  void CloseAll();

  // When the attack has to end.
  absl::Time deadline() const { return deadline_; }
  bool HasTime() const;
  // Reads what has come on all connections.
  void Poll();
  // Goes on reading until little has come for a while.
  void Settle();

  // A remark for the report.
  void Note(std::string_view remark);
  // The remarks, and how the server ended the connections where it did.
  std::string Remarks() const;

  uint64_t sent_bytes() const;
  const std::vector<std::unique_ptr<Http2Connection>>& connections() const { return connections_; }

 private:
  const std::string address_;
  const absl::Time deadline_;
  std::vector<std::unique_ptr<Http2Connection>> connections_;
  uint64_t sent_before_ = 0;  // by connections that are closed
  std::string remarks_;
};

struct Attack {
  std::string name;
  std::string about;  // one line
  // UNAVAILABLE where the server ends the connection, which is an outcome and no failure.
  absl::Status (*run)(Attacker& attacker);
  std::vector<std::string> flags = {};  // of the server
  uint64_t open_files = 0;              // limit of the server's descriptors; 0: as it is
};

// Sends `frames` again and again, `times` at most, until the deadline; many of them at once.
absl::Status Flood(Attacker& attacker, Http2Connection& connection, std::string_view frames,
                   uint64_t times);

// A name of several words is joined by '-'.
const std::vector<Attack>& AttacksOnStreams();
const std::vector<Attack>& AttacksOnFrames();
const std::vector<Attack>& AttacksOnHeaders();
const std::vector<Attack>& AttacksOnMemory();
const std::vector<Attack>& AttacksOnConnections();

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_ATTACK_H_
