#include "client/gradclip/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace gradclip {
namespace {

TEST(Utf8, KnowsTheFirstAndLastCharacterOfEachLength) {
  EXPECT_EQ(Utf8CharacterBytes(absl::string_view("\0", 1)), 1u);
  EXPECT_EQ(Utf8CharacterBytes("\x7f"), 1u);
  EXPECT_EQ(Utf8CharacterBytes("\u0080"), 2u);
  EXPECT_EQ(Utf8CharacterBytes("\u07ff."), 2u);
  EXPECT_EQ(Utf8CharacterBytes("\u0800"), 3u);
  EXPECT_EQ(Utf8CharacterBytes("\ud7ff"), 3u);
  EXPECT_EQ(Utf8CharacterBytes("\ue000"), 3u);
  EXPECT_EQ(Utf8CharacterBytes("\uffff"), 3u);
  EXPECT_EQ(Utf8CharacterBytes("\U00010000"), 4u);
  EXPECT_EQ(Utf8CharacterBytes("\U0010ffff."), 4u);
}

TEST(Utf8, RefusesWhatIsNoCharacter) {
  for (const char* text : {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2.", "\xe0\x9f\xbf",
                           "\xe2\x82", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf",
                           "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_EQ(Utf8CharacterBytes(text), 0u) << std::string(text);
    EXPECT_FALSE(IsUtf8(std::string("ok ") + text)) << std::string(text);
  }
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8("größe 梯度 🙂"));
}

}  // namespace
}  // namespace gradclip
