#include "server/session/session.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/server/session/session_fixture.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
const float kInf32 = std::numeric_limits<float>::infinity();

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

using ClipSession = SessionTest;

TEST_F(ClipSession, ClipsTheWorkedExample) {
  Run(ClipStart(5, 2), Bytes<float>({3, 4, 1, 2}));
  EXPECT_NEAR(result().norm().total_norm(), std::sqrt(30.0), 1e-12);
  EXPECT_NEAR(result().coefficient(), 5 / (std::sqrt(30.0) + 1e-6), 1e-15);
  EXPECT_TRUE(result().clipped());
  EXPECT_TRUE(result().gradient_follows());
  const float c = static_cast<float>(result().coefficient());
  EXPECT_EQ(ClippedBytes(), Bytes<float>({3 * c, 4 * c, 1 * c, 2 * c}));
}

TEST_F(ClipSession, GivesTheSameBitsForEveryTwoCuts) {
  v1::ClipGradNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_BFLOAT16, {3});
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {0, 7});
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {2});
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {});
  start.set_max_norm(1);
  const std::string bytes = Bytes<uint16_t>({0x3f80, 0x4040, 0xc000}) +
                            Bytes<double>({1e-3, 1e200}) + Bytes<float>({0.1f});
  Run(start, bytes);
  const std::string whole = ClippedBytes();
  const double norm = result().norm().total_norm();
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); ++second) {
      Restart();
      ASSERT_EQ(Send(start), absl::OkStatus());
      ASSERT_EQ(Send(std::string_view(bytes).substr(0, first)), absl::OkStatus());
      ASSERT_EQ(Send(std::string_view(bytes).substr(first, second - first)), absl::OkStatus());
      ASSERT_EQ(Send(std::string_view(bytes).substr(second)), absl::OkStatus());
      ASSERT_EQ(HalfClose(), absl::OkStatus());
      ASSERT_EQ(result().norm().total_norm(), norm) << first << " " << second;
      ASSERT_EQ(ClippedBytes(), whole) << first << " " << second;
    }
  }
}

TEST_F(ClipSession, GivesTheSameAnswerForRandomCutsOfALargeStreamOnEveryBackend) {
  v1::ClipGradNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT16, {4097}, "a");
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {5000}, "b");
  *start.add_tensors() = TensorOf(v1::DTYPE_BFLOAT16, {3, 0}, "c");
  *start.add_tensors() = TensorOf(v1::DTYPE_BFLOAT16, {1}, "d");
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {20'001}, "e");
  start.mutable_tensors(3)->set_replica(true);
  start.mutable_norm()->set_per_tensor(true);
  start.set_max_norm(1e-3);
  std::mt19937_64 random(7);
  std::string bytes;
  for (int i = 0; i < 4097; ++i)
    bytes += Bytes<uint16_t>({static_cast<uint16_t>(random() % 0x7c00)});
  std::normal_distribution<double> normal;
  for (int i = 0; i < 5000; ++i)
    bytes += Bytes<double>({normal(random) * (i % 7 == 0 ? 1e-200 : 1)});
  bytes += Bytes<uint16_t>({0x3f80});
  for (int i = 0; i < 20'001; ++i) bytes += Bytes<float>({static_cast<float>(normal(random))});
  for (const double p : {1.0, 2.0, 3.0, kInfinity}) {
    start.mutable_norm()->set_norm_type(p);
    std::string answer, whole;
    for (const BackendChoice& choice : ListBackends()) {
      if (!choice.usable) continue;
      backend_ = *MakeBackend(choice.name);
      for (int round = 0; round < 20; ++round) {
        Restart();
        ASSERT_EQ(Send(start), absl::OkStatus());
        for (std::string_view rest = bytes; !rest.empty();) {
          const uint64_t most = round == 0 ? ~0ull : round % 2 == 0 ? 100 : 70'000;
          const std::string_view part = rest.substr(0, round == 0 ? most : random() % most);
          ASSERT_EQ(Send(part), absl::OkStatus());
          rest.remove_prefix(part.size());
        }
        ASSERT_EQ(HalfClose(), absl::OkStatus());
        v1::ClipResult same = result();
        same.mutable_norm()->clear_backend();
        if (answer.empty()) {
          answer = same.SerializeAsString();
          whole = ClippedBytes();
        } else {
          ASSERT_EQ(same.SerializeAsString(), answer) << choice.name << ", p = " << p;
          ASSERT_TRUE(ClippedBytes() == whole) << choice.name << ", p = " << p;
        }
      }
    }
  }
}

TEST_F(ClipSession, PassesThroughTheSameBitsForEveryTwoCuts) {
  v1::ClipGradNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT16, {1});
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {2});
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {1});
  start.set_max_norm(1);
  const std::string bytes =
      Bytes<uint16_t>({0x3c00}) + Bytes<double>({3, 4}) + Bytes<float>({0.1f});
  Run(start, bytes);
  const std::string whole = ClippedBytes();
  start.set_total_norm(result().norm().total_norm());
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); ++second) {
      Restart();
      ASSERT_EQ(Send(start), absl::OkStatus());
      std::string passed;
      for (const std::string_view part : {std::string_view(bytes).substr(0, first),
                                          std::string_view(bytes).substr(first, second - first),
                                          std::string_view(bytes).substr(second)}) {
        std::string out(part.size() + 7, '\0');
        size_t written = 0;
        ASSERT_EQ(session_->PassThrough(AsBytes(part), reinterpret_cast<std::byte*>(out.data()),
                                        &written),
                  absl::OkStatus());
        passed += out.substr(0, written);
      }
      ASSERT_EQ(HalfClose(), absl::OkStatus());
      ASSERT_EQ(passed, whole) << first << " " << second;
    }
  }
}

