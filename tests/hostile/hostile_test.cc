// Runs a few short attacks with gradclip-hostile: whether they work, and the server survives.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace gradclip::hostile {
namespace {

TEST(Hostile, MeasuresAttacksThatTheServerSurvives) {
  FILE* pipe =
      popen(GRADCLIP_BIN_DIR
            "/gradclip-hostile --attack nothing bad-base64 abort-te abort-scheme abort-balancer "
            "lost-too-large lost-wrong-value",
            "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  char buffer[4096];
  for (size_t size; (size = fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    output.append(buffer, size);
  }
  ASSERT_EQ(pclose(pipe), 0);
  for (const char* attack : {"nothing", "bad-base64", "abort-te", "abort-scheme", "abort-balancer",
                             "lost-too-large", "lost-wrong-value"}) {
    EXPECT_NE(output.find(std::string("| ") + attack), std::string::npos) << output;
  }
  for (const char* bad : {"DIED", "never", "TAKEN FOR ANOTHER"}) {
    EXPECT_EQ(output.find(bad), std::string::npos) << output;
  }
}

}  // namespace
}  // namespace gradclip::hostile
