#include "server/security/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// As sha256sum prints them.
constexpr char kHashOfAlpha[] = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
constexpr char kHashOfBeta[] = "f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753";

std::string Error(const std::string& text) {
  const absl::StatusOr<Tokens> tokens = Tokens::Parse(text);
  if (tokens.ok()) return "no error";
  EXPECT_TRUE(absl::IsInvalidArgument(tokens.status()));
  EXPECT_THAT(tokens.status().ToString(), Not(HasSubstr(kHashOfAlpha)));
  return std::string(tokens.status().message());
}

TEST(TokensTest, AreFoundByTheirHash) {
  const absl::StatusOr<Tokens> tokens = Tokens::Parse(
      absl::StrCat("# who may call\n\n  trainer-1\t", kHashOfAlpha, "\r\ntrainer-1 ",
                   "F44E64E75F3948E9F73F8DFA94721C4CE8CBB4F265C4790C702B2D41CFBF2753"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->size(), 2);
  ASSERT_NE(tokens->Find("alpha"), nullptr);
  EXPECT_EQ(*tokens->Find("alpha"), "trainer-1");
  EXPECT_NE(tokens->Find("beta"), nullptr);
  for (const char* wrong : {"", "alph", "alpha ", "Alpha", "gamma", kHashOfAlpha}) {
    EXPECT_EQ(tokens->Find(wrong), nullptr) << wrong;
  }
}

TEST(TokensTest, ErrorsNameTheLineAndNotItsHash) {
  EXPECT_EQ(Error(""), "has no token, so that nobody could call");
  EXPECT_EQ(Error("# nothing"), "has no token, so that nobody could call");
  EXPECT_EQ(Error("a"), "line 1 does not consist of a name and the SHA-256 of its token");
  EXPECT_EQ(Error(absl::StrCat("\na b ", kHashOfAlpha)),
            "line 2 does not consist of a name and the SHA-256 of its token");
  EXPECT_THAT(Error(absl::StrCat("a/b ", kHashOfAlpha)), HasSubstr("line 1 begins with no name"));
  EXPECT_THAT(Error(absl::StrCat(std::string(65, 'a'), " ", kHashOfAlpha)),
              HasSubstr("line 1 begins with no name"));
  EXPECT_EQ(Error("a e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            "line 1 has the SHA-256 of nothing: the token was empty");
  EXPECT_THAT(Error("a alpha"), HasSubstr("line 1 has no SHA-256 after the name"));
  EXPECT_THAT(Error(absl::StrCat("a ", kHashOfAlpha, "0")), HasSubstr("line 1 has no SHA-256"));
  EXPECT_THAT(Error(absl::StrCat("a x", std::string(kHashOfAlpha).substr(1))),
              HasSubstr("line 1 has no SHA-256"));
  EXPECT_EQ(Error(absl::StrCat("a ", kHashOfAlpha, "\nb ", kHashOfBeta, "\nc ", kHashOfAlpha)),
            "line 3 has the token of a again");
}

}  // namespace
}  // namespace gradclip