TEST_F(ClipSession, CountsNoReplicas) {
  v1::ClipGradNormStart start = ClipStart(5, 2);
  start.mutable_tensors(1)->set_replica(true);
  start.mutable_norm()->set_per_tensor(true);
  Run(start, Bytes<float>({3, 4, kInf32, 2}));
  EXPECT_EQ(result().norm().total_norm(), 5);
  EXPECT_EQ(result().norm().nonfinite_elements(), 0u);
  EXPECT_EQ(result().norm().first_nonfinite(), "");
  ASSERT_EQ(result().norm().tensors_size(), 2);
  EXPECT_EQ(result().norm().tensors(1).norm(), kInfinity);
  EXPECT_EQ(result().norm().tensors(1).nonfinite_elements(), 1u);
}

TEST_F(ClipSession, AnswersPerTensor) {
  v1::ClipGradNormStart start = ClipStart(kInfinity, 2);
  start.mutable_norm()->set_per_tensor(true);
  start.mutable_norm()->set_pre_scale(0.5);
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {0});
  Run(start, Bytes<float>({3, 4, 0, -0.0f}));
  ASSERT_EQ(result().norm().tensors_size(), 3);
  EXPECT_EQ(result().norm().tensors(0).norm(), 2.5);
  EXPECT_EQ(result().norm().tensors(0).zero_elements(), 0u);
  EXPECT_EQ(result().norm().tensors(1).norm(), 0);
  EXPECT_EQ(result().norm().tensors(1).zero_elements(), 2u);
  EXPECT_EQ(result().norm().tensors(2).norm(), 0);
  EXPECT_EQ(result().norm().total_norm(), 2.5);
  EXPECT_EQ(result().coefficient(), 0.5);
  EXPECT_FALSE(result().clipped());
}

TEST_F(ClipSession, NamesTheFirstNonfiniteElement) {
  v1::ClipGradNormStart start = ClipStart(1, 3);
  start.mutable_tensors(1)->clear_name();
  Run(start, Bytes<float>({1, 2, 3, kInf32, kInf32, 0}));
  EXPECT_EQ(result().norm().first_nonfinite(), "#1[1]");
  EXPECT_EQ(result().norm().nonfinite_elements(), 2u);
  EXPECT_EQ(result().norm().group_nonfinite_elements(), 2u);
  EXPECT_EQ(result().norm().total_norm(), kInfinity);
}

