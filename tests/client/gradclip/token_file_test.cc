#include "client/gradclip/token_file.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TokenFileTest : public testing::Test {
 protected:
  ~TokenFileTest() override { std::filesystem::remove(path_); }

  absl::StatusOr<std::string> Read(const std::string& contents) {
    std::ofstream(path_, std::ios::binary) << contents;
    return ReadToken(path_);
  }

  std::string Error(const std::string& contents) {
    const absl::StatusOr<std::string> token = Read(contents);
    if (token.ok()) return "no error";
    EXPECT_TRUE(absl::IsInvalidArgument(token.status()));
    EXPECT_THAT(std::string(token.status().message()), HasSubstr("token_file " + path_));
    EXPECT_THAT(std::string(token.status().message()), Not(HasSubstr("alpha")));
    return std::string(token.status().message());
  }

  const std::string path_ = absl::StrCat(testing::TempDir(), "/gradclip_token.", getpid());
};

TEST_F(TokenFileTest, IsReadWithoutTheWhiteSpaceAroundIt) {
  EXPECT_EQ(Read("alpha").value(), "alpha");
  EXPECT_EQ(Read("  alpha+/=~\r\n\n").value(), "alpha+/=~");
  EXPECT_EQ(Read(std::string(4096, 'a')).value(), std::string(4096, 'a'));
}

TEST_F(TokenFileTest, ErrorsNameTheFileAndNotTheToken) {
  EXPECT_THAT(Error(""), HasSubstr("holds no token"));
  EXPECT_THAT(Error(" \n"), HasSubstr("holds no token"));
  EXPECT_THAT(Error("alpha beta"), HasSubstr("more than one word of printable ASCII"));
  EXPECT_THAT(Error("alpha\nbeta"), HasSubstr("more than one word of printable ASCII"));
  EXPECT_THAT(Error("alpha\x7f"), HasSubstr("printable ASCII"));
  EXPECT_THAT(Error("alph\xc3\xa4"), HasSubstr("printable ASCII"));
  EXPECT_THAT(Error(std::string(4097, 'a')), HasSubstr("more than 4 KiB"));
}

TEST_F(TokenFileTest, ErrorsSayWhyTheFileCannotBeRead) {
  const absl::StatusOr<std::string> missing = ReadToken("/nowhere/token");
  EXPECT_TRUE(absl::IsInvalidArgument(missing.status()));
  EXPECT_EQ(missing.status().message(),
            "token_file /nowhere/token can't be read: No such file or directory");
  EXPECT_THAT(std::string(ReadToken(testing::TempDir()).status().message()),
              HasSubstr("Is a directory"));
}

}  // namespace
}  // namespace gradclip
