#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/files/layout.h"
#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<TensorPlace> Parse(std::string_view file) {
  return ParseNpy(AsBytes(file), "w");
}

// Why a file with this header and so many bytes of data is refused.
std::string Refusal(std::string_view header, size_t data_bytes) {
  const auto place = Parse(Npy(1, header, std::string(data_bytes, '\0')));
  EXPECT_EQ(place.status().code(), absl::StatusCode::kInvalidArgument) << header;
  return std::string(place.status().message());
}

std::string HeaderOf(std::string_view descr) {
  return "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': (2,), }";
}

// As numpy 1.24 writes numpy.zeros((2, 3), "f4").
constexpr std::string_view kHeader =
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }                            "
    "                              \n";

TEST(Npy, TakesEveryVersion) {
  for (int version : {1, 2, 3}) {
    const auto place = Parse(Npy(version, kHeader, std::string(24, 'x')));
    ASSERT_TRUE(place.ok()) << place.status();
    EXPECT_EQ(place->name, "w");
    EXPECT_EQ(place->dtype, DType::kFloat32);
    EXPECT_THAT(place->shape, ElementsAre(2, 3));
    EXPECT_EQ(place->offset, (version == 1 ? 10 : 12) + kHeader.size());
    EXPECT_EQ(place->bytes, 24u);
  }
}

TEST(Npy, TakesEveryFloatOfNumpys) {
  EXPECT_EQ(Parse(Npy(1, HeaderOf("<f2"), "1234"))->dtype, DType::kFloat16);
  EXPECT_EQ(Parse(Npy(1, HeaderOf("<f4"), "12345678"))->dtype, DType::kFloat32);
  EXPECT_EQ(Parse(Npy(1, HeaderOf("<f8"), "1234567812345678"))->dtype, DType::kFloat64);
}

TEST(Npy, TakesScalarsEmptyArraysAndFortranOrder) {
  const auto scalar =
      Parse(Npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}\n", "1234"));
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  EXPECT_THAT(scalar->shape, IsEmpty());
  EXPECT_EQ(scalar->bytes, 4u);

  const auto empty =
      Parse(Npy(1, R"({"shape": (0, 7,), "descr": "<f8", "fortran_order": True})", ""));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT(empty->shape, ElementsAre(0, 7));
  EXPECT_EQ(empty->bytes, 0u);
}

TEST(Npy, RefusesDtypesThatCannotBeClippedAndSaysWhatToDo) {
  EXPECT_EQ(Refusal(HeaderOf(">f4"), 8),
            "its dtype >f4 is big-endian, which is not supported; save it with "
            "array.astype(\"<f4\")");
  EXPECT_THAT(Refusal(HeaderOf("<V2"), 4), HasSubstr("save bfloat16 in a .safetensors file"));
  EXPECT_THAT(Refusal(HeaderOf("|V2"), 4), HasSubstr("save bfloat16 in a .safetensors file"));
  EXPECT_EQ(Refusal(HeaderOf("<i8"), 16),
            "it has dtype <i8, which can't be clipped; a gradient's are <f4, <f2 and <f8");
  EXPECT_THAT(Refusal("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8),
              HasSubstr("records"));
}

TEST(Npy, RefusesFilesThatAreCutOffOrTooLong) {
  const std::string whole = Npy(1, kHeader, std::string(24, 'x'));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Parse(std::string_view(whole).substr(0, size)).ok()) << size;
  }
  EXPECT_EQ(Parse(whole + "x").status().message(),
            "shape [2, 3] of <f4 takes 24 bytes, but the file holds 25 after the header");
  EXPECT_EQ(Parse("PK\x03\x04").status().message(), "it does not start as a .npy file does");
  EXPECT_EQ(Parse(Npy(4, kHeader, std::string(24, 'x'))).status().message(),
            "its .npy version is 4.0; known are 1.0, 2.0 and 3.0");
  EXPECT_THAT(
      Refusal("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", 0),
      HasSubstr("takes over 2^63 bytes"));
}

TEST(Npy, RefusesHeadersThatAreNotNumpys) {
  for (const char* header : {
           "",
           "[]",
           "{",
           "{}",
           "{'descr'}",
           "{'descr': '<f4'}",
           "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': 1}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
           "{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}",
           "{'descr': '<f4, 'fortran_order': False, 'shape': (1,)}",
           "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
       }) {
    EXPECT_FALSE(Parse(Npy(1, header, "1234")).ok()) << header;
  }
}

// Whatever one byte is changed to, the place lies within the file or the file is refused.
TEST(Npy, AnswersWithinTheFileForEveryChangeOfOneByte) {
  const std::string whole = Npy(1, kHeader, std::string(24, 'x'));
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      const auto place = Parse(changed);
      if (!place.ok()) continue;
      ASSERT_LE(place->offset, changed.size());
      ASSERT_EQ(place->bytes, changed.size() - place->offset);
    }
  }
}

}  // namespace
}  // namespace gradclip