TEST_F(ClipSession, AppliesTheNonfinitePolicies) {
  const std::string bytes = Bytes<float>({kInf32, 2});
  v1::ClipGradNormStart start = ClipStart(1);
  Run(start, bytes);
  EXPECT_EQ(result().coefficient(), 0);
  EXPECT_FALSE(result().skipped());
  EXPECT_EQ(ClippedBytes().substr(4), Bytes<float>({0}));

  Restart();
  start.set_nonfinite(v1::NONFINITE_SKIP);
  start.mutable_norm()->set_pre_scale(0.25);
  Run(start, bytes);
  EXPECT_EQ(result().coefficient(), 1);
  EXPECT_TRUE(result().skipped());
  EXPECT_EQ(ClippedBytes(), bytes);

  Restart();
  start.set_nonfinite(v1::NONFINITE_ZERO);
  Run(start, bytes);
  EXPECT_EQ(result().coefficient(), 0);
  EXPECT_TRUE(result().skipped());
  EXPECT_EQ(ClippedBytes(), Bytes<float>({0, 0}));

  Restart();
  start.set_nonfinite(v1::NONFINITE_ERROR);
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(bytes), absl::OkStatus());
  EXPECT_THAT(HalfClose(), Refuses(absl::StatusCode::kFailedPrecondition, "w0[0]"));
}

TEST_F(ClipSession, SaysThatTheNormOverflowed) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.mutable_tensors(0)->set_dtype(v1::DTYPE_FLOAT64);
  start.set_nonfinite(v1::NONFINITE_ERROR);
  start.mutable_norm()->set_pre_scale(1e10);
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(Bytes<double>({1e300, 1e300})), absl::OkStatus());
  EXPECT_THAT(HalfClose(),
              Refuses(absl::StatusCode::kFailedPrecondition, "all elements are finite"));
}

TEST_F(ClipSession, ScalesTheNormBeforeItIsRounded) {
  // Beyond double and below its precision before pre_scale, well within after it.
  const struct {
    std::vector<double> elements;
    double pre_scale;
    double norm;  // for p = 2
  } cases[] = {{{1.2e308, 1.6e308}, 1e-20, 2e288},
               {{0x3p-1074, 0x4p-1074}, 0x1p1000, 0x5p-74},
               {{0x3p-1050, 0x4p-1050}, 0x1p20, 0x5p-1030}};
  for (const auto& [elements, pre_scale, norm] : cases) {
    for (const double p : {1.0, 2.0, 3.0, kInfinity}) {
      v1::ClipGradNormStart start = ClipStart(kInfinity);
      start.mutable_tensors(0)->set_dtype(v1::DTYPE_FLOAT64);
      start.mutable_norm()->set_pre_scale(pre_scale);
      start.mutable_norm()->set_norm_type(p);
      start.mutable_norm()->set_per_tensor(true);
      start.set_reply(v1::REPLY_COEFFICIENT);
      start.set_nonfinite(v1::NONFINITE_ERROR);
      Restart();
      Run(start, Bytes(elements));
      const double ratio = p == 1 ? 7.0 / 5 : p == 2 ? 1 : p == 3 ? std::cbrt(91) / 5 : 4.0 / 5;
      EXPECT_NEAR(result().norm().total_norm() / (ratio * norm), 1, 1e-12) << p;
      EXPECT_EQ(result().norm().tensors(0).norm(), result().norm().total_norm()) << p;
    }
  }
}

TEST_F(ClipSession, TakesMinusZeroForZero) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_total_norm(-0.0);
  start.set_epsilon(-0.0);
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_EQ(result().coefficient(), 1);
  Restart();
  start.set_max_norm(-0.0);
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_EQ(result().coefficient(), 1);  // 0 / 0
  Restart();
  start.clear_total_norm();
  Run(start, Bytes<float>({3, -4}));
  EXPECT_EQ(ClippedBytes(), Bytes<float>({0, -0.0f}));
}

