// One suite for every backend that can run here, held against tests/server/backend/plain.h.
#include "server/backend/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/server/backend/environments.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

constexpr LaneTerm kTerms[] = {LaneTerm::kMagnitude, LaneTerm::kSquare};
constexpr size_t kLengths[] = {0,  1,  2,   7,   31,  32,   33,   63,   64,  65,
                               95, 96, 255, 256, 257, 1031, 4095, 4096, 4097};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Every bit pattern of a 16-bit format.
Bytes AllHalves() {
  Bytes bytes(2 << 16);
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam()).value();
};

INSTANTIATE_TEST_SUITE_P(Cpu, BackendTest, testing::ValuesIn(UsableBackends()),
                         [](const auto& info) { return TestName(info.param); });

TEST_P(BackendTest, IsTheOneThatWasNamed) {
  EXPECT_EQ(backend_->name(), GetParam());
}

TEST_P(BackendTest, AddsEachElementToItsLaneInOrder) {
  for (const DType dtype : kAllDTypes) {
    for (const LaneTerm term : kTerms) {
      for (const size_t count : kLengths) {
        for (const size_t first_lane : {0, 1, 5, 31}) {
          Unaligned elements(RandomElements(dtype, count, count + first_lane));
          Lanes lanes;
          for (size_t i = 0; i < kLanes; ++i) lanes[i] = 0.1 * static_cast<double>(i);
          const Lanes expected = PlainLanes(dtype, term, elements.data(), count, first_lane, lanes);
          backend_->AddToLanes(dtype, term, elements.data(), count, first_lane, lanes);
          for (size_t i = 0; i < kLanes; ++i) {
            ASSERT_TRUE(SameBits(lanes[i], expected[i]))
                << Name(dtype) << " lane " << i << " of " << count << " elements from lane "
                << first_lane << ": " << lanes[i] << ", not " << expected[i];
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, WidensEveryHalfExactly) {
  const Bytes all = AllHalves();
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const LaneTerm term : kTerms) {
      for (size_t at = 0; at < all.size(); at += 2 * kLanes) {
        Lanes lanes = {};
        backend_->AddToLanes(dtype, term, all.data() + at, kLanes, 0, lanes);
        for (size_t i = 0; i < kLanes; ++i) {
          const double value = PlainValue(dtype, all.data() + at + 2 * i);
          const double expected = term == LaneTerm::kSquare ? value * value : std::fabs(value);
          ASSERT_TRUE(SameBits(lanes[i], expected)) << Name(dtype) << " pattern " << at / 2 + i
                                                    << ": " << lanes[i] << ", not " << expected;
        }
      }
    }
  }
}

TEST_P(BackendTest, FindsTheLargestMagnitudeWhereverItStands) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {1, 2, 31, 32, 33, 64, 100}) {
      for (size_t place = 0; place < count; ++place) {
        std::vector<double> values(count, 0.5);
        values[place] = -3;
        Unaligned elements(Elements(dtype, values));
        ASSERT_EQ(backend_->LargestMagnitude(dtype, elements.data(), count), 3)
            << Name(dtype) << " at " << place << " of " << count;
      }
    }
    EXPECT_EQ(backend_->LargestMagnitude(dtype, nullptr, 0), 0);
  }
}

TEST_P(BackendTest, LetsNanWinOverInfinityAndInfinityOverNumbers) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {3, 40, 67}) {
      std::vector<double> values(count, 1);
      values[count / 2] = -kInfinity;
      EXPECT_EQ(backend_->LargestMagnitude(dtype, Elements(dtype, values).data(), count),
                kInfinity);
      values[0] = -NAN;
      EXPECT_TRUE(
          std::isnan(backend_->LargestMagnitude(dtype, Elements(dtype, values).data(), count)));
    }
  }
}

TEST_P(BackendTest, FindsTheSmallestMagnitudesToo) {
  const double smallest[] = {0x1p-149, 0x1p-24, 0x1p-133, 0x1p-1074};
  for (size_t i = 0; i < 4; ++i) {
    const DType dtype = kAllDTypes[i];
    const std::vector<double> values = {0, -smallest[i], 0};
    EXPECT_EQ(backend_->LargestMagnitude(dtype, Elements(dtype, values).data(), 3), smallest[i]);
  }
}

