#include "client/command/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Tensor MakeTensor(std::string name, std::vector<int64_t> shape) {
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  return tensor;
}

TEST(NumberText, IsTheShortestThatReadsBack) {
  EXPECT_EQ(NumberText(0.1), "0.1");
  EXPECT_EQ(NumberText(5), "5");
  EXPECT_EQ(NumberText(1.0173054268029178), "1.0173054268029178");
  EXPECT_EQ(NumberText(5e-324), "5e-324");
  EXPECT_EQ(NumberText(-0.0), "-0");
  EXPECT_EQ(NumberText(kNan), "NaN");
  EXPECT_EQ(NumberText(-kNan), "NaN");
  EXPECT_EQ(NumberText(kInfinity), "Infinity");
  EXPECT_EQ(NumberText(-kInfinity), "-Infinity");
}

TEST(PeoplesNumbers, CarryTheirUnits) {
  EXPECT_EQ(CountText(0), "0");
  EXPECT_EQ(CountText(999), "999");
  EXPECT_EQ(CountText(1000), "1,000");
  EXPECT_EQ(CountText(18446744073709551615u), "18,446,744,073,709,551,615");
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(1023), "1023 B");
  EXPECT_EQ(BytesText(1024), "1 KiB");
  EXPECT_EQ(BytesText(1434096), "1.37 MiB");
  EXPECT_EQ(BytesText(uint64_t{100} << 30), "100 GiB");
  EXPECT_EQ(RateText(2'310'000'000, absl::Seconds(1)), "2.31 GB/s");
  EXPECT_EQ(RateText(0, absl::ZeroDuration()), "0 B/s");
  EXPECT_EQ(DurationText(absl::Microseconds(12345)), "12.3 ms");
  EXPECT_EQ(DurationText(absl::Seconds(4.5)), "4.5 s");
  EXPECT_EQ(DurationText(absl::Seconds(125.7)), "2m5s");
}

TEST(Printable, EscapesWhatWouldBreakALineOrSteerATerminal) {
  EXPECT_EQ(Printable("blocks.0.ln1.weight"), "blocks.0.ln1.weight");
  EXPECT_EQ(Printable("größe 梯度 🙂"), "größe 梯度 🙂");
  EXPECT_EQ(Printable("a\nb\x1b[2J\x7f"), "a\\x0ab\\x1b[2J\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J");
  EXPECT_EQ(Printable("\xff\xe2\x82"), "\\xff\\xe2\\x82");
  EXPECT_EQ(Printable(std::string(1, '\0')), "\\x00");
  EXPECT_EQ(Printable(""), "");
}

TEST(Fields, AlignTheirValues) {
  EXPECT_EQ(Fields({{"total norm", "5"}, {"time", "1 ms"}, {"", "x\ny"}}),
            "total norm  5\n"
            "time        1 ms\n"
            "            x\\x0ay\n");
}

TEST(TensorTable, PutsTheLargestNormFirstAndNanBeforeAll) {
  const std::vector<Tensor> tensors = {MakeTensor("small", {2}), MakeTensor("large", {1000, 2}),
                                       MakeTensor("bad\n", {}), MakeTensor("overflow", {3})};
  const std::vector<TensorNorm> norms = {
      {0.5, 0, 1}, {12, 0, 1200}, {kNan, 1, 0}, {kInfinity, 2, 0}};
  EXPECT_EQ(TensorTable(tensors, norms),
            "norm      elements  non-finite  zeros  dtype  shape      name\n"
            "NaN              1           1      0  F32    []         bad\\x0a\n"
            "Infinity         3           2      0  F32    [3]        overflow\n"
            "12           2,000           0  1,200  F32    [1000, 2]  large\n"
            "0.5              2           0      1  F32    [2]        small\n");
}

TEST(ClippedText, SaysWhatBecameOfTheElements) {
  ClipOptions options;
  options.max_norm = 1;
  const auto text = [&](double total_norm, double coefficient, bool clipped, bool skipped = false) {
    ClipAnswer answer;
    answer.norm.total_norm = total_norm;
    answer.coefficient = coefficient;
    answer.clipped = clipped;
    answer.skipped = skipped;
    return ClippedText(answer, options);
  };
  EXPECT_EQ(text(5, 0.2, true), "yes, to 1");
  EXPECT_EQ(text(0.5, 1, false), "no, the limit is 1");
  EXPECT_EQ(text(0.5, 0.25, false),
            "no, the limit is 1; all elements are multiplied by 0.25 (--pre-scale)");
  EXPECT_EQ(text(kNan, kNan, false), "no: the norm is NaN, so all elements are NaN");
  EXPECT_EQ(text(kInfinity, 0, true),
            "yes: the norm is infinite, so all elements are 0, or NaN where they were infinite");
  EXPECT_EQ(text(kNan, 1, false, true), "no: the norm is not finite, so nothing is changed");
  EXPECT_EQ(text(kInfinity, 0, true, true), "no: the norm is not finite, so all elements are 0");
  options.max_norm = kInfinity;  // never clips
  EXPECT_EQ(text(kNan, 1, false), "no, the limit is Infinity");
}

TEST(Json, HasEveryFieldOfANormUnderTheContractsName) {
  NormAnswer answer;
  answer.total_norm = 1e-310;
  answer.nonfinite_elements = 18446744073709551615u;
  answer.first_nonfinite = "a\"b[3]";
  answer.tensors = {{0.1, 2, 3}};
  answer.backend = "cpu/avx2";
  answer.group_nonfinite_elements = 7;
  const std::vector<Tensor> tensors = {MakeTensor("a\"b", {4})};
  EXPECT_EQ(JsonLine(ToJson(answer, tensors)),
            R"({"total_norm":1e-310,"nonfinite_elements":18446744073709551615,)"
            R"("first_nonfinite":"a\"b[3]","tensors":[{"name":"a\"b","norm":0.1,)"
            R"("nonfinite_elements":2,"zero_elements":3}],"backend":"cpu/avx2",)"
            R"("group_nonfinite_elements":7})"
            "\n");
}

TEST(Json, HasEveryFieldOfAClipAndTextForNanAndInfinity) {
  ClipAnswer answer;
  answer.norm.total_norm = kInfinity;
  answer.coefficient = kNan;
  answer.clipped = true;
  answer.skipped = true;
  answer.gradient_follows = true;
  EXPECT_EQ(JsonLine(ToJson(answer, {})),
            R"({"norm":{"total_norm":"Infinity","nonfinite_elements":0,"first_nonfinite":"",)"
            R"("tensors":[],"backend":"","group_nonfinite_elements":0},"coefficient":"NaN",)"
            R"("clipped":true,"skipped":true,"gradient_follows":true})"
            "\n");
}

TEST(Json, HasEveryFieldOfAServersInfo) {
  ServerInfo info;
  info.version = "0.1.0";
  info.backends = {{"cpu/avx2", true, "AVX2"}, {"cuda/0", false, "no driver"}};
  info.max_message_bytes = 1;
  info.max_call_bytes = 2;
  info.memory_budget_bytes = 3;
  info.memory_socket = "/run/x";
  info.max_tensors = 4;
  info.instance = "abc";
  EXPECT_EQ(JsonLine(ToJson(info)),
            R"({"version":"0.1.0","backends":[{"name":"cpu/avx2","usable":true,"detail":"AVX2"},)"
            R"({"name":"cuda/0","usable":false,"detail":"no driver"}],"max_message_bytes":1,)"
            R"("max_call_bytes":2,"memory_budget_bytes":3,"memory_socket":"/run/x",)"
            R"("max_tensors":4,"instance":"abc"})"
            "\n");
}

TEST(Json, NumbersReadBackAsTheSameBits) {
  for (double number : {0.1, 1.0173054268029178, 5e-324, 1.7976931348623157e308, 1e22, 1.0 / 3}) {
    EXPECT_EQ(Json::parse(JsonLine(JsonNumber(number))).get<double>(), number);
  }
}

TEST(Json, TakesNamesThatAreNotUtf8) {
  EXPECT_EQ(JsonLine(Json("a\xff")), "\"a\xef\xbf\xbd\"\n");
}

}  // namespace
}  // namespace gradclip