TEST_F(ClipSession, TakesMoreElementsThan31BitsCount) {
  // One message, until 2^31 + 5 elements have come.
  v1::ClipGradNormStart start = ClipStart(1);
  *start.mutable_tensors(0) = TensorOf(v1::DTYPE_BFLOAT16, {1 << 16, 1 << 15}, "large");
  *start.add_tensors() = TensorOf(v1::DTYPE_BFLOAT16, {5}, "small");
  start.set_reply(v1::REPLY_COEFFICIENT);
  ASSERT_EQ(Send(start), absl::OkStatus());
  std::string message = Bytes(std::vector<uint16_t>(1 << 20, 0x3f80));  // ones
  for (int i = 0; i < (1 << 11) - 1; ++i) ASSERT_EQ(Send(message), absl::OkStatus());
  message.replace(message.size() - 2, 2, Bytes<uint16_t>({0x7f80}));
  ASSERT_EQ(Send(message), absl::OkStatus());
  EXPECT_EQ(session_->received_bytes(), uint64_t{1} << 32);
  EXPECT_THAT(Send(Bytes(std::vector<uint16_t>(6, 0))),
              Refuses(kInvalid,
                      "12 bytes of data came after 4294967296; the 2 tensors up to "
                      "\"small\" declare 4294967306 in all"));
  ASSERT_EQ(Send(Bytes(std::vector<uint16_t>(5, 0x3f80))), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  EXPECT_EQ(result().norm().first_nonfinite(), "large[2147483647]");
  EXPECT_EQ(result().norm().nonfinite_elements(), 1u);
}

TEST_F(ClipSession, SendsBackOnlyWhatChanged) {
  v1::ClipGradNormStart start = ClipStart(10);
  start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  Run(start, Bytes<float>({3, 4}));
  EXPECT_FALSE(result().gradient_follows());
  Restart();
  start.set_max_norm(1);
  Run(start, Bytes<float>({3, 4}));
  EXPECT_TRUE(result().gradient_follows());
}

TEST_F(ClipSession, KeepsNothingForTheCoefficientAlone) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_reply(v1::REPLY_COEFFICIENT);
  max_call_bytes_ = 1;
  Restart();
  Run(start, Bytes<float>({3, 4}));
  EXPECT_EQ(session_->bytes_to_keep(), 0u);
  EXPECT_FALSE(result().gradient_follows());
  EXPECT_FALSE(session_->has_segment());
}

TEST_F(ClipSession, MeasuresNoTensorsAsZero) {
  v1::ClipGradNormStart start;
  start.set_max_norm(1);
  Run(start, "");
  EXPECT_EQ(result().norm().total_norm(), 0);
  EXPECT_EQ(result().coefficient(), 1);
}

TEST_F(ClipSession, JudgesAGivenNormByItsValueAlone) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_total_norm(kNaN);
  start.set_nonfinite(v1::NONFINITE_ERROR);
  EXPECT_THAT(Send(start), Refuses(absl::StatusCode::kFailedPrecondition, "total_norm"));
  Restart();
  start.set_nonfinite(v1::NONFINITE_SKIP);
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_TRUE(result().skipped());
}

TEST_F(ClipSession, RefusesBytesBeyondTheDeclaredSize) {
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  ASSERT_EQ(Send(Bytes<float>({3})), absl::OkStatus());
  EXPECT_THAT(Send(Bytes<float>({3, 4})), Refuses(kInvalid,
                                                  "8 bytes of data came after 4; the 1 tensors "
                                                  "up to \"w0\" declare 8 in all"));
}

TEST_F(ClipSession, RefusesTooFewBytes) {
  ASSERT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
  ASSERT_EQ(Send(Bytes<float>({3, 4, 5})), absl::OkStatus());
  EXPECT_THAT(HalfClose(),
              Refuses(kInvalid, "after 12 of the 16 declared bytes: tensor \"w1\" has 4 of 8"));
}

