// Which trace a call belongs to, as its caller says in the metadata "traceparent": W3C Trace
// Context, https://www.w3.org/TR/trace-context/#traceparent-header. No gRPC in it, and nothing to
// link: the client checks by it, too.
#ifndef GRADCLIP_SERVER_WIRE_TRACE_CONTEXT_H_
#define GRADCLIP_SERVER_WIRE_TRACE_CONTEXT_H_

#include <optional>
#include <string>
#include <string_view>

namespace gradclip {

inline constexpr char kTraceparent[] = "traceparent";

// In lower-case hexadecimal, as they came.
struct TraceContext {
  std::string trace_id;  // 32 digits
  std::string span_id;   // 16 digits: the caller's span, which the standard calls parent-id
  std::string flags;     // 2 digits; the lowest bit: the caller records the trace
};

// "00-TRACE_ID-SPAN_ID-FLAGS", or that of a later version, of which what follows a further "-" is
// left alone. nullopt for anything else, which the standard has ignored.
inline std::optional<TraceContext> ParseTraceparent(std::string_view text) {
  constexpr size_t kBytesOfVersion0 = 55;
  constexpr auto is_hex = [](std::string_view digits) {
    return digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  };
  constexpr auto is_zero = [](std::string_view digits) {
    return digits.find_first_not_of('0') == std::string_view::npos;
  };
  if (text.size() < kBytesOfVersion0) return std::nullopt;
  const std::string_view version = text.substr(0, 2);
  const std::string_view trace_id = text.substr(3, 32);
  const std::string_view span_id = text.substr(36, 16);
  const std::string_view flags = text.substr(53, 2);
  if (text[2] != '-' || text[35] != '-' || text[52] != '-') return std::nullopt;
  if (!is_hex(version) || !is_hex(trace_id) || !is_hex(span_id) || !is_hex(flags))
    return std::nullopt;
  if (version == "ff" || is_zero(trace_id) || is_zero(span_id)) return std::nullopt;
  if (text.size() > kBytesOfVersion0 && (version == "00" || text[kBytesOfVersion0] != '-')) {
    return std::nullopt;
  }
  return TraceContext{std::string(trace_id), std::string(span_id), std::string(flags)};
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_WIRE_TRACE_CONTEXT_H_
