#include "server/observe/line_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace gradclip {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const absl::Time kTime = absl::FromUnixMillis(1714566896125);  // 2024-05-01 12:34:56.125 UTC

std::string Text(std::string_view message, const std::vector<LogField>& fields = {}) {
  return FormatLine(LogFormat::kText, LogLevel::kWarning, kTime, message, fields);
}

// Parses the line, which proves that it is one JSON object.
Json Parsed(std::string_view message, const std::vector<LogField>& fields = {}) {
  const std::string line = FormatLine(LogFormat::kJson, LogLevel::kWarning, kTime, message, fields);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  return Json::parse(line);
}

CallRecord Call() {
  CallRecord call;
  call.call_id = 17;
  call.rpc = "ClipGradNorm";
  call.peer = "ipv4:127.0.0.1:5123";
  call.bytes_in = 1434096;
  call.tensors = 41;
  call.norm = 15.305229;
  call.coefficient = 0.06533737;
  call.backend = "cpu/avx2";
  call.milliseconds = 1.8;
  return call;
}

std::string CallText(const CallRecord& call) {
  return FormatCall(LogFormat::kText, kTime, call);
}

TEST(FormatLine, StartsTextWithTimeAndLevel) {
  EXPECT_EQ(Text("something odd"), "2024-05-01T12:34:56.125Z warning something odd");
}

TEST(FormatLine, KeepsThreeDigitsOfMilliseconds) {
  EXPECT_EQ(FormatLine(LogFormat::kText, LogLevel::kInfo, absl::UnixEpoch(), "x", {}),
            "1970-01-01T00:00:00.000Z info x");
}

TEST(FormatLine, NamesEveryLevel) {
  EXPECT_THAT(FormatLine(LogFormat::kText, LogLevel::kDebug, kTime, "x", {}),
              ::testing::EndsWith(" debug x"));
  EXPECT_THAT(FormatLine(LogFormat::kText, LogLevel::kInfo, kTime, "x", {}),
              ::testing::EndsWith(" info x"));
  EXPECT_THAT(FormatLine(LogFormat::kText, LogLevel::kError, kTime, "x", {}),
              ::testing::EndsWith(" error x"));
}

TEST(FormatLine, WritesFieldsOfEveryKindAsText) {
  EXPECT_EQ(Text("m", {{"a", 1},
                       {"b", -2L},
                       {"c", UINT64_MAX},
                       {"d", 0.5},
                       {"e", true},
                       {"f", "word"},
                       {"g", std::string("two words")},
                       {"h", std::string_view()},
                       {"i", absl::InvalidArgumentError("why").message()},
                       {"j", uint32_t{7}}}),
            "2024-05-01T12:34:56.125Z warning m a=1 b=-2 c=18446744073709551615 d=0.5 e=true "
            "f=word g=\"two words\" h=\"\" i=why j=7");
}

TEST(FormatLine, WritesFieldsOfEveryKindAsJson) {
  const Json line =
      Parsed("m", {{"a", -1}, {"b", UINT64_MAX}, {"c", 0.1}, {"d", false}, {"e", "x"}});
  EXPECT_EQ(line.dump(),
            R"({"ts":"2024-05-01T12:34:56.125Z","level":"warning","message":"m","a":-1,)"
            R"("b":18446744073709551615,"c":0.1,"d":false,"e":"x"})");
}

TEST(FormatLine, KeepsControlCharactersFromForgingTextLines) {
  const std::string forged = "a\n2024-05-01T12:34:56.125Z error forged\r\x1b[2J";
  for (const std::string& line : {Text(forged), Text("m", {{"name", forged}})}) {
    for (const char c : line) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << line;
    EXPECT_THAT(line, ::testing::HasSubstr("a\\n2024"));
  }
}