TEST_F(ClipSession, RefusesTooFewBytesWithAGivenNorm) {
  v1::ClipGradNormStart start = ClipStart(1, 2);
  start.set_total_norm(1);
  ASSERT_EQ(Send(start), absl::OkStatus());
  std::byte out[16];
  size_t written = 0;
  ASSERT_EQ(session_->PassThrough(AsBytes(Bytes<float>({3, 4}) + "x"), out, &written),
            absl::OkStatus());
  EXPECT_THAT(HalfClose(),
              Refuses(kInvalid, "after 9 of the 16 declared bytes: tensor \"w1\" has 1 of 8"));
}

TEST_F(ClipSession, RefusesMessagesOutOfOrder) {
  EXPECT_THAT(HalfClose(), Refuses(kInvalid, "without a start"));
  EXPECT_THAT(Send("abcd"), Refuses(kInvalid, "start comes first"));
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  EXPECT_THAT(Send(ClipStart(1)), Refuses(kInvalid, "second start"));
  EXPECT_THAT(session_->NoPayload(), Refuses(kInvalid, "without payload"));
  EXPECT_THAT(session_->Shared({}), Refuses(absl::StatusCode::kUnimplemented, "shared"));
}

TEST_F(ClipSession, ConcludesWithWhatAllRanksOfItsGroupHave) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.mutable_group()->set_job("run7");
  start.mutable_group()->set_world_size(2);
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(Bytes<float>({3, kNaN})), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  const Contribution own = session_->contribution();
  EXPECT_TRUE(std::isnan(own.partial.Norm()));
  EXPECT_EQ(own.nonfinite_elements, 1u);
  EXPECT_EQ(own.first_nonfinite, "w0[1]");

  Outcome outcome;
  outcome.total.AddSum(25, 0);
  outcome.nonfinite_elements = 4;
  ASSERT_EQ(session_->Conclude(outcome), absl::OkStatus());
  EXPECT_EQ(result().norm().total_norm(), 5);
  EXPECT_DOUBLE_EQ(result().coefficient(), 1 / (5 + 1e-6));
  EXPECT_EQ(result().norm().nonfinite_elements(), 1u);
  EXPECT_EQ(result().norm().group_nonfinite_elements(), 4u);
}

// A start that is well but for one field, and what is said about it.
struct BadField {
  std::string name;
  void (*spoil)(v1::ClipGradNormStart&);
  std::string says;
  absl::StatusCode code = kInvalid;
};

class ClipStartField : public SessionTest, public testing::WithParamInterface<BadField> {};

