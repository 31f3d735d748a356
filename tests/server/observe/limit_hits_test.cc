#include "server/observe/limit_hits.h"

#include <gtest/gtest.h>

namespace gradclip {
namespace {

TEST(LimitHitsTest, CountsWhatAMessageNames) {
  LimitHits hits;
  hits.Count(absl::ResourceExhaustedError("2 tensors; the limit is 1 (--max-tensors)"));
  hits.Count(absl::ResourceExhaustedError("waited 1s (--admission-timeout) for (--memory-budget)"));
  hits.Count(absl::UnavailableError("4 calls (--max-calls); try again"));
  EXPECT_EQ(hits.of("max-tensors"), 1U);
  EXPECT_EQ(hits.of("admission-timeout"), 1U);
  EXPECT_EQ(hits.of("memory-budget"), 0U);
  EXPECT_EQ(hits.of("max-calls"), 1U);
  EXPECT_EQ(hits.of("max-calls-per-caller"), 0U);
}

TEST(LimitHitsTest, CountsNothingElse) {
  LimitHits hits;
  hits.Count(absl::OkStatus());
  hits.Count(absl::InvalidArgumentError(""));
  hits.Count(absl::InvalidArgumentError("(--"));
  hits.Count(absl::InvalidArgumentError("(--max-callsX (--no-such-flag) --max-calls"));
  hits.Count(absl::PermissionDeniedError("job \"a\\\" (--max-ranges\" may not (quoted)"));
  hits.Count("no-such-flag");
  for (const absl::string_view limit : LimitHits::kLimits) {
    EXPECT_EQ(hits.of(limit), limit == "max-calls" ? 1U : 0U) << limit;
  }
  EXPECT_EQ(hits.of("no-such-flag"), 0U);
}

TEST(LimitHitsTest, CountsByName) {
  LimitHits hits;
  for (const absl::string_view limit : LimitHits::kLimits) hits.Count(limit);
  for (const absl::string_view limit : LimitHits::kLimits) EXPECT_EQ(hits.of(limit), 1U) << limit;
}

}  // namespace
}  // namespace gradclip
