#include "server/wire/trace_context.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// The standard's own example.
constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpanId[] = "00f067aa0ba902b7";

std::string Traceparent(absl::string_view version, absl::string_view trace_id,
                        absl::string_view span_id, absl::string_view flags) {
  return absl::StrCat(version, "-", trace_id, "-", span_id, "-", flags);
}

TEST(ParseTraceparent, TakesWhatTheStandardShows) {
  const std::optional<TraceContext> trace =
      ParseTraceparent(Traceparent("00", kTraceId, kSpanId, "01"));
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->trace_id, kTraceId);
  EXPECT_EQ(trace->span_id, kSpanId);
  EXPECT_EQ(trace->flags, "01");
}

TEST(ParseTraceparent, TakesFlagsThatItDoesNotKnow) {
  EXPECT_EQ(ParseTraceparent(Traceparent("00", kTraceId, kSpanId, "ff"))->flags, "ff");
}

TEST(ParseTraceparent, TakesLaterVersionsAsFarAsItKnowsThem) {
  EXPECT_EQ(ParseTraceparent(Traceparent("cc", kTraceId, kSpanId, "01"))->trace_id, kTraceId);
  EXPECT_EQ(ParseTraceparent(Traceparent("cc", kTraceId, kSpanId, "01-what-follows"))->span_id,
            kSpanId);
  EXPECT_FALSE(ParseTraceparent(Traceparent("cc", kTraceId, kSpanId, "01.what")).has_value());
  EXPECT_FALSE(ParseTraceparent(Traceparent("ff", kTraceId, kSpanId, "01")).has_value());
}

TEST(ParseTraceparent, RefusesWhatIsNone) {
  EXPECT_FALSE(ParseTraceparent("").has_value());
  EXPECT_FALSE(ParseTraceparent("00").has_value());
  const std::string sound = Traceparent("00", kTraceId, kSpanId, "01");
  for (size_t size = 0; size < sound.size(); ++size) {
    EXPECT_FALSE(ParseTraceparent(sound.substr(0, size)).has_value()) << size;
  }
  EXPECT_FALSE(ParseTraceparent(sound + "-more").has_value());  // version 0 has no more
  EXPECT_FALSE(ParseTraceparent(sound + " ").has_value());
  // Each character in turn is one that can stand nowhere.
  for (size_t i = 0; i < sound.size(); ++i) {
    for (const char wrong : {'g', 'A', ' ', '\n', '\0', '\xff'}) {
      std::string text = sound;
      text[i] = wrong;
      EXPECT_FALSE(ParseTraceparent(text).has_value()) << text;
    }
  }
  EXPECT_FALSE(
      ParseTraceparent(Traceparent("00", std::string(32, '0'), kSpanId, "01")).has_value());
  EXPECT_FALSE(
      ParseTraceparent(Traceparent("00", kTraceId, std::string(16, '0'), "01")).has_value());
}

}  // namespace
}  // namespace gradclip
