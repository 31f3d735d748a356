// One suite for every backend that can run here: against exact arithmetic, against a plain model of
// blocks, lanes and rounding, and against each other.
#include "server/norm/gradient_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/server/backend/environments.h"
#include "tests/server/backend/plain.h"
#include "tests/server/norm/exact_sum.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Sum and maximum, each straight and by whole blocks, and another norm.
const double kNormTypes[] = {1, 2, kInfinity, 3};
const size_t kLengths[] = {0, 1, 2, 31, 32, 33, 63, 64, 65, 4095, 4096, 4097, 8192, 12305};

// A run starts at each cut and ends at the next one.
using Cuts = std::vector<size_t>;

struct Answer {
  TensorSummary summary;
  std::string total;  // serialised: all bits
  double norm;
};

testing::AssertionResult Same(const Answer& a, const Answer& b) {
  if (a.total == b.total && SameBits(a.norm, b.norm) && SameBits(a.summary.norm, b.summary.norm) &&
      a.summary.nonfinite == b.summary.nonfinite &&
      a.summary.first_nonfinite == b.summary.first_nonfinite &&
      a.summary.zeros == b.summary.zeros) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << a.norm << " (" << a.summary.nonfinite << " from " << a.summary.first_nonfinite
         << "), not " << b.norm << " (" << b.summary.nonfinite << " from "
         << b.summary.first_nonfinite << ")";
}

// One tensor, cut into runs that each lie in memory of their own at an odd address.
Answer Measure(const Backend& backend, double norm_type, bool per_tensor, DType dtype,
               std::span<const std::byte> elements, Cuts cuts = {}) {
  const size_t size = ElementSize(dtype);
  GradientNorm norm(backend, norm_type, per_tensor);
  norm.BeginTensor(dtype, true);
  cuts.push_back(elements.size() / size);
  size_t from = 0;
  for (const size_t to : cuts) {
    Unaligned run(elements.subspan(from * size, (to - from) * size));
    norm.Add(run.data(), to - from);
    from = to;
  }
  const TensorSummary summary = norm.EndTensor();
  return {summary, norm.total().Serialize(), norm.total().Norm()};
}

Cuts RandomCuts(size_t count, size_t cuts, uint64_t seed) {
  std::mt19937_64 random(seed);
  Cuts result;
  for (size_t i = 0; i < cuts; ++i) result.push_back(random() % (count + 1));
  std::sort(result.begin(), result.end());
  return result;
}

// The norm as the design has it: lanes in order, a tree of fixed shape, exact addition, one
// rounding. For elements whose squares neither overflow nor underflow.
double PlainNorm(DType dtype, std::span<const std::byte> elements, int p) {
  const size_t size = ElementSize(dtype);
  const size_t count = elements.size() / size;
  ExactSum sum;
  for (size_t from = 0; from < count; from += kBlockElements) {
    Lanes lanes =
        PlainLanes(dtype, p == 2 ? LaneTerm::kSquare : LaneTerm::kMagnitude,
                   elements.data() + from * size, std::min(kBlockElements, count - from), 0, {});
    for (const size_t half : {16, 8, 4, 2, 1}) {
      for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    sum.Add(lanes[0]);
  }
  return sum.Norm(p);
}

class GradientNormTest : public testing::TestWithParam<std::string> {
 protected:
  Answer Measure(double norm_type, DType dtype, std::span<const std::byte> elements,
                 Cuts cuts = {}) const {
    return gradclip::Measure(*backend_, norm_type, false, dtype, elements, std::move(cuts));
  }
  double NormOf(double norm_type, DType dtype, const std::vector<double>& values) const {
    return Measure(norm_type, dtype, Elements(dtype, values)).norm;
  }

  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam()).value();
};

INSTANTIATE_TEST_SUITE_P(Cpu, GradientNormTest, testing::ValuesIn(UsableBackends()),
                         [](const auto& info) { return TestName(info.param); });

