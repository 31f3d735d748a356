#include "server/observe/line_format.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

using Json = nlohmann::ordered_json;

// The same view; which of the two types Abseil takes is up to how it was built.
absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

std::string Escape(std::string_view text) {
  return absl::Utf8SafeCEscape(View(text));
}

std::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "unknown";
}

std::string TimeStamp(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d%ET%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

// JSON has no such numbers; people and machines get the same names. Empty: the number is finite.
std::string_view NonfiniteName(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return "";
}

std::string TextNumber(double value) {
  const std::string_view name = NonfiniteName(value);
  return name.empty() ? absl::StrCat(value) : std::string(name);  // six digits
}

Json JsonNumber(double value) {
  const std::string_view name = NonfiniteName(value);
  return name.empty() ? Json(value) : Json(name);
}

// Quotes only what would not read as one word.
std::string TextValue(std::string_view value) {
  const std::string escaped = Escape(value);
  const bool word =
      !value.empty() && escaped == value && value.find_first_of(" =,") == std::string_view::npos;
  return word ? escaped : absl::StrCat("\"", escaped, "\"");
}

Json JsonLine(LogLevel level, absl::Time time, std::string_view message) {
  return Json{{"ts", TimeStamp(time)}, {"level", LevelName(level)}, {"message", message}};
}

std::string Dump(const Json& line) {
  return line.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

std::string TextStart(LogLevel level, absl::Time time) {
  return absl::StrCat(TimeStamp(time), " ", View(LevelName(level)), " ");
}

}  // namespace

std::string FormatLine(LogFormat format, LogLevel level, absl::Time time, std::string_view message,
                       std::span<const LogField> fields) {
  if (format == LogFormat::kJson) {
    Json line = JsonLine(level, time, message);
    for (const LogField& field : fields) {
      line[std::string(field.name)] = std::visit(
          [](const auto& value) {
            if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
              return JsonNumber(value);
            } else {
              return Json(value);
            }
          },
          field.value);
    }
    return Dump(line);
  }

  std::string line = absl::StrCat(TextStart(level, time), Escape(message));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", View(field.name), "=");
    std::visit(
        [&line](const auto& value) {
          using Value = std::decay_t<decltype(value)>;
          if constexpr (std::is_same_v<Value, double>) {
            line += TextNumber(value);
          } else if constexpr (std::is_same_v<Value, std::string_view>) {
            line += TextValue(value);
          } else if constexpr (std::is_same_v<Value, bool>) {
            line += value ? "true" : "false";
          } else {
            absl::StrAppend(&line, value);
          }
        },
        field.value);
  }
  return line;
}

std::string FormatCall(LogFormat format, absl::Time time, const CallRecord& call) {
  const std::string code = absl::StatusCodeToString(call.status.code());
  if (format == LogFormat::kJson) {
    Json line = JsonLine(LogLevel::kInfo, time, "call");
    line["call_id"] = call.call_id;
    line["rpc"] = call.rpc;
    line["peer"] = call.peer;
    if (!call.caller.empty()) line["caller"] = call.caller;
    if (const std::optional<TraceContext>& trace = call.trace; trace.has_value()) {
      line["trace_id"] = trace->trace_id;
      line["span_id"] = trace->span_id;
      line["trace_flags"] = trace->flags;
    }
    line["bytes_in"] = call.bytes_in;
    line["bytes_out"] = call.bytes_out;
    line["shared_bytes"] = call.shared_bytes;
    line["tensors"] = call.tensors;
    if (const std::optional<GroupRecord>& group = call.group; group.has_value()) {
      line["job"] = group->job;
      line["generation"] = group->generation;
      line["step"] = group->step;
      line["attempt"] = group->attempt;
      line["rank"] = group->rank;
      line["world_size"] = group->world_size;
    }
    if (call.norm.has_value()) line["norm"] = JsonNumber(*call.norm);
    if (call.coefficient.has_value()) line["coefficient"] = JsonNumber(*call.coefficient);
    if (!call.backend.empty()) line["backend"] = call.backend;
    line["milliseconds"] = JsonNumber(call.milliseconds);
    line["status"] = code;
    if (!call.status.message().empty()) line["status_message"] = std::string(call.status.message());
    return Dump(line);
  }

  std::string line = absl::StrCat(TextStart(LogLevel::kInfo, time), "call ", call.call_id, " ",
                                  View(call.rpc), " ", absl::Utf8SafeCEscape(call.peer), " ");
  if (!call.caller.empty()) absl::StrAppend(&line, "by ", absl::Utf8SafeCEscape(call.caller), " ");
  absl::StrAppend(&line, call.bytes_in, " B in, ", call.bytes_out, " B out, ");
  if (call.shared_bytes > 0) absl::StrAppend(&line, call.shared_bytes, " B shared, ");
  absl::StrAppend(&line, call.tensors, " tensors, ");
  if (const std::optional<GroupRecord>& group = call.group; group.has_value()) {
    absl::StrAppendFormat(&line, "rank %d of %d at step %d attempt %d generation %d of %s, ",
                          group->rank, group->world_size, group->step, group->attempt,
                          group->generation, TextValue(group->job));
  }
  if (call.norm.has_value()) absl::StrAppend(&line, "norm ", TextNumber(*call.norm), ", ");
  if (call.coefficient.has_value()) {
    absl::StrAppend(&line, "coefficient ", TextNumber(*call.coefficient), ", ");
  }
  if (!call.backend.empty()) absl::StrAppend(&line, View(call.backend), ", ");
  if (const std::optional<TraceContext>& trace = call.trace; trace.has_value()) {
    absl::StrAppend(&line, "trace ", trace->trace_id, " span ", trace->span_id, ", ");
  }
  absl::StrAppendFormat(&line, "%.1f ms, %s", call.milliseconds, code);
  if (!call.status.message().empty()) {
    absl::StrAppend(&line, ": ", absl::Utf8SafeCEscape(call.status.message()));
  }
  return line;
}

}  // namespace gradclip
