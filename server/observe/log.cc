#include "server/observe/log.h"

#include <signal.h>
#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/sinks/base_sink.h>

#include <atomic>
#include <mutex>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "server/observe/line_format.h"
#include "server/observe/pipe_writer.h"

namespace gradclip {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Lines are finished when they get here; only lost ones are noticed in between. All is called by
// the one thread of the pool, so no lock is needed.
class WriterSink : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  WriterSink(LogFormat format, int file_descriptor) : format_(format), writer_(file_descriptor) {}

  void Watch(spdlog::details::thread_pool* pool) { pool_ = pool; }
  void Close() { writer_.Close(); }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const uint64_t lost = pool_->overrun_counter();
    if (lost > reported_) {
      writer_.Write(FormatLine(format_, LogLevel::kWarning, absl::Now(),
                               "lines of this log were lost, its reader is too slow",
                               std::to_array<LogField>({{"lines", lost - reported_}})) +
                    "\n");
      reported_ = lost;
    }
    writer_.Write(std::string_view(message.payload.data(), message.payload.size()));
  }
  void flush_() override {}

 private:
  const LogFormat format_;
  PipeWriter writer_;
  spdlog::details::thread_pool* pool_ = nullptr;
  uint64_t reported_ = 0;
};

// Signals are for the threads that serve; and a broken pipe must be an error of write() here.
void BlockSignals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

}  // namespace

class Log::Impl {
 public:
  Impl(LogFormat format, LogLevel level, int file_descriptor)
      : format_(format),
        sink_(std::make_shared<WriterSink>(format, file_descriptor)),
        pool_(std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1, BlockSignals)),
        logger_(std::make_shared<spdlog::async_logger>(
            "gradclip", sink_, pool_, spdlog::async_overflow_policy::overrun_oldest)) {
    sink_->Watch(pool_.get());
    logger_->set_level(ToSpdlog(level));
  }

  // The pool's destructor writes out the queue.
  ~Impl() { sink_->Close(); }

  void Line(LogLevel level, std::string_view message, std::span<const LogField> fields) {
    if (!logger_->should_log(ToSpdlog(level))) return;
    Write(level, FormatLine(format_, level, absl::Now(), message, fields));
  }

  void Call(const CallRecord& call) {
    if (!logger_->should_log(spdlog::level::info)) return;
    Write(LogLevel::kInfo, FormatCall(format_, absl::Now(), call));
  }

  uint64_t lost_lines() const { return pool_->overrun_counter(); }

 private:
  void Write(LogLevel level, std::string line) {
    line += '\n';
    logger_->log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
  }

  const LogFormat format_;
  const std::shared_ptr<WriterSink> sink_;
  // Destroyed first to last: the logger, then the pool, whose queue holds the logger until it is
  // written out, then the sink that it writes to.
  const std::shared_ptr<spdlog::details::thread_pool> pool_;
  const std::shared_ptr<spdlog::async_logger> logger_;
};

Log::Log(LogFormat format, LogLevel level, int file_descriptor)
    : impl_(std::make_unique<Impl>(format, level, file_descriptor)) {}

Log::~Log() = default;

void Log::Debug(std::string_view message, std::initializer_list<LogField> fields) {
  impl_->Line(LogLevel::kDebug, message, {fields.begin(), fields.size()});
}

void Log::Info(std::string_view message, std::initializer_list<LogField> fields) {
  impl_->Line(LogLevel::kInfo, message, {fields.begin(), fields.size()});
}

void Log::Warning(std::string_view message, std::initializer_list<LogField> fields) {
  impl_->Line(LogLevel::kWarning, message, {fields.begin(), fields.size()});
}

void Log::Error(std::string_view message, std::initializer_list<LogField> fields) {
  impl_->Line(LogLevel::kError, message, {fields.begin(), fields.size()});
}

void Log::Call(const CallRecord& call) {
  impl_->Call(call);
}

uint64_t Log::lost_lines() const {
  return impl_->lost_lines();
}

}  // namespace gradclip