TEST_P(GradientNormTest, GivesTheBitsOfThePlainModel) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    for (const size_t count : kLengths) {
      std::mt19937_64 random(count);
      std::vector<double> values(count);
      for (double& value : values) {
        value =
            std::ldexp(static_cast<double>(random() >> 11), -54 - static_cast<int>(random() % 9));
      }
      const Bytes elements = Elements(dtype, values);
      for (const int p : {1, 2}) {
        EXPECT_EQ(Measure(p, dtype, elements).norm, PlainNorm(dtype, elements, p))
            << Name(dtype) << " of " << count << ", p = " << p;
      }
    }
  }
}

TEST_P(GradientNormTest, IsWithinItsBoundOfExactArithmetic) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : kLengths) {
      // Over the whole range of the type: F64 squares beyond 2^2000 and below 2^-2000.
      const Bytes elements = RandomElements(dtype, count, count + 1);
      for (const int p : {1, 2}) {
        const long double exact = SumOfPowers(dtype, elements.data(), count, p).Root(p);
        const double norm = Measure(p, dtype, elements).norm;
        if (exact > std::numeric_limits<double>::max()) {
          EXPECT_EQ(norm, kInfinity);
        } else {
          EXPECT_LE(std::fabs(norm - exact), 1e-12L * exact)
              << Name(dtype) << " of " << count << ", p = " << p;
        }
      }
    }
  }
}

TEST_P(GradientNormTest, IsWithinItsBoundForBlocksThatAreRescaled) {
  for (const int exponent : {-1074, -1060, -1000, -600, -520, -480, -451, -450, -449, -400, 400,
                             505, 511, 512, 600, 1000, 1015}) {
    std::mt19937_64 random(exponent + 2000);
    std::vector<double> values(5000);
    for (double& value : values) {
      value = std::ldexp(static_cast<double>(random() >> 11), exponent - 52);
    }
    for (const int spread : {0, 30, 500}) {
      for (double& value : values) {
        value = std::ldexp(value, spread == 0 ? 0 : -static_cast<int>(random() % spread));
      }
      const Bytes elements = Elements(DType::kFloat64, values);
      for (const int p : {1, 2}) {
        const long double exact =
            SumOfPowers(DType::kFloat64, elements.data(), values.size(), p).Root(p);
        if (exact > std::numeric_limits<double>::max()) {
          EXPECT_EQ(Measure(p, DType::kFloat64, elements).norm, kInfinity);
          continue;
        }
        // Half of the last place that a subnormal norm has.
        const long double bound = std::max(1e-12L * exact, 0x1p-1075L);
        EXPECT_LE(std::fabs(Measure(p, DType::kFloat64, elements).norm - exact), bound)
            << "2^" << exponent << " over " << spread << ", p = " << p;
      }
    }
  }
}

TEST_P(GradientNormTest, HoldsWherePyTorchOverflowsAndUnderflows) {
  const DType f32 = DType::kFloat32, f64 = DType::kFloat64;
  const auto near = [](double norm, double expected) {
    EXPECT_LE(std::fabs(norm - expected), 1e-12 * expected) << norm << ", not " << expected;
  };
  near(NormOf(2, f32, {1e20f, 3e20f}), std::hypot(double{1e20f}, double{3e20f}));
  EXPECT_EQ(NormOf(2, f32, {1e-30f}), double{1e-30f});
  EXPECT_EQ(NormOf(2, f32, {0x1p-149}), 0x1p-149);
  near(NormOf(2, f64, {1e200}), 1e200);
  near(NormOf(2, f64, {3e200, -4e200}), 5e200);
  near(NormOf(2, f64, {3e-200, 4e-200}), 5e-200);
  EXPECT_EQ(NormOf(2, f64, {5e-324}), 5e-324);
  EXPECT_EQ(NormOf(2, f64, {std::numeric_limits<double>::max()}),
            std::numeric_limits<double>::max());
  EXPECT_EQ(NormOf(2, f64, {1.7e308, 1.7e308}), kInfinity);
  EXPECT_EQ(NormOf(1, f64, {1.7e308, 1.7e308}), kInfinity);
  EXPECT_EQ(Measure(1, f64, Elements(f64, std::vector{1.7e308, 1.7e308})).summary.nonfinite, 0);
  EXPECT_EQ(NormOf(2, f64, {0, 0, -0.0}), 0);
  EXPECT_EQ(NormOf(kInfinity, f64, {5e-324, -1e308}), 1e308);
}