TEST_P(BackendTest, CountsNonfiniteElementsAndZeros) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : kLengths) {
      if (count < 7) continue;
      std::vector<double> values(count, 1.5);
      values[count - 1] = NAN;
      values[count - 2] = -kInfinity;
      values[count / 2] = kInfinity;
      values[0] = 0;
      values[1] = -0.0;
      values[count - 3] = 0;
      Unaligned elements(Elements(dtype, values));
      const ElementCounts counts = backend_->Count(dtype, elements.data(), count);
      EXPECT_EQ(counts.nonfinite, 3) << Name(dtype) << " of " << count;
      EXPECT_EQ(counts.first_nonfinite, count / 2) << Name(dtype) << " of " << count;
      EXPECT_EQ(counts.zeros, 3) << Name(dtype) << " of " << count;
    }
    const ElementCounts none = backend_->Count(dtype, nullptr, 0);
    EXPECT_EQ(none.nonfinite, 0);
    EXPECT_EQ(none.first_nonfinite, ElementCounts::kNone);
    EXPECT_EQ(none.zeros, 0);
  }
}

TEST_P(BackendTest, CountsMoreElementsThanA16BitCounterHolds) {
  for (const DType dtype : kAllDTypes) {
    const size_t count = 32 * 70000 + 5;
    const Bytes zeros(count * ElementSize(dtype));
    EXPECT_EQ(backend_->Count(dtype, zeros.data(), count).zeros, count);
    const Bytes nans(count * ElementSize(dtype), std::byte{0xff});
    EXPECT_EQ(backend_->Count(dtype, nans.data(), count).nonfinite, count);
  }
}

TEST_P(BackendTest, ScalesAsThePlainReferenceDoes) {
  const double coefficients[] = {0.1,  1.0 / 3, 1e-3,  1,        2,         1e30,  -0.5,
                                 0,    -0.0,    1e-20, 0x1p-126, 0x1p-127,  1e-40, 1e-300,
                                 1e40, FLT_MAX, 1e300, 5e-324,   kInfinity, NAN,   1 + 1e-9};
  const Bytes halves = AllHalves();
  for (const double coefficient : coefficients) {
    for (const DType dtype : kAllDTypes) {
      for (const size_t count : {1, 31, 32, 33, 4097}) {
        Bytes bytes = RandomElements(dtype, count, count);
        const Bytes expected = PlainScale(dtype, bytes, coefficient);
        Unaligned elements(bytes);
        backend_->Scale(dtype, elements.data(), count, coefficient);
        ASSERT_EQ(Difference(dtype, elements.data(), expected.data(), count), "")
            << Name(dtype) << " of " << count << " times " << coefficient;
      }
    }
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      Bytes elements = halves;
      backend_->Scale(dtype, elements.data(), 1 << 16, coefficient);
      ASSERT_EQ(Difference(dtype, elements.data(), PlainScale(dtype, halves, coefficient).data(),
                           1 << 16),
                "")
          << "every " << Name(dtype) << " times " << coefficient;
    }
  }
}

TEST_P(BackendTest, ScalesSubnormalAndNonfiniteElements) {
  const std::vector<double> values = {0x1p-149, -0x1p-130, kInfinity, -kInfinity, NAN, 0x1p-126};
  const Bytes bytes = Elements(DType::kFloat32, values);
  for (const double coefficient : {0.75, 0.5, 0.0, 3.0}) {
    Bytes elements = bytes;
    backend_->Scale(DType::kFloat32, elements.data(), values.size(), coefficient);
    EXPECT_EQ(Difference(DType::kFloat32, elements.data(),
                         PlainScale(DType::kFloat32, bytes, coefficient).data(), values.size()),
              "");
  }
}

