// Header blocks: large, endless, wrong, and with references that stand for more than they are.
#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

// The largest entry of a dynamic table of 4,096 bytes, of which 32 are overhead.
const std::string& LargestValue() {
  static const std::string value(4096 - 32 - std::string_view("x-a").size(), 'v');
  return value;
}

// More than a server's --max-metadata-bytes, by default.
const std::string& TooLargeValue() {
  static const std::string value(40'000, 'v');
  return value;
}

// A block cut into a HEADERS and CONTINUATION frames.
std::string HeaderFrames(uint32_t stream, std::string_view block) {
  std::string frames;
  auto type = FrameType::kHeaders;
  while (true) {
    const std::string_view part = block.substr(0, kMaxFrameBytes);
    block.remove_prefix(part.size());
    frames += Frame(type, block.empty() ? kEndHeaders : 0, stream, part);
    if (block.empty()) return frames;
    type = FrameType::kContinuation;
  }
}

// Begins `calls` calls with this block, the first with that one.
absl::Status BeginCalls(Attacker& attacker, absl::StatusOr<Http2Connection*> connection, int calls,
                        std::string_view first, std::string_view again) {
  if (!connection.ok()) return connection.status();
  int begun = 0;
  absl::Status sent;
  while (begun < calls && attacker.HasTime() && sent.ok()) {
    std::string frames;
    while (begun < calls && frames.size() < (size_t{64} << 10)) {
      frames += HeaderFrames((*connection)->NextStream(), begun == 0 ? first : again);
      ++begun;
    }
    sent = (*connection)->Send(frames, attacker.deadline());
    if (sent.ok() && (*connection)->reads()) sent = (*connection)->Poll();
  }
  attacker.Note(absl::StrCat(begun, " calls, ", (*connection)->received().resets, " reset"));
  return sent;
}

absl::Status LargestThatFit(Attacker& attacker) {
  const std::string block =
      RequestHeaders(kClipGradNorm, NeverIndexed("x-a", std::string(7500, 'v')));
  return BeginCalls(attacker, attacker.Begin(), 5'000, block, block);
}

absl::Status TooLarge(Attacker& attacker) {
  const std::string block = RequestHeaders(kClipGradNorm, NeverIndexed("x-a", TooLargeValue()));
  return BeginCalls(attacker, attacker.Begin(), 2'000, block, block);
}

absl::Status ManyFields(Attacker& attacker) {
  std::string fields;
  for (int i = 0; i < 150; ++i) fields += NeverIndexed("a", "");
  const std::string block = RequestHeaders(kClipGradNorm, fields);
  return BeginCalls(attacker, attacker.Begin(), 10'000, block, block);
}

// Each call names the largest entry once, which is within the limit of a header list.
absl::Status OneReference(Attacker& attacker) {
  const std::string entry = WithIndexing("x-a", LargestValue());
  return BeginCalls(attacker, attacker.Begin(), 50'000, RequestHeaders(kClipGradNorm, entry),
                    RequestHeaders(kClipGradNorm, Indexed(kFirstDynamicIndex)));
}

// Each call names it many times.
absl::Status ManyReferences(Attacker& attacker) {
  std::string references;
  for (int i = 0; i < 16'000; ++i) references += Indexed(kFirstDynamicIndex);
  return BeginCalls(attacker, attacker.Begin(), 500,
                    RequestHeaders(kClipGradNorm, WithIndexing("x-a", LargestValue())),
                    RequestHeaders(kClipGradNorm, references));
}

absl::Status TooLargeUnacknowledged(Attacker& attacker) {
  std::string fields;
  while (fields.size() < 200'000) fields += NeverIndexed("x-a", std::string(8000, 'v'));
  const std::string block = RequestHeaders(kClipGradNorm, fields);
  return BeginCalls(attacker, attacker.BeginUnacknowledged(), 200, block, block);
}

absl::Status ManyReferencesUnacknowledged(Attacker& attacker) {
  std::string references;
  for (int i = 0; i < 60'000; ++i) references += Indexed(kFirstDynamicIndex);
  return BeginCalls(attacker, attacker.BeginUnacknowledged(), 40,
                    RequestHeaders(kClipGradNorm, WithIndexing("a", "")),
                    RequestHeaders(kClipGradNorm, references));
}

// Every field drives all others from the table.
absl::Status Evictions(Attacker& attacker) {
  std::string fields;
  for (int i = 0; i < 60; ++i) fields += WithIndexing("a", "");
  const std::string block = RequestHeaders(kClipGradNorm, fields);
  return BeginCalls(attacker, attacker.Begin(), 20'000, block, block);
}

// A header block without an end: HEADERS, then `again` in CONTINUATION frames, `bytes` in all.
absl::Status Endless(Attacker& attacker, std::string_view begin, std::string_view again,
                     uint64_t bytes) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  const uint32_t stream = (*connection)->NextStream();
  const absl::Status sent =
      (*connection)
          ->Send(Frame(FrameType::kHeaders, 0, stream, RequestHeaders(kClipGradNorm, begin)),
                 attacker.deadline());
  if (!sent.ok()) return sent;
  const std::string frame = Frame(FrameType::kContinuation, 0, stream, again);
  return Flood(attacker, **connection, frame, bytes / frame.size());
}

absl::Status EndlessFields(Attacker& attacker) {
  std::string fields;
  while (fields.size() < 16'000) fields += NeverIndexed("a", "b");
  return Endless(attacker, {}, fields, 100'000'000);
}

absl::Status EndlessReferences(Attacker& attacker) {
  std::string references;
  while (references.size() < 16'000) references += Indexed(kFirstDynamicIndex);
  return Endless(attacker, WithIndexing("x-a", LargestValue()), references, 20'000'000);
}

absl::Status EmptyContinuations(Attacker& attacker) {
  return Endless(attacker, {}, {}, 20'000'000);
}

// A value said to have a gigabyte.
absl::Status EndlessValue(Attacker& attacker) {
  const std::string begin = "\x10" + HpackString("x-a") + HpackInteger(1 << 30, 7, 0);
  return Endless(attacker, begin, std::string(16'000, 'v'), 64'000'000);
}

absl::Status EndlessValueInCrumbs(Attacker& attacker) {
  const std::string begin = "\x10" + HpackString("x-a") + HpackInteger(1 << 30, 7, 0);
  return Endless(attacker, begin, "v", 2'000'000);
}

// An integer whose further bytes all say 0.
absl::Status EndlessInteger(Attacker& attacker) {
  return Endless(attacker, "\xff", std::string(16'000, '\x80'), 64'000'000);
}

absl::Status BadBase64(Attacker& attacker) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  Http2Connection& peer = **connection;
  const uint32_t other = peer.NextStream();
  const uint32_t bad = peer.NextStream();
  const absl::Status sent =
      peer.Send(HeaderFrames(other, RequestHeaders(kClipGradNorm)) +
                    HeaderFrames(bad, RequestHeaders(kClipGradNorm, NeverIndexed("x-bin", "!"))),
                attacker.deadline());
  if (!sent.ok()) return sent;
  attacker.Settle();
  attacker.Note(peer.ended(bad) ? "the call is refused" : "the call is let in");
  attacker.Note(peer.ended(other) || peer.received().closed ? "the other call on it is lost"
                                                            : "the other call on it goes on");
  return absl::OkStatus();
}

// CVE-2023-1428: a value that gRPC knows to be wrong, and then a list that is too large.
absl::Status WrongAndTooLarge(Attacker& attacker, std::string_view name, std::string_view value) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  std::string block = NeverIndexed(":method", "POST") + NeverIndexed(":path", kClipGradNorm);
  if (name != ":scheme") block += NeverIndexed(":scheme", "http");
  block += NeverIndexed(name, value) + NeverIndexed("x-a", TooLargeValue());
  return (*connection)->Send(HeaderFrames((*connection)->NextStream(), block), attacker.deadline());
}

absl::Status WrongTe(Attacker& attacker) {
  return WrongAndTooLarge(attacker, "te", "x");
}

absl::Status WrongScheme(Attacker& attacker) {
  return WrongAndTooLarge(attacker, ":scheme", "x");
}

absl::Status WrongBalancerStats(Attacker& attacker) {
  return WrongAndTooLarge(attacker, "grpclb_client_stats", "x");
}

// CVE-2023-32731 and CVE-2024-7246: a call is refused for its headers, and with them the entries
// that they made are lost, so that the connection's next call means something else. `refused` is
// what the second is refused for; the path of the third is the entry that the second made, or,
// where that is lost, the one that the first made.
absl::Status LostEntries(Attacker& attacker, std::string_view refused) {
  absl::StatusOr<Http2Connection*> connection = attacker.Begin();
  if (!connection.ok()) return connection.status();
  Http2Connection& peer = **connection;
  const uint32_t first = peer.NextStream();
  const uint32_t second = peer.NextStream();
  const uint32_t third = peer.NextStream();
  const auto frames = [](uint32_t stream, const std::string& path) {
    const std::string block = NeverIndexed(":method", "POST") + NeverIndexed(":scheme", "http") +
                              NeverIndexed(":authority", "hostile") + path +
                              NeverIndexed("te", "trailers") +
                              NeverIndexed("content-type", "application/grpc");
    return HeaderFrames(stream, block) + Frame(FrameType::kData, kEndStream, stream, Message({}));
  };
  const absl::Status sent =
      peer.Send(frames(first, WithIndexing(":path", kHealthCheck)) +
                    frames(second, std::string(refused) + WithIndexing(":path", kGetServerInfo)) +
                    frames(third, Indexed(kFirstDynamicIndex)),
                attacker.deadline());
  if (!sent.ok()) return sent;
  attacker.Settle();
  const uint64_t health_bytes = peer.data_bytes(first);
  if (health_bytes == 0) attacker.Note("the first call is lost");
  attacker.Note(peer.data_bytes(second) > 0 ? "the second call is answered"
                                            : "the second call is refused");
  const uint64_t bytes = peer.data_bytes(third);
  attacker.Note(bytes == 0              ? "the third call is lost"
                : bytes == health_bytes ? "THE THIRD CALL IS TAKEN FOR ANOTHER"
                                        : "the third call is answered");
  return absl::OkStatus();
}

absl::Status LostByTooLarge(Attacker& attacker) {
  return LostEntries(attacker, NeverIndexed("x-a", TooLargeValue()));
}

absl::Status LostByBadBase64(Attacker& attacker) {
  return LostEntries(attacker, NeverIndexed("x-bin", "!"));
}

absl::Status LostByWrongValue(Attacker& attacker) {
  return LostEntries(attacker, NeverIndexed("grpc-timeout", "never"));
}

}  // namespace

const std::vector<Attack>& AttacksOnHeaders() {
  static const std::vector<Attack> attacks = {
      {"headers-largest", "header lists just within gRPC's limit, calls left", LargestThatFit},
      {"headers-too-large", "header lists of 40 kB", TooLarge},
      {"headers-many", "150 empty fields, calls left", ManyFields},
      {"hpack-one-reference", "an entry of 4 kB named once a call, calls left", OneReference},
      {"hpack-bomb", "the same named 16,000 times a call", ManyReferences},
      {"headers-unheld", "header lists of 200 kB, the limit of which is not acknowledged",
       TooLargeUnacknowledged},
      {"hpack-bomb-unheld", "an entry of no bytes named 60,000 times a call, likewise",
       ManyReferencesUnacknowledged},
      {"hpack-evictions", "60 new entries a call, calls left", Evictions},
      {"continuations-empty", "CONTINUATION without any", EmptyContinuations},
      {"continuations-fields", "a header list without an end", EndlessFields},
      {"continuations-bomb", "the same of references to an entry of 4 kB", EndlessReferences},
      {"endless-value", "CVE-2023-33953: a field's value without an end", EndlessValue},
      {"endless-value-crumbs", "CVE-2023-33953: the same, a byte a frame", EndlessValueInCrumbs},
      {"endless-integer", "CVE-2023-33953: an integer without an end", EndlessInteger},
      {"bad-base64", "CVE-2023-32732: a -bin field that is not base64", BadBase64},
      {"abort-te", "CVE-2023-1428: te is wrong, and the list is too large", WrongTe},
      {"abort-scheme", "CVE-2023-1428: :scheme is wrong, and the list is too large", WrongScheme},
      {"abort-balancer", "CVE-2023-1428: grpclb_client_stats, and the list is too large",
       WrongBalancerStats},
      {"lost-too-large", "CVE-2023-32731: entries of a list that is too large", LostByTooLarge},
      {"lost-bad-base64", "CVE-2024-7246: entries behind a field that is not base64",
       LostByBadBase64},
      {"lost-wrong-value", "CVE-2024-7246: entries behind a grpc-timeout that is none",
       LostByWrongValue},
  };
  return attacks;
}

}  // namespace gradclip::hostile