TEST_P(GradientNormTest, IsWithinItsBoundForOtherNorms) {
  for (const double p : {0.01, 0.5, 1.5, 2.5, 3.0, 7.0, 1000.0}) {
    for (const DType dtype : kAllDTypes) {
      const size_t count = 4500;
      const Bytes elements = RandomElements(dtype, count, 3);
      long double largest = 0;
      for (size_t i = 0; i < count; ++i) {
        const long double x = PlainValue(dtype, elements.data() + i * ElementSize(dtype));
        largest = std::max(largest, std::fabs(x));
      }
      long double sum = 0;
      for (size_t i = 0; i < count; ++i) {
        const long double x = PlainValue(dtype, elements.data() + i * ElementSize(dtype));
        sum += std::pow(std::fabs(x) / largest, static_cast<long double>(p));
      }
      const long double exact = largest * std::pow(sum, 1.0L / p);
      const double norm = Measure(p, dtype, elements).norm;
      if (exact > std::numeric_limits<double>::max()) {
        EXPECT_EQ(norm, kInfinity);
      } else {
        EXPECT_LE(std::fabs(norm - exact), 1e-12L / std::min(1.0, p) * exact)
            << Name(dtype) << ", p = " << p;
      }
    }
  }
  const long double quotient = std::pow(1e-308L / 1e308L, 0.01L);
  const auto exact = static_cast<double>(1e308L * std::pow(1 + quotient, 100.0L));
  EXPECT_NEAR(NormOf(0.01, DType::kFloat64, {1e-308, 1e308, 0}) / exact, 1, 1e-10);
  // In parts this power would be infinity times 0.
  EXPECT_EQ(NormOf(1e306, DType::kFloat64, {7e-309, 1e308}), 1e308);
}

TEST_P(GradientNormTest, GivesTheSameBitsForEveryOneCut) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {70, 4096 + 40}) {
      Bytes elements = RandomElements(dtype, count, 9);
      for (const double p : kNormTypes) {
        const Answer whole = Measure(p, dtype, elements);
        for (size_t cut = 0; cut <= count; cut += cut < 70 || cut > 4050 ? 1 : 97) {
          ASSERT_TRUE(Same(Measure(p, dtype, elements, {cut}), whole))
              << Name(dtype) << " cut at " << cut << " of " << count << ", p = " << p;
        }
      }
    }
  }
}

TEST_P(GradientNormTest, GivesTheSameBitsForRandomCutsAndAnyBackend) {
  const std::unique_ptr<Backend> baseline = MakeBackend("cpu/baseline").value();
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {100, 5000, 20000}) {
      for (const bool nonfinite : {false, true}) {
        Bytes elements = RandomElements(dtype, count, count);
        std::mt19937_64 random(count);
        for (int i = 0; nonfinite && i < 7; ++i) {
          const Bytes bad = Elements(dtype, std::vector{random() % 2 == 0 ? kInfinity : NAN});
          std::copy(bad.begin(), bad.end(),
                    elements.begin() + static_cast<ptrdiff_t>(random() % count * bad.size()));
        }
        for (const double p : kNormTypes) {
          for (const bool per_tensor : {false, true}) {
            const Answer expected = gradclip::Measure(*baseline, p, per_tensor, dtype, elements);
            for (uint64_t seed = 0; seed < 6; ++seed) {
              const Cuts cuts = RandomCuts(count, 1 + seed * seed, seed);
              ASSERT_TRUE(Same(gradclip::Measure(*backend_, p, per_tensor, dtype, elements, cuts),
                               expected))
                  << Name(dtype) << " of " << count << ", p = " << p;
            }
          }
        }
      }
    }
  }
}