TEST_P(ClipStartField, IsRefusedOutsideItsRange) {
  v1::ClipGradNormStart start = ClipStart(1, 4);
  GetParam().spoil(start);
  EXPECT_THAT(Send(start), Refuses(GetParam().code, GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    All, ClipStartField,
    testing::Values(
        BadField{"NoDType", [](auto& s) { s.mutable_tensors(3)->clear_dtype(); },
                 "tensor \"w3\": dtype is 0"},
        BadField{"UnknownDType",
                 [](auto& s) {
                   s.mutable_tensors(3)->set_dtype(static_cast<v1::DType>(17));
                   s.mutable_tensors(3)->clear_name();
                 },
                 "tensor #3: dtype is 17"},
        BadField{"NegativeExtent", [](auto& s) { s.mutable_tensors(1)->add_shape(-1); },
                 "shape [2, -1] has the negative extent -1"},
        BadField{"NegativeBesideZero",
                 [](auto& s) {
                   s.mutable_tensors(1)->add_shape(0);
                   s.mutable_tensors(1)->add_shape(-5);
                 },
                 "negative extent -5"},
        BadField{"OverflowingShape",
                 [](auto& s) { s.mutable_tensors(1)->add_shape(int64_t{1} << 62); },
                 "more than 2^63 - 1 bytes"},
        BadField{"OverflowingSum",
                 [](auto& s) {
                   for (auto& t : *s.mutable_tensors()) t.set_shape(0, int64_t{1} << 60);
                 },
                 "the gradient up to here"},
        BadField{"NoMaxNorm", [](auto& s) { s.clear_max_norm(); }, "max_norm is not set"},
        BadField{"NaNMaxNorm", [](auto& s) { s.set_max_norm(kNaN); }, "max_norm is nan"},
        BadField{"NegativeMaxNorm", [](auto& s) { s.set_max_norm(-2); }, "max_norm is -2"},
        BadField{"NegativeEpsilon", [](auto& s) { s.set_epsilon(-1); }, "epsilon is -1"},
        BadField{"InfiniteEpsilon", [](auto& s) { s.set_epsilon(kInfinity); }, "epsilon is inf"},
        BadField{"UnknownPolicy",
                 [](auto& s) { s.set_nonfinite(static_cast<v1::NonfinitePolicy>(9)); },
                 "nonfinite is 9"},
        BadField{"UnknownReply", [](auto& s) { s.set_reply(static_cast<v1::ReplyMode>(-3)); },
                 "reply is -3"},
        BadField{"ZeroNormType", [](auto& s) { s.mutable_norm()->set_norm_type(0); },
                 "norm.norm_type is 0"},
        BadField{"NaNNormType", [](auto& s) { s.mutable_norm()->set_norm_type(kNaN); },
                 "norm.norm_type is nan"},
        BadField{"NegativeNormType", [](auto& s) { s.mutable_norm()->set_norm_type(-kInfinity); },
                 "norm.norm_type is -inf"},
        BadField{"NaNEpsilon", [](auto& s) { s.set_epsilon(kNaN); }, "epsilon is nan"},
        BadField{"NaNPreScale", [](auto& s) { s.mutable_norm()->set_pre_scale(kNaN); },
                 "norm.pre_scale is nan"},
        BadField{"NegativePreScale", [](auto& s) { s.mutable_norm()->set_pre_scale(-1); },
                 "norm.pre_scale is -1"},
        BadField{"TotalNormOfAGroup",
                 [](auto& s) {
                   s.set_total_norm(1);
                   s.mutable_group()->set_job("run7");
                   s.mutable_group()->set_world_size(2);
                 },
                 "total_norm is set together with group"},
        BadField{"GroupWithoutAJob", [](auto& s) { s.mutable_group()->set_world_size(1); },
                 "group.job has 0 bytes"},
        BadField{"RankBeyondTheGroup",
                 [](auto& s) {
                   s.mutable_group()->set_job("run7");
                   s.mutable_group()->set_rank(4);
                   s.mutable_group()->set_world_size(4);
                 },
                 "group.rank is 4, and group.world_size 4"},
        BadField{"ZeroPreScale", [](auto& s) { s.mutable_norm()->set_pre_scale(0); },
                 "norm.pre_scale is 0"},
        BadField{"InfinitePreScale", [](auto& s) { s.mutable_norm()->set_pre_scale(kInfinity); },
                 "norm.pre_scale is inf"},
        BadField{"NegativeTotalNorm", [](auto& s) { s.set_total_norm(-1); }, "total_norm is -1"},
        BadField{"TotalNormPerTensor",
                 [](auto& s) {
                   s.set_total_norm(1);
                   s.mutable_norm()->set_per_tensor(true);
                 },
                 "per_tensor"},
        BadField{"TotalNormForTheCoefficient",
                 [](auto& s) {
                   s.set_total_norm(1);
                   s.set_reply(v1::REPLY_COEFFICIENT);
                 },
                 "REPLY_COEFFICIENT"},
        BadField{"MoreThanOneCallMayKeep",
                 [](auto& s) { s.mutable_tensors(0)->set_shape(0, int64_t{1} << 28); },
                 "has 1073741848 bytes; the server keeps at most 1073741824 for one call "
                 "(--max-call-bytes)",
                 absl::StatusCode::kResourceExhausted}),
    [](const auto& info) { return info.param.name; });

using NormSession = SessionTest;

TEST_F(NormSession, RefusesFieldsOutsideTheirRange) {
  v1::ComputeNormStart good;
  *good.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {2}, "w");
  v1::ComputeNormStart start = good;
  start.mutable_tensors(0)->set_dtype(v1::DTYPE_UNSPECIFIED);
  EXPECT_THAT(Send(start), Refuses(kInvalid, "tensor \"w\": dtype is 0"));
  start = good;
  start.mutable_tensors(0)->set_shape(0, -3);
  EXPECT_THAT(Send(start), Refuses(kInvalid, "shape [-3] has the negative extent -3"));
  start = good;
  start.mutable_norm()->set_norm_type(kNaN);
  EXPECT_THAT(Send(start), Refuses(kInvalid, "norm.norm_type is nan; it must be > 0"));
  start = good;
  start.mutable_norm()->set_pre_scale(0);
  EXPECT_THAT(Send(start), Refuses(kInvalid, "norm.pre_scale is 0; it must be finite and > 0"));
  start = good;
  start.mutable_group();
  EXPECT_THAT(Send(start), Refuses(kInvalid, "group.job has 0 bytes"));
}

TEST_F(NormSession, KeepsNothingHoweverLittleMayBeKept) {
  max_call_bytes_ = 1;
  Restart();
  v1::ComputeNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {2});
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_EQ(session_->bytes_to_keep(), 0u);
  ASSERT_EQ(Send(Bytes<float>({3, 4})), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  EXPECT_EQ(result().norm().total_norm(), 5);
  EXPECT_EQ(session_->gradient(), nullptr);
}

TEST_F(ClipSession, SendsASkippedGradientBackOnlyWhereItAlwaysComesBack) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_nonfinite(v1::NONFINITE_SKIP);
  start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  Run(start, Bytes<float>({kInf32, 2}));
  EXPECT_TRUE(result().skipped());
  EXPECT_FALSE(result().gradient_follows());
  Restart();
  start.set_nonfinite(v1::NONFINITE_ZERO);  // changes every element
  Run(start, Bytes<float>({kInf32, 2}));
  EXPECT_TRUE(result().gradient_follows());
}