TEST(FormatLine, QuotesTextThatCouldPassForAnotherField) {
  EXPECT_THAT(Text("m", {{"name", "a level=error"}}),
              ::testing::EndsWith("name=\"a level=error\""));
  EXPECT_THAT(Text("m", {{"name", "a\" b=\"c"}}), ::testing::EndsWith(R"(name="a\" b=\"c")"));
}

TEST(FormatLine, KeepsAnyBytesAsValidJson) {
  const std::string bytes("\x00\n\"\\\xff\xc3\xa9", 7);
  const Json line = Parsed(bytes, {{"name", bytes}});
  EXPECT_EQ(line["message"], std::string("\x00\n\"\\\xef\xbf\xbd\xc3\xa9", 9));
  EXPECT_EQ(line["name"], line["message"]);
}

TEST(FormatLine, KeepsValidUtf8AsTextAndEscapesTheRest) {
  EXPECT_THAT(Text("caf\xc3\xa9"), ::testing::EndsWith("caf\xc3\xa9"));
}

TEST(FormatLine, WritesNonfiniteNumbersAsNames) {
  const std::vector<LogField> fields = {{"a", std::nan("")}, {"b", kInfinity}, {"c", -kInfinity}};
  EXPECT_THAT(Text("m", fields), ::testing::EndsWith("a=NaN b=Infinity c=-Infinity"));
  const Json line = Parsed("m", fields);
  EXPECT_EQ(line["a"], "NaN");
  EXPECT_EQ(line["b"], "Infinity");
  EXPECT_EQ(line["c"], "-Infinity");
}

TEST(FormatCall, SaysAllOfACallAsText) {
  EXPECT_EQ(CallText(Call()),
            "2024-05-01T12:34:56.125Z info call 17 ClipGradNorm ipv4:127.0.0.1:5123 1434096 B in, "
            "0 B out, 41 tensors, norm 15.3052, coefficient 0.0653374, cpu/avx2, 1.8 ms, OK");
}

TEST(FormatCall, LeavesOutWhatIsNotKnownAndSaysWhatFailed) {
  CallRecord call;
  call.call_id = 3;
  call.rpc = "ComputeNorm";
  call.peer = "unix:";
  call.milliseconds = 0.04;
  call.status = absl::InvalidArgumentError("tensor a\nb: no such dtype");
  EXPECT_EQ(CallText(call),
            "2024-05-01T12:34:56.125Z info call 3 ComputeNorm unix: 0 B in, 0 B out, 0 tensors, "
            "0.0 ms, INVALID_ARGUMENT: tensor a\\nb: no such dtype");
  const Json line = Json::parse(FormatCall(LogFormat::kJson, kTime, call));
  EXPECT_FALSE(line.contains("norm"));
  EXPECT_FALSE(line.contains("coefficient"));
  EXPECT_FALSE(line.contains("backend"));
  EXPECT_EQ(line["status"], "INVALID_ARGUMENT");
  EXPECT_EQ(line["status_message"], "tensor a\nb: no such dtype");
}

TEST(FormatCall, EscapesThePeer) {
  CallRecord call = Call();
  call.peer = "unix:/tmp/a\nb";
  EXPECT_THAT(CallText(call), ::testing::HasSubstr("unix:/tmp/a\\nb 1434096"));
}

TEST(FormatCall, SaysWhoCalled) {
  CallRecord call = Call();
  call.caller = "trainer\n1";
  EXPECT_THAT(CallText(call), ::testing::HasSubstr("ipv4:127.0.0.1:5123 by trainer\\n1 1434096 B"));
  EXPECT_EQ(Json::parse(FormatCall(LogFormat::kJson, kTime, call))["caller"], "trainer\n1");
  EXPECT_FALSE(Json::parse(FormatCall(LogFormat::kJson, kTime, Call())).contains("caller"));
}

TEST(FormatCall, SaysWhatWasShared) {
  CallRecord call = Call();
  call.shared_bytes = 4096;
  EXPECT_THAT(CallText(call), ::testing::HasSubstr(" B out, 4096 B shared, 41 tensors"));
}

TEST(FormatCall, SaysWhichRankOfAGroupItWas) {
  CallRecord call = Call();
  call.group = GroupRecord{"run\n7", 2, 120, 1, 3, 8};
  EXPECT_THAT(CallText(call),
              ::testing::HasSubstr("41 tensors, rank 3 of 8 at step 120 attempt 1 generation 2 of "
                                   "\"run\\n7\", norm"));
  const Json line = Json::parse(FormatCall(LogFormat::kJson, kTime, call));
  EXPECT_EQ(line["job"], "run\n7");
  EXPECT_EQ(line["generation"], 2);
  EXPECT_EQ(line["step"], 120);
  EXPECT_EQ(line["attempt"], 1);
  EXPECT_EQ(line["rank"], 3);
  EXPECT_EQ(line["world_size"], 8);
}

TEST(FormatCall, SaysWhichTraceItBelongsTo) {
  CallRecord call = Call();
  call.trace = {"4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01"};
  EXPECT_THAT(CallText(call),
              ::testing::HasSubstr(
                  ", trace 4bf92f3577b34da6a3ce929d0e0e4736 span 00f067aa0ba902b7, 1.8 ms, OK"));
  const Json line = Json::parse(FormatCall(LogFormat::kJson, kTime, call));
  EXPECT_EQ(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(line["span_id"], "00f067aa0ba902b7");
  EXPECT_EQ(line["trace_flags"], "01");
}

TEST(FormatCall, SaysAllOfACallAsJson) {
  CallRecord call = Call();
  call.bytes_out = 12;
  call.shared_bytes = 4096;
  call.norm = std::nan("");
  call.coefficient = kInfinity;
  EXPECT_EQ(
      FormatCall(LogFormat::kJson, kTime, call),
      R"({"ts":"2024-05-01T12:34:56.125Z","level":"info","message":"call","call_id":17,)"
      R"("rpc":"ClipGradNorm","peer":"ipv4:127.0.0.1:5123","bytes_in":1434096,)"
      R"("bytes_out":12,"shared_bytes":4096,"tensors":41,"norm":"NaN","coefficient":"Infinity",)"
      R"("backend":"cpu/avx2","milliseconds":1.8,"status":"OK"})");
}

TEST(FormatCall, KeepsEveryDigitOfTheNormInJson) {
  CallRecord call = Call();
  call.norm = 0.1 + 0.2;
  const Json line = Json::parse(FormatCall(LogFormat::kJson, kTime, call));
  EXPECT_EQ(line["norm"].get<double>(), 0.1 + 0.2);
}

}  // namespace
}  // namespace gradclip