TEST_P(GradientNormTest, GivesTheSameBitsForRescaledBlocksWhateverTheCuts) {
  for (const double magnitude : {1e200, 1e-200, 1e-309, 1.5e308}) {
    std::vector<double> values(9000);
    std::mt19937_64 random(1);
    for (double& value : values) value = magnitude * (static_cast<double>(random() % 1000) / 1000);
    const Bytes elements = Elements(DType::kFloat64, values);
    for (const double p : {1, 2}) {
      const Answer whole = Measure(p, DType::kFloat64, elements);
      for (uint64_t seed = 0; seed < 10; ++seed) {
        const Cuts cuts = RandomCuts(values.size(), 1 + 3 * seed, seed);
        ASSERT_TRUE(Same(Measure(p, DType::kFloat64, elements, cuts), whole)) << magnitude;
      }
    }
  }
}

TEST_P(GradientNormTest, MergesShardsCutAtBlocksToTheSameBits) {
  const size_t count = 5 * kBlockElements + 123;
  for (const DType dtype : kAllDTypes) {
    const Bytes elements = RandomElements(dtype, count, 21);
    const size_t block = kBlockElements * ElementSize(dtype);
    for (const double p : {1.0, 2.0, kInfinity}) {
      const Answer whole = Measure(p, dtype, elements);
      std::vector<NormPartial> shards;
      for (size_t at = 0; at < elements.size(); at += block) {
        GradientNorm norm(*backend_, p, false);
        norm.BeginTensor(dtype, true);
        const size_t bytes = std::min(block, elements.size() - at);
        norm.Add(elements.data() + at, bytes / ElementSize(dtype));
        norm.EndTensor();
        shards.push_back(norm.total());
      }
      std::vector<size_t> order = {0, 1, 2, 3, 4, 5};
      do {
        NormPartial merged(p);
        for (const size_t i : order) merged.Merge(shards[i]);
        ASSERT_EQ(merged.Serialize(), whole.total) << Name(dtype) << ", p = " << p;
      } while (std::next_permutation(order.begin(), order.end()));
    }
  }
}

TEST_P(GradientNormTest, GivesTheSameBitsInAnyFloatingPointEnvironment) {
  for (const DType dtype : kAllDTypes) {
    const Bytes elements = RandomElements(dtype, 5000, 77);
    // Subnormals alone, which FTZ and DAZ would turn into 0.
    const std::vector<double> tiny(100, dtype == DType::kFloat64   ? 0x1p-1070
                                        : dtype == DType::kFloat16 ? 0x1p-20
                                                                   : 0x1p-130);
    const Bytes subnormals = Elements(dtype, tiny);
    for (const double p : {1.0, 2.0, 3.0, kInfinity}) {
      const Answer expected = Measure(p, dtype, elements);
      const Answer small = Measure(p, dtype, subnormals);
      for (const auto& [name, control] : Environments()) {
        const Environment environment(control);
        EXPECT_TRUE(Same(Measure(p, dtype, elements, {1, 40, 4099}), expected))
            << Name(dtype) << ", p = " << p << " in " << name;
        EXPECT_TRUE(Same(Measure(p, dtype, subnormals, {33}), small))
            << Name(dtype) << ", p = " << p << " in " << name;
      }
    }
  }
}

TEST_P(GradientNormTest, CountsEachNonfiniteElementOnce) {
  const size_t count = 3 * kBlockElements;
  for (const DType dtype : kAllDTypes) {
    for (const double p : kNormTypes) {
      for (const bool per_tensor : {false, true}) {
        std::vector<double> values(count, 0.5);
        values[5000] = kInfinity;
        values[5001] = -kInfinity;
        values[6000] = kInfinity;
        values[count - 1] = -kInfinity;
        const auto measure = [&](Cuts cuts) {
          return gradclip::Measure(*backend_, p, per_tensor, dtype, Elements(dtype, values), cuts);
        };
        for (const Cuts& cuts : {Cuts{}, {5001}, {5000, 5001, 5002, 6001}, {4096, 8192}, {6500}}) {
          const Answer answer = measure(cuts);
          EXPECT_EQ(answer.norm, kInfinity) << Name(dtype) << ", p = " << p;
          EXPECT_EQ(answer.summary.nonfinite, 4) << Name(dtype) << ", p = " << p;
          EXPECT_EQ(answer.summary.first_nonfinite, 5000) << Name(dtype) << ", p = " << p;
        }
        values[7000] = NAN;
        for (const Cuts& cuts : {Cuts{}, {6999}, {7000, 7001}, {5000, 6000, 7000}}) {
          const Answer answer = measure(cuts);
          EXPECT_TRUE(std::isnan(answer.norm)) << Name(dtype) << ", p = " << p;
          EXPECT_EQ(answer.summary.nonfinite, 5) << Name(dtype) << ", p = " << p;
          EXPECT_EQ(answer.summary.first_nonfinite, 5000) << Name(dtype) << ", p = " << p;
        }
      }
    }
  }
}

