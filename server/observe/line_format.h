// How a line of the log looks. Pure functions; for log.cc alone.
#ifndef GRADCLIP_SERVER_OBSERVE_LINE_FORMAT_H_
#define GRADCLIP_SERVER_OBSERVE_LINE_FORMAT_H_

#include <span>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "server/observe/log.h"

namespace gradclip {

// Without a newline at the end, and with none inside. Text:
//   2024-05-01T12:00:00.125Z warning message name=value name="text value"
// JSON: an object of ts, level, message and one member per field; NaN and infinities are strings.
// Bytes that are not UTF-8 become U+FFFD in JSON, \ooo or \xhh in text.
std::string FormatLine(LogFormat format, LogLevel level, absl::Time time, std::string_view message,
                       std::span<const LogField> fields);

// The same for a call. Text:
//   ... info call 17 ClipGradNorm ipv4:127.0.0.1:5123 1434096 B in, 0 B out, 41 tensors,
//   norm 15.3052, coefficient 0.0653374, cpu/avx2, 1.8 ms, OK
// (one line; what is not known is left out). JSON: message "call", one member per CallRecord field,
// status as its code's name and, where there is one, status_message.
std::string FormatCall(LogFormat format, absl::Time time, const CallRecord& call);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_LINE_FORMAT_H_
