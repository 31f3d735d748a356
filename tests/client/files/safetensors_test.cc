#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/files/layout.h"
#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<std::vector<TensorPlace>> Parse(std::string_view file) {
  return ParseSafetensors(AsBytes(file));
}

// Why a file with this header and so many bytes of data is refused.
std::string Refusal(std::string_view header, size_t data_bytes) {
  const auto places = Parse(Safetensors(header, std::string(data_bytes, '\0')));
  EXPECT_EQ(places.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(places.status().message());
}

std::vector<std::string> Names(const std::vector<TensorPlace>& places) {
  std::vector<std::string> names;
  for (const TensorPlace& place : places) names.push_back(place.name);
  return names;
}

constexpr std::string_view kTwoTensors =
    R"({"__metadata__":{"step":"60"},)"
    R"("a":{"dtype":"F64","shape":[1],"data_offsets":[12,20]},)"
    R"("b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}  )";

TEST(Safetensors, AnswersInTheOrderOfTheData) {
  const auto places = Parse(Safetensors(kTwoTensors, std::string(20, 'x')));
  ASSERT_TRUE(places.ok()) << places.status();
  ASSERT_EQ(places->size(), 2u);
  const TensorPlace& b = (*places)[0];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kFloat16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.offset, 8 + kTwoTensors.size());
  EXPECT_EQ(b.bytes, 12u);
  const TensorPlace& a = (*places)[1];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kFloat64);
  EXPECT_EQ(a.offset, b.offset + 12);
  EXPECT_EQ(a.bytes, 8u);
}

TEST(Safetensors, TakesScalarsAndEmptyTensorsAndNoTensors) {
  const auto places =
      Parse(Safetensors(R"({"z":{"dtype":"F32","shape":[0,4],"data_offsets":[4,4]},)"
                        R"("y":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},)"
                        R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                        "1234"));
  ASSERT_TRUE(places.ok()) << places.status();
  EXPECT_THAT(Names(*places), ElementsAre("s", "y", "z"));
  EXPECT_THAT((*places)[0].shape, IsEmpty());

  const auto none = Parse(Safetensors("{}", ""));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(*none, IsEmpty());
}

TEST(Safetensors, IgnoresFieldsItDoesNotKnow) {
  EXPECT_TRUE(
      Parse(Safetensors(R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2],"more":"x"}})",
                        "12"))
          .ok());
}

TEST(Safetensors, RefusesDtypesThatCannotBeClipped) {
  EXPECT_EQ(Refusal(R"({"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8),
            "tensor \"ids\" has dtype I64, which can't be clipped; a gradient's are F32, F16, BF16 "
            "and F64");
  EXPECT_THAT(Refusal(R"({"w":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", 1),
              HasSubstr("tensor \"w\" has dtype F8_E4M3"));
}

TEST(Safetensors, RefusesFilesThatAreCutOff) {
  const std::string whole = Safetensors(kTwoTensors, std::string(20, 'x'));
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto places = Parse(std::string_view(whole).substr(0, size));
    ASSERT_EQ(places.status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  EXPECT_EQ(
      Parse(LittleEndian(7, 8) + "{}").status().message(),
      "the header takes 7 bytes, but the file holds only 2 after its length; it may be cut off");
  EXPECT_EQ(Parse("1234").status().message(),
            "the file ends after 4 bytes, within the header's length");
}

TEST(Safetensors, RefusesRangesThatOverlapOrLeaveAHole) {
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                    12),
            "tensor \"b\" begins at byte 4 and overlaps \"a\", which ends at 8");
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                    12),
            "no tensor covers the bytes from 4 to 8, before tensor \"b\"");
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5),
            "the tensors end at byte 4 of the data, but the file holds 5");
  EXPECT_EQ(Refusal("{}", 1), "the tensors end at byte 0 of the data, but the file holds 1");
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3),
              HasSubstr("tensor \"a\" ends at byte 4 of the data, but the file holds only 3"));
}

TEST(Safetensors, RefusesShapesThatDoNotFitTheirRange) {
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
            "tensor \"a\": shape [3] of F32 takes 12 bytes, but its data_offsets span 8");
  // 2^62 * 4 elements wrap to 0 in 64 bits.
  EXPECT_THAT(
      Refusal(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0),
      HasSubstr("takes over 2^63 bytes"));
}

TEST(Safetensors, RefusesHeadersThatAreNotTheFormats) {
  for (const char* header :
       {"",
        "[]",
        "null",
        "{",
        "{}x",
        "\xff",
        R"({"a":1})",
        R"({"a":{}})",
        R"({"__metadata__":1})",
        R"({"__metadata__":{"a":1}})",
        R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,2,4]}})",
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1e99,4]}})"}) {
    EXPECT_FALSE(Parse(Safetensors(header, "1234")).ok()) << header;
  }
}

TEST(Safetensors, RefusesKeysGivenTwice) {
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                    4),
            "the header names \"a\" twice");
  EXPECT_EQ(Refusal(R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4),
            "the header names \"shape\" twice");
}

TEST(Safetensors, RefusesDeepNestingWithoutKeepingIt) {
  EXPECT_EQ(Refusal(R"({"a":{"shape":[[]]}})", 0), "the header's JSON is nested too deep");
  const std::string deep(1'000'000, '[');
  EXPECT_EQ(Refusal(deep, 0), "the header is not a JSON object");
  EXPECT_EQ(Refusal("{\"a\":" + deep + std::string(deep.size(), ']') + "}", 0),
            "the header's JSON is nested too deep");
}

TEST(Safetensors, RefusesHeadersOverTheFormatsLimit) {
  const std::string file = LittleEndian(100'000'001, 8) + std::string(100'000'001, ' ');
  EXPECT_EQ(Parse(file).status().message(),
            "the header takes 100000001 bytes; the format allows 100000000");
}

// Whatever one byte is changed to, the places lie within the file or the file is refused.
TEST(Safetensors, AnswersWithinTheFileForEveryChangeOfOneByte) {
  const std::string whole = Safetensors(kTwoTensors, std::string(20, 'x'));
  for (size_t at = 0; at < 8 + kTwoTensors.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      const auto places = Parse(changed);
      if (!places.ok()) continue;
      for (const TensorPlace& place : *places) {
        ASSERT_LE(place.offset, changed.size());
        ASSERT_LE(place.bytes, changed.size() - place.offset);
      }
    }
  }
}

}  // namespace
}  // namespace gradclip