TEST_P(BackendTest, ScalesNothingBesideTheRun) {
  for (const DType dtype : kAllDTypes) {
    const size_t size = ElementSize(dtype);
    Bytes bytes = RandomElements(dtype, 100, 1);
    const Bytes before = bytes;
    backend_->Scale(dtype, bytes.data() + 10 * size, 45, 0.5);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + 10 * size, before.begin()));
    EXPECT_TRUE(std::equal(bytes.begin() + 55 * size, bytes.end(), before.begin() + 55 * size));
    backend_->Scale(dtype, nullptr, 0, 0.5);
  }
}

TEST_P(BackendTest, GivesTheSameBitsInAnyFloatingPointEnvironment) {
  constexpr size_t kCount = 333;
  for (const DType dtype : kAllDTypes) {
    const Bytes bytes = RandomElements(dtype, kCount, 7);
    // Subnormals alone, which FTZ and DAZ would turn into 0.
    const std::vector<double> tiny(kCount, dtype == DType::kFloat64   ? 0x1p-1070
                                           : dtype == DType::kFloat16 ? 0x1p-20
                                                                      : 0x1p-130);
    const Bytes subnormals = Elements(dtype, tiny);
    for (const auto& [name, control] : Environments()) {
      for (const Bytes& elements : {bytes, subnormals}) {
        for (const double coefficient : {0.3, 1e-39}) {
          Bytes scaled = elements;
          Lanes lanes = {};
          double largest;
          ElementCounts counts;
          {
            const Environment environment(control);
            backend_->AddToLanes(dtype, LaneTerm::kSquare, elements.data(), kCount, 3, lanes);
            backend_->Scale(dtype, scaled.data(), kCount, coefficient);
            largest = backend_->LargestMagnitude(dtype, elements.data(), kCount);
            counts = backend_->Count(dtype, elements.data(), kCount);
            EXPECT_EQ(ControlRegister(), control) << "restored after " << name;
          }
          const Lanes expected =
              PlainLanes(dtype, LaneTerm::kSquare, elements.data(), kCount, 3, {});
          for (size_t i = 0; i < kLanes; ++i) EXPECT_TRUE(SameBits(lanes[i], expected[i])) << name;
          EXPECT_EQ(Difference(dtype, scaled.data(),
                               PlainScale(dtype, elements, coefficient).data(), kCount),
                    "")
              << Name(dtype) << " times " << coefficient << " in " << name;
          EXPECT_EQ(largest, backend_->LargestMagnitude(dtype, elements.data(), kCount)) << name;
          EXPECT_EQ(counts.zeros, backend_->Count(dtype, elements.data(), kCount).zeros) << name;
        }
      }
    }
  }
}

TEST_P(BackendTest, LeavesEveryHalfUnchangedWhereItSaysSo) {
  const Bytes halves = AllHalves();
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const double half_u = dtype == DType::kFloat16 ? 0x1p-12 : 0x1p-9;
    for (const double distance :
         {0.0, 1e-12, 0x1p-26, 0x1p-24, half_u / 3, half_u * (1 - 1e-9), half_u}) {
      for (const double coefficient : {1 - distance, 1 + distance}) {
        EXPECT_TRUE(LeavesUnchanged(dtype, coefficient)) << Name(dtype) << " " << coefficient;
        Bytes elements = halves;
        backend_->Scale(dtype, elements.data(), 1 << 16, coefficient);
        EXPECT_EQ(Difference(dtype, elements.data(), halves.data(), 1 << 16), "")
            << Name(dtype) << " times " << coefficient;
      }
    }
    for (const double coefficient :
         {std::nextafter(1 - half_u, 0), std::nextafter(1 + half_u, 2), 1 + 2 * half_u,
          1 - 2 * half_u, 0.0, -1.0, kInfinity, static_cast<double>(NAN)}) {
      EXPECT_FALSE(LeavesUnchanged(dtype, coefficient)) << Name(dtype) << " " << coefficient;
    }
    // 1 + 2 half_u still rounds to 1 in the format, yet it moves elements: hence the closer bound.
    EXPECT_EQ(PlainValue(dtype, Elements(dtype, std::vector{1 + 2 * half_u}).data()), 1);
    Bytes elements = halves;
    backend_->Scale(dtype, elements.data(), 1 << 16, 1 + 2 * half_u);
    EXPECT_NE(Difference(dtype, elements.data(), halves.data(), 1 << 16), "");
  }
}

