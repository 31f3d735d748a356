// The bytes of HTTP/2 (RFC 9113), HPACK (RFC 7541) and gRPC's messages, as a client may send them,
// well formed or not. Pure functions.
#ifndef GRADCLIP_TESTS_HOSTILE_FRAMES_H_
#define GRADCLIP_TESTS_HOSTILE_FRAMES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gradclip::hostile {

enum class FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kRstStream = 3,
  kSettings = 4,
  kPing = 6,
  kGoAway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,
};

// Flags mean different things on different frames; kEndStream is SETTINGS' and PING's ACK.
inline constexpr uint8_t kEndStream = 0x1;
inline constexpr uint8_t kAck = 0x1;
inline constexpr uint8_t kEndHeaders = 0x4;

inline constexpr uint16_t kHeaderTableSize = 1;
inline constexpr uint16_t kInitialWindowSize = 4;

inline constexpr size_t kFrameHeaderBytes = 9;
// What one frame may hold unless the peer allows more.
inline constexpr size_t kMaxFrameBytes = 16384;

inline constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

std::string BigEndian32(uint32_t value);

std::string Frame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload);
std::string Settings(const std::vector<std::pair<uint16_t, uint32_t>>& settings);
std::string SettingsAck();
std::string Ping();
std::string RstStream(uint32_t stream);  // CANCEL
std::string WindowUpdate(uint32_t stream, uint32_t bytes);
std::string Priority(uint32_t stream, uint32_t on, uint8_t weight);

// HPACK. An integer of which the first byte's low `bits` are free, above them `first`.
std::string HpackInteger(uint64_t value, int bits, uint8_t first);
std::string HpackString(std::string_view text);  // without Huffman
std::string NeverIndexed(std::string_view name, std::string_view value);
// Enters the dynamic table, as its first entry: index 62.
std::string WithIndexing(std::string_view name, std::string_view value);
std::string Indexed(uint64_t index);
inline constexpr uint64_t kFirstDynamicIndex = 62;

// The header block of a gRPC request, none of it indexed, with `more` at its end.
std::string RequestHeaders(std::string_view path, std::string_view more = {});

// As few HEADERS bytes as HPACK allows for a request made again and again: the block of the first,
// which indexes all fields, and the block of those after it.
struct RepeatedHeaders {
  std::string first;
  std::string again;
};
RepeatedHeaders RepeatedRequest(std::string_view path);

// gRPC's prefix of a message of `bytes`, and a whole message.
std::string MessagePrefix(uint32_t bytes);
std::string Message(std::string_view payload);

inline constexpr std::string_view kClipGradNorm = "/gradclip.v1.GradClip/ClipGradNorm";
inline constexpr std::string_view kComputeNorm = "/gradclip.v1.GradClip/ComputeNorm";
inline constexpr std::string_view kGetServerInfo = "/gradclip.v1.GradClip/GetServerInfo";
inline constexpr std::string_view kHealthCheck = "/grpc.health.v1.Health/Check";
inline constexpr std::string_view kHealthWatch = "/grpc.health.v1.Health/Watch";

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_FRAMES_H_
