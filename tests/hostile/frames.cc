#include "tests/hostile/frames.h"

#include <initializer_list>

namespace gradclip::hostile {
namespace {

using Field = std::pair<std::string_view, std::string_view>;

std::vector<Field> RequestFields(std::string_view path) {
  return {{":method", "POST"},       {":scheme", "http"}, {":path", path},
          {":authority", "hostile"}, {"te", "trailers"},  {"content-type", "application/grpc"}};
}

}  // namespace

std::string BigEndian32(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>((value >> shift) & 0xff));
  }
  return bytes;
}

std::string Frame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string frame = BigEndian32(static_cast<uint32_t>(payload.size())).substr(1);
  frame.push_back(static_cast<char>(type));
  frame.push_back(static_cast<char>(flags));
  frame += BigEndian32(stream);
  frame += payload;
  return frame;
}

std::string Settings(const std::vector<std::pair<uint16_t, uint32_t>>& settings) {
  std::string payload;
  for (const auto& [name, value] : settings) {
    payload.push_back(static_cast<char>(name >> 8));
    payload.push_back(static_cast<char>(name & 0xff));
    payload += BigEndian32(value);
  }
  return Frame(FrameType::kSettings, 0, 0, payload);
}

std::string SettingsAck() {
  return Frame(FrameType::kSettings, kAck, 0, {});
}

std::string Ping() {
  return Frame(FrameType::kPing, 0, 0, "hostile!");
}

std::string RstStream(uint32_t stream) {
  constexpr uint32_t kCancel = 8;
  return Frame(FrameType::kRstStream, 0, stream, BigEndian32(kCancel));
}

std::string WindowUpdate(uint32_t stream, uint32_t bytes) {
  return Frame(FrameType::kWindowUpdate, 0, stream, BigEndian32(bytes));
}

std::string Priority(uint32_t stream, uint32_t on, uint8_t weight) {
  return Frame(FrameType::kPriority, 0, stream, BigEndian32(on) + static_cast<char>(weight));
}

std::string HpackInteger(uint64_t value, int bits, uint8_t first) {
  const uint64_t most = (uint64_t{1} << bits) - 1;
  if (value < most) return std::string(1, static_cast<char>(first | value));
  std::string bytes(1, static_cast<char>(first | most));
  for (value -= most; value >= 128; value >>= 7) {
    bytes.push_back(static_cast<char>(0x80 | (value & 0x7f)));
  }
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::string HpackString(std::string_view text) {
  return HpackInteger(text.size(), 7, 0).append(text);
}

std::string NeverIndexed(std::string_view name, std::string_view value) {
  return "\x10" + HpackString(name) + HpackString(value);
}

std::string WithIndexing(std::string_view name, std::string_view value) {
  return "\x40" + HpackString(name) + HpackString(value);
}

std::string Indexed(uint64_t index) {
  return HpackInteger(index, 7, 0x80);
}

std::string RequestHeaders(std::string_view path, std::string_view more) {
  std::string block;
  for (const auto& [name, value] : RequestFields(path)) block += NeverIndexed(name, value);
  return block.append(more);
}

RepeatedHeaders RepeatedRequest(std::string_view path) {
  RepeatedHeaders headers;
  const std::vector<Field> fields = RequestFields(path);
  for (size_t i = 0; i < fields.size(); ++i) {
    headers.first += WithIndexing(fields[i].first, fields[i].second);
    // The entry made last has the lowest index.
    headers.again += Indexed(kFirstDynamicIndex + fields.size() - 1 - i);
  }
  return headers;
}

std::string MessagePrefix(uint32_t bytes) {
  return std::string(1, '\0') + BigEndian32(bytes);
}

std::string Message(std::string_view payload) {
  return MessagePrefix(static_cast<uint32_t>(payload.size())).append(payload);
}

}  // namespace gradclip::hostile
