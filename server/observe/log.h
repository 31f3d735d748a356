// The server's log: one line per event, as text for people or JSON for machines. Thread-safe.
//
// Callers only put a finished line into a bounded queue, which one thread writes out. Nobody ever
// waits for a slow reader: where the queue is full the oldest lines are dropped, and a line says
// how many. No global state: make one, pass it down.
#ifndef GRADCLIP_SERVER_OBSERVE_LOG_H_
#define GRADCLIP_SERVER_OBSERVE_LOG_H_

#include <unistd.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/wire/trace_context.h"

namespace gradclip {

enum class LogFormat { kText, kJson };
enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One named value beside a message. Views `name` and text values: both must live until the logging
// call returns, as temporaries in its arguments do.
struct LogField {
  LogField(std::string_view name, std::string_view value) : name(name), value(value) {}
  LogField(std::string_view name, const std::string& value)
      : name(name), value(std::string_view(value)) {}
  LogField(std::string_view name, const char* value) : name(name), value(std::string_view(value)) {}
  // Abseil's view, where that is a type of its own: absl::Status::message().
  template <std::same_as<absl::string_view> View>
  requires(!std::same_as<View, std::string_view>) LogField(std::string_view name, View value)
      : name(name), value(std::string_view(value.data(), value.size())) {}
  LogField(std::string_view name, double value) : name(name), value(value) {}
  LogField(std::string_view name, bool value) : name(name), value(value) {}
  template <std::signed_integral Integer>
  LogField(std::string_view name, Integer value) : name(name), value(int64_t{value}) {}
  template <std::unsigned_integral Integer>
  requires(!std::same_as<Integer, bool>) LogField(std::string_view name, Integer value)
      : name(name), value(uint64_t{value}) {}

  std::string_view name;
  std::variant<bool, int64_t, uint64_t, double, std::string_view> value;
};

// Which rank of which step a call was.
struct GroupRecord {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  uint32_t attempt = 0;
  uint32_t rank = 0;
  uint32_t world_size = 0;
};

// What is said about a call once it has ended.
struct CallRecord {
  uint64_t call_id = 0;
  std::string peer;                   // as gRPC names it: "ipv4:127.0.0.1:5123"
  std::string caller;                 // whose token or certificate it was; empty: nobody's
  std::string_view rpc;               // "ClipGradNorm"
  uint64_t bytes_in = 0;              // gradient bytes received
  uint64_t bytes_out = 0;             // the same, sent back
  uint64_t shared_bytes = 0;          // the same, in shared memory
  uint64_t tensors = 0;               // declared
  std::optional<GroupRecord> group;   // where it was of one
  std::optional<double> norm;         // total norm, where one was found
  std::optional<double> coefficient;  // where one was found
  std::optional<TraceContext> trace;  // where the caller said
  std::string_view backend;           // "cpu/avx2"; empty where none worked
  double milliseconds = 0;            // from the call's arrival to its end
  absl::Status status;

  // For metrics, and not in the log's lines.
  std::string_view reply;       // ClipGradNorm: "gradient", "gradient_if_changed", "coefficient"
  bool clipped = false;         // as the answer says, or would have said
  bool skipped = false;         // likewise
  bool fell_back = false;       // a GPU was to measure the gradient, and the CPU did
  bool nonfinite_norm = false;  // the total norm is NaN or infinite, whatever the status
  uint64_t nonfinite_elements = 0;  // of this call's own gradient, once it was complete
  // With `group`: what the store said became of the step; none where the call left before.
  std::optional<absl::StatusCode> group_outcome;
};

class Log {
 public:
  static constexpr size_t kQueueLines = 8192;

  // Writes lines of at least `level` to `file_descriptor`, which stays the caller's.
  Log(LogFormat format, LogLevel level, int file_descriptor = STDERR_FILENO);

  // Writes what is queued, but gives up on a reader that takes nothing for a second. REQUIRES: no
  // thread logs any more.
  ~Log();

  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  // `message` is a fixed sentence without values; what varies is a field. Both may hold text that a
  // client sent: control characters are escaped.
  void Debug(std::string_view message, std::initializer_list<LogField> fields = {});
  void Info(std::string_view message, std::initializer_list<LogField> fields = {});
  void Warning(std::string_view message, std::initializer_list<LogField> fields = {});
  void Error(std::string_view message, std::initializer_list<LogField> fields = {});

  // One line, at level info.
  void Call(const CallRecord& call);

  // Lines dropped so far because the queue was full.
  uint64_t lost_lines() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_LOG_H_