TEST_P(GradientNormTest, TellsTensorsApart) {
  for (const double p : kNormTypes) {
    GradientNorm norm(*backend_, p, true);
    const auto add = [&](DType dtype, const std::vector<double>& values, bool counted) {
      norm.BeginTensor(dtype, counted);
      const Bytes elements = Elements(dtype, values);
      norm.Add(elements.data(), values.size());
      return norm.EndTensor();
    };
    EXPECT_EQ(add(DType::kFloat32, {0, -3, 0}, true).norm, 3);
    EXPECT_EQ(add(DType::kBFloat16, {100}, false).norm, 100);  // a replica
    EXPECT_EQ(add(DType::kFloat64, {}, true).norm, 0);
    const TensorSummary bad = add(DType::kFloat16, {1, NAN, kInfinity, 0}, false);
    EXPECT_TRUE(std::isnan(bad.norm));
    EXPECT_EQ(bad.nonfinite, 2);
    EXPECT_EQ(bad.first_nonfinite, 1);
    EXPECT_EQ(bad.zeros, 1);
    const TensorSummary good = add(DType::kFloat64, {0, 4, -0.0}, true);
    EXPECT_EQ(good.norm, 4);
    EXPECT_EQ(good.nonfinite, 0);
    EXPECT_EQ(good.first_nonfinite, ElementCounts::kNone);
    EXPECT_EQ(good.zeros, 2);
    EXPECT_DOUBLE_EQ(norm.total().Norm(), p == 1 ? 7 : p == 2 ? 5 : p == 3 ? std::cbrt(91) : 4);
  }
}

TEST_P(GradientNormTest, CountsATensorOnlyWhenItHasEnded) {
  const Bytes elements = Elements(DType::kFloat32, std::vector<double>(4096, 1));
  GradientNorm norm(*backend_, 2, false);
  norm.BeginTensor(DType::kFloat32, true);
  norm.Add(elements.data(), 4096);
  EXPECT_EQ(norm.total().Norm(), 0);
  EXPECT_EQ(norm.EndTensor().norm, 0);  // only with per_tensor
  EXPECT_EQ(norm.total().Norm(), 64);
}

TEST_P(GradientNormTest, MeasuresMoreElementsThan31BitsCount) {
  // One buffer, added until 2^31 + 5 elements have been.
  const size_t run = size_t{1} << 20;
  const Bytes elements = Elements(DType::kBFloat16, std::vector<double>(run, 1.5));
  GradientNorm norm(*backend_, 2, false);
  norm.BeginTensor(DType::kBFloat16, true);
  for (int i = 0; i < 1 << 11; ++i) norm.Add(elements.data(), run);
  norm.Add(Elements(DType::kBFloat16, std::vector{1.0, 1.5, 1.5, 1.5, 1.5}).data(), 5);
  EXPECT_EQ(norm.EndTensor().nonfinite, 0);
  ExactSum exact;
  exact.Add(2.25, 31);
  exact.Add(4 * 2.25 + 1);
  EXPECT_EQ(norm.total().Norm(), exact.Norm(2));

  GradientNorm largest(*backend_, kInfinity, false);
  largest.BeginTensor(DType::kBFloat16, true);
  for (int i = 0; i < 1 << 11; ++i) largest.Add(elements.data(), run);
  largest.Add(Elements(DType::kBFloat16, std::vector{1.0, kInfinity}).data(), 2);
  EXPECT_EQ(largest.EndTensor().first_nonfinite, (uint64_t{1} << 31) + 1);
}

}  // namespace
}  // namespace gradclip