TEST(Backends, LeaveUnchangedWhatACoefficientRoundsToOneFor) {
  EXPECT_TRUE(LeavesUnchanged(DType::kFloat64, 1));
  EXPECT_FALSE(LeavesUnchanged(DType::kFloat64, std::nextafter(1, 0)));
  EXPECT_FALSE(LeavesUnchanged(DType::kFloat64, std::nextafter(1, 2)));
  EXPECT_TRUE(LeavesUnchanged(DType::kFloat32, 1 - 0x1p-25));  // a tie, to even
  EXPECT_FALSE(LeavesUnchanged(DType::kFloat32, std::nextafter(1 - 0x1p-25, 0)));
  EXPECT_TRUE(LeavesUnchanged(DType::kFloat32, 1 + 0x1p-24));
  EXPECT_FALSE(LeavesUnchanged(DType::kFloat32, std::nextafter(1 + 0x1p-24, 2)));
  for (const DType dtype : kAllDTypes) EXPECT_FALSE(LeavesUnchanged(dtype, NAN));
  for (const auto& [name, control] : Environments()) {
    const Environment environment(control);
    EXPECT_FALSE(LeavesUnchanged(DType::kFloat32, 1 + 0x1.8p-24)) << name;
    EXPECT_TRUE(LeavesUnchanged(DType::kFloat32, 1 + 0x1p-24)) << name;
    EXPECT_FALSE(LeavesUnchanged(DType::kFloat16, 1 + 0x1.001p-12)) << name;
  }
}

TEST(Backends, AreListedInOrderOfPreferenceWithTheBaselineLast) {
  const std::vector<BackendChoice> choices = ListBackends();
  std::vector<std::string> names;
  for (const BackendChoice& choice : choices) {
    names.push_back(choice.name);
    EXPECT_NE(choice.detail, "");
  }
#ifdef __x86_64__
  EXPECT_THAT(names, testing::ElementsAre("cpu/avx512", "cpu/avx2", "cpu/baseline"));
#else
  EXPECT_THAT(names, testing::ElementsAre("cpu/baseline"));
#endif
  EXPECT_TRUE(choices.back().usable);
}

TEST(Backends, AutoAndCpuTakeTheFirstUsableOne) {
  EXPECT_EQ(MakeBackend("auto").value()->name(), UsableBackends().front());
  EXPECT_EQ(MakeBackend("cpu").value()->name(), UsableBackends().front());
}

TEST(Backends, RefuseAnUnknownNameAndListTheKnownOnes) {
  const absl::Status status = MakeBackend("cpu/mmx").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cpu/mmx"));
  for (const BackendChoice& choice : ListBackends()) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(choice.name));
  }
  EXPECT_EQ(MakeBackend("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Backends, RefuseANameThatCantBeUsedHereAndSayWhy) {
  for (const BackendChoice& choice : ListBackends()) {
    if (choice.usable) continue;
    const absl::Status status = MakeBackend(choice.name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(choice.detail));
    EXPECT_THAT(std::string(status.message()), HasSubstr("cpu/baseline"));
  }
}

TEST(PlainReference, HasThePublishedValuesOfTheFormats) {
  const auto value = [](DType dtype, uint16_t bits) {
    std::byte element[2];
    std::memcpy(element, &bits, 2);
    return PlainValue(dtype, element);
  };
  EXPECT_EQ(value(DType::kFloat16, 0x7bff), 65504);
  EXPECT_EQ(value(DType::kFloat16, 0x0400), 0x1p-14);
  EXPECT_EQ(value(DType::kFloat16, 0x0001), 0x1p-24);
  EXPECT_EQ(value(DType::kFloat16, 0x3555), 0.333251953125);
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    EXPECT_EQ(value(DType::kBFloat16, static_cast<uint16_t>(bits)),
              std::bit_cast<float>(bits << 16));
  }
}

}  // namespace
}  // namespace gradclip
