#include "server/observe/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe(ends_), 0); }
  ~Pipe() {
    CloseReader();
    CloseWriter();
  }

  int writer() const { return ends_[1]; }
  void CloseReader() { Close(ends_[0]); }
  void CloseWriter() { Close(ends_[1]); }

  // All lines until the writer is closed, without their newlines.
  std::vector<std::string> ReadLines() {
    std::string text;
    char buffer[65536];
    for (ssize_t count; (count = read(ends_[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(count));
    }
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    EXPECT_EQ(lines.back(), "");  // every line is ended
    lines.pop_back();
    return lines;
  }

 private:
  static void Close(int& end) {
    if (end >= 0) close(end);
    end = -1;
  }

  int ends_[2] = {-1, -1};
};

TEST(Log, WritesLinesInOrderAndAllOfThemBeforeItIsGone) {
  Pipe pipe;
  {
    Log log(LogFormat::kText, LogLevel::kInfo, pipe.writer());
    log.Info("first");
    log.Warning("second", {{"count", 2}});
    log.Error("third");
    CallRecord call;
    call.call_id = 4;
    call.rpc = "ComputeNorm";
    log.Call(call);
    EXPECT_EQ(log.lost_lines(), 0);
  }
  pipe.CloseWriter();
  EXPECT_THAT(pipe.ReadLines(),
              ElementsAre(HasSubstr("Z info first"), HasSubstr("Z warning second count=2"),
                          HasSubstr("Z error third"), HasSubstr("Z info call 4 ComputeNorm")));
}

TEST(Log, LeavesOutWhatIsBelowItsLevel) {
  Pipe pipe;
  {
    Log log(LogFormat::kText, LogLevel::kWarning, pipe.writer());
    log.Debug("no");
    log.Info("no");
    log.Call(CallRecord{});
    log.Warning("yes");
    log.Error("yes");
  }
  pipe.CloseWriter();
  EXPECT_THAT(pipe.ReadLines(), SizeIs(2));
}

TEST(Log, WritesDebugLinesWhereAskedTo) {
  Pipe pipe;
  { Log(LogFormat::kText, LogLevel::kDebug, pipe.writer()).Debug("detail"); }
  pipe.CloseWriter();
  EXPECT_THAT(pipe.ReadLines(), ElementsAre(HasSubstr("Z debug detail")));
}

TEST(Log, StampsLinesWithTheTimeNow) {
  Pipe pipe;
  const absl::Time before = absl::Now() - absl::Milliseconds(1);  // stamps are cut, not rounded
  { Log(LogFormat::kJson, LogLevel::kInfo, pipe.writer()).Info("x"); }
  const absl::Time after = absl::Now();
  pipe.CloseWriter();
  const std::vector<std::string> lines = pipe.ReadLines();
  ASSERT_THAT(lines, SizeIs(1));
  absl::Time stamp;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(
      absl::RFC3339_full, nlohmann::json::parse(lines[0])["ts"].get<std::string>(), &stamp, &error))
      << error;
  EXPECT_GE(stamp, before);
  EXPECT_LE(stamp, after);
}

TEST(Log, KeepsLinesOfManyThreadsWhole) {
  constexpr int kThreads = 4;
  constexpr int kLines = 500;
  Pipe pipe;
  std::future<std::vector<std::string>> lines =
      std::async(std::launch::async, [&pipe] { return pipe.ReadLines(); });
  {
    Log log(LogFormat::kJson, LogLevel::kInfo, pipe.writer());
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&log, i] {
        for (int line = 0; line < kLines; ++line) {
          log.Info("a line", {{"thread", i}, {"line", line}, {"filler", std::string(200, 'x')}});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(log.lost_lines(), 0);
  }
  pipe.CloseWriter();
  std::vector<int> next(kThreads, 0);
  for (const std::string& line : lines.get()) {
    const auto parsed = nlohmann::json::parse(line);
    EXPECT_EQ(parsed["line"], next[parsed["thread"].get<int>()]++);
  }
  EXPECT_THAT(next, ::testing::Each(kLines));
}

TEST(Log, WritesLinesLongerThanAPipeTakesAtOnce) {
  Pipe pipe;
  std::future<std::vector<std::string>> lines =
      std::async(std::launch::async, [&pipe] { return pipe.ReadLines(); });
  const std::string text(300'000, 'x');
  { Log(LogFormat::kText, LogLevel::kInfo, pipe.writer()).Info(text); }
  pipe.CloseWriter();
  EXPECT_THAT(lines.get(), ElementsAre(HasSubstr(text)));
}

// Enough lines to fill the pipe and the queue.
constexpr uint64_t kFlood = Log::kQueueLines + 5000;

void Flood(Log& log) {
  for (uint64_t i = 0; i < kFlood; ++i) log.Info("flood", {{"filler", std::string(100, 'x')}});
}

TEST(Log, NeverBlocksNorHangsBehindAReaderThatHasStopped) {
  Pipe pipe;
  {
    Log log(LogFormat::kText, LogLevel::kInfo, pipe.writer());
    Flood(log);  // would never return if it waited for room
    EXPECT_GT(log.lost_lines(), 0);
  }
  pipe.CloseWriter();
  EXPECT_THAT(pipe.ReadLines(), ::testing::Not(IsEmpty()));
}

TEST(Log, SaysHowManyLinesWereLost) {
  Pipe pipe;
  std::future<std::vector<std::string>> lines;
  {
    Log log(LogFormat::kJson, LogLevel::kInfo, pipe.writer());
    Flood(log);
    lines = std::async(std::launch::async, [&pipe] { return pipe.ReadLines(); });
  }
  pipe.CloseWriter();
  uint64_t written = 0;
  uint64_t lost = 0;
  for (const std::string& line : lines.get()) {
    const auto parsed = nlohmann::json::parse(line);
    if (parsed["message"] == "flood") {
      ++written;
    } else {
      EXPECT_EQ(parsed["level"], "warning");
      lost += parsed["lines"].get<uint64_t>();
    }
  }
  EXPECT_GT(lost, 0);
  EXPECT_EQ(written + lost, kFlood);
}

TEST(Log, SurvivesAReaderThatHasGone) {
  Pipe pipe;
  pipe.CloseReader();
  Log log(LogFormat::kText, LogLevel::kInfo, pipe.writer());
  log.Info("nobody reads this");  // no SIGPIPE
}

}  // namespace
}  // namespace gradclip
