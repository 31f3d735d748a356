// Frames that cost a client nothing, in floods on one connection.
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

// A connection with one call of ClipGradNorm begun on it: stream 1.
absl::StatusOr<Http2Connection*> BeginCall(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection;
  const absl::Status sent =
      (*connection)
          ->Send(Frame(FrameType::kHeaders, kEndHeaders, (*connection)->NextStream(),
                       RequestHeaders(kClipGradNorm)),
                 attacker.deadline());
  if (!sent.ok()) return sent;
  return connection;
}

absl::Status FloodCall(Attacker& attacker, const std::string& frames, uint64_t times) {
  absl::StatusOr<Http2Connection*> connection = BeginCall(attacker);
  if (!connection.ok()) return connection.status();
  return Flood(attacker, **connection, frames, times);
}

absl::Status Pings(Attacker& attacker) {
  return FloodCall(attacker, Ping(), 500'000);
}

absl::Status AckedPings(Attacker& attacker) {
  return FloodCall(attacker, Frame(FrameType::kPing, kAck, 0, "hostile!"), 500'000);
}

absl::Status SettingsFlood(Attacker& attacker) {
  return FloodCall(attacker, Settings({}), 500'000);
}

absl::Status SettingsUnread(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = BeginCall(attacker);
  if (!connection.ok()) return connection.status();
  (*connection)->set_reads(false);
  const absl::Status sent = Flood(attacker, **connection, Settings({}), 2'000'000);
  // Once acknowledgements are in its way the server reads no more, which is as it should be.
  return absl::IsDeadlineExceeded(sent) ? absl::OkStatus() : sent;
}

// The peer's view of our table of headers grows and shrinks; every size of window comes with it.
absl::Status TableSizes(Attacker& attacker) {
  return FloodCall(attacker,
                   Settings({{kHeaderTableSize, 0}}) + Settings({{kHeaderTableSize, 0xffffffff}}),
                   250'000);
}

absl::Status WindowSizes(Attacker& attacker) {
  // Each change concerns every stream that is open.
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  std::string frames;
  for (int i = 0; i < 1000; ++i) {
    frames += Frame(FrameType::kHeaders, kEndHeaders, (*connection)->NextStream(),
                    RequestHeaders(kClipGradNorm));
  }
  if (absl::Status sent = (*connection)->Send(frames, attacker.deadline()); !sent.ok()) {
    return sent;
  }
  return Flood(attacker, **connection,
               Settings({{kInitialWindowSize, 0}}) + Settings({{kInitialWindowSize, 65535}}),
               100'000);
}

absl::Status EmptyData(Attacker& attacker) {
  return FloodCall(attacker, Frame(FrameType::kData, 0, 1, {}), 1'000'000);
}

// Empty frames amid a message count against no window.
absl::Status EmptyDataInMessage(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = BeginCall(attacker);
  if (!connection.ok()) return connection.status();
  const absl::Status sent =
      (*connection)
          ->Send(Frame(FrameType::kData, 0, 1, MessagePrefix(1000) + "x"), attacker.deadline());
  if (!sent.ok()) return sent;
  return Flood(attacker, **connection, Frame(FrameType::kData, 0, 1, {}), 1'000'000);
}

absl::Status WindowUpdates(Attacker& attacker) {
  return FloodCall(attacker, WindowUpdate(0, 1) + WindowUpdate(1, 1), 500'000);
}

absl::Status Priorities(Attacker& attacker) {
  return FloodCall(attacker, Priority(1, 3, 7), 500'000);
}

absl::Status UnknownFrames(Attacker& attacker) {
  return FloodCall(attacker, Frame(static_cast<FrameType>(0xbe), 0, 1, {}), 1'000'000);
}

absl::Status UnknownResets(Attacker& attacker) {
  return FloodCall(attacker, RstStream(99), 500'000);
}

}  // namespace

const std::vector<Attack>& AttacksOnFrames() {
  static const std::vector<Attack> attacks = {
      {"pings", "PING", Pings},
      {"ping-acks", "PING with ACK, unasked", AckedPings},
      {"settings", "SETTINGS without any", SettingsFlood},
      {"settings-unread", "the same by a client that does not read", SettingsUnread},
      {"table-sizes", "SETTINGS_HEADER_TABLE_SIZE, none and the most in turn", TableSizes},
      {"window-sizes", "SETTINGS_INITIAL_WINDOW_SIZE in turn, with 1,000 streams open",
       WindowSizes},
      {"empty-data", "DATA without any, between messages", EmptyData},
      {"empty-data-in-message", "DATA without any, amid a message", EmptyDataInMessage},
      {"window-updates", "WINDOW_UPDATE of one byte, of connection and stream", WindowUpdates},
      {"priorities", "PRIORITY", Priorities},
      {"unknown-frames", "frames of no known type", UnknownFrames},
      {"unknown-resets", "RST_STREAM of a stream that never was", UnknownResets},
  };
  return attacks;
}

}  // namespace gradclip::hostile
