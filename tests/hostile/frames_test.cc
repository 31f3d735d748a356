#include "tests/hostile/frames.h"

#include <gtest/gtest.h>

namespace gradclip::hostile {
namespace {

// RFC 7541, C.1.
TEST(HpackInteger, IsEncodedAsInTheStandard) {
  EXPECT_EQ(HpackInteger(10, 5, 0), "\x0a");
  EXPECT_EQ(HpackInteger(1337, 5, 0), "\x1f\x9a\x0a");
  EXPECT_EQ(HpackInteger(42, 8, 0), "\x2a");
}

// RFC 7541, C.2.
TEST(HpackField, IsEncodedAsInTheStandard) {
  EXPECT_EQ(WithIndexing("custom-key", "custom-header"),
            "\x40\x0a"
            "custom-key\x0d"
            "custom-header");
  EXPECT_EQ(NeverIndexed("password", "secret"),
            "\x10\x08"
            "password\x06"
            "secret");
  EXPECT_EQ(Indexed(2), "\x82");
}

TEST(Frame, HasLengthTypeFlagsAndStream) {
  EXPECT_EQ(Frame(FrameType::kData, kEndStream, 0x01020304, "xyz"),
            std::string("\0\0\x03\0\x01\x01\x02\x03\x04xyz", 12));
  EXPECT_EQ(Settings({{kInitialWindowSize, 65535}}),
            std::string("\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff", 15));
}

TEST(Message, HasGrpcsPrefix) {
  EXPECT_EQ(Message("abc"), std::string("\0\0\0\0\x03"
                                        "abc",
                                        8));
}

}  // namespace
}  // namespace gradclip::hostile