TEST_F(ClipSession, SendsNoneOfNoBytesOnlyIfChanged) {
  v1::ClipGradNormStart start = ClipStart(1, 0);
  start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  start.set_nonfinite(v1::NONFINITE_ZERO);
  for (const float total_norm : {2.0f, kInf32}) {
    Restart();
    start.set_total_norm(total_norm);
    ASSERT_EQ(Send(start), absl::OkStatus());
    EXPECT_FALSE(result().gradient_follows());
  }
}

TEST_F(ClipSession, TakesAllBytesWhereAGivenNormChangesNothing) {
  v1::ClipGradNormStart start = ClipStart(10);
  start.set_total_norm(1);
  start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_FALSE(result().gradient_follows());
  EXPECT_EQ(result().norm().total_norm(), 1);
  std::string out(16, 'x');
  size_t written = 1;
  ASSERT_EQ(session_->PassThrough(AsBytes(Bytes<float>({3, 4})),
                                  reinterpret_cast<std::byte*>(out.data()), &written),
            absl::OkStatus());
  EXPECT_EQ(written, 0u);
  EXPECT_EQ(HalfClose(), absl::OkStatus());
}

TEST_F(ClipSession, ShowsNoMoreThanAPieceOfAHugeName) {
  v1::ClipGradNormStart start = ClipStart(1);
  start.mutable_tensors(0)->set_name(std::string(1 << 20, 'x'));
  start.mutable_tensors(0)->clear_dtype();
  EXPECT_LT(Send(start).message().size(), 1000u);
}

TEST_F(ClipSession, TakesEmptyTensorsWhoseOtherExtentsAreHuge) {
  v1::ClipGradNormStart start = ClipStart(1);
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {int64_t{1} << 62, int64_t{1} << 62, 0});
  Run(start, Bytes<float>({3, 4}));
  EXPECT_EQ(result().norm().total_norm(), 5);
}

}  // namespace
}  // namespace gradclip
