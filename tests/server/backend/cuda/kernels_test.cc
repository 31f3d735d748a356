// The CUDA kernels against the host's: the same bits for the same elements, however they lie.
#include "server/backend/cuda/kernels.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "server/norm/gradient_norm.h"
#include "tests/server/backend/cuda/device_buffer.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr NormKind kKinds[] = {NormKind::kMagnitudes, NormKind::kSquares, NormKind::kLargest};

// Around the borders of warps, of the loads that a lane has under way, and of blocks.
constexpr size_t kLengths[] = {1,    2,    31,   32,   33,   63,   64,   65,   511,  512,  513,
                               1023, 1024, 1025, 2047, 4064, 4095, 4096, 4097, 8192, 20000};

double NormType(NormKind kind) {
  return kind == NormKind::kMagnitudes ? 1 : kind == NormKind::kSquares ? 2 : kInfinity;
}

struct Tensor {
  DType dtype = DType::kFloat32;
  Bytes bytes;
  bool counted = true;

  size_t elements() const { return bytes.size() / ElementSize(dtype); }
};

// Tensors one after another in the memory of a device, each at a multiple of its element's size.
class Gradient {
 public:
  // `gap` elements are left out before each.
  explicit Gradient(const std::vector<Tensor>& tensors, size_t gap = 0) {
    Bytes bytes(256);
    for (const Tensor& tensor : tensors) {
      const size_t size = ElementSize(tensor.dtype);
      bytes.resize((bytes.size() + size - 1) / size * size + gap * size);
      offsets_.push_back(bytes.size());
      bytes.insert(bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
    }
    bytes.resize(bytes.size() + 16);
    memory_ = std::make_unique<DeviceBuffer>(bytes.data(), bytes.size());
    before_ = bytes;
    std::vector<DeviceRun> runs;
    for (size_t i = 0; i < tensors.size(); ++i) {
      runs.push_back({.address = reinterpret_cast<uint64_t>(memory_->device()) + offsets_[i],
                      .elements = tensors[i].elements(),
                      .first_block = blocks_,
                      .dtype = tensors[i].dtype,
                      .counted = tensors[i].counted});
      blocks_ += BlocksOf(tensors[i].elements());
    }
    table_ = std::make_unique<DeviceBuffer>(runs.data(), runs.size() * sizeof(DeviceRun));
    runs_ = {reinterpret_cast<const DeviceRun*>(table_->device()),
             static_cast<uint32_t>(runs.size()), blocks_};
  }

  DeviceTally Measure(NormKind kind, std::vector<DeviceBlock>* found = nullptr) {
    DeviceTally tally = EmptyTally();
    DeviceBuffer on_device(&tally, sizeof tally);
    DeviceBuffer blocks(blocks_ * sizeof(DeviceBlock));
    MustSucceed(LaunchMeasure(
        nullptr, kMultiprocessors, kind, runs_, reinterpret_cast<DeviceTally*>(on_device.device()),
        found == nullptr ? nullptr : reinterpret_cast<DeviceBlock*>(blocks.device())));
    std::memcpy(&tally, on_device.Get(), sizeof tally);
    if (found != nullptr) {
      found->resize(blocks_);
      if (blocks_ != 0) std::memcpy(found->data(), blocks.Get(), blocks.size());
    }
    return tally;
  }

  void Scale(const ScaleFactor& factor) {
    MustSucceed(LaunchScale(nullptr, kMultiprocessors, runs_, factor));
  }

  // The elements of one tensor as they are now.
  Bytes Elements(size_t tensor, const Tensor& like) {
    const std::byte* const now = memory_->Get();
    return {now + offsets_[tensor], now + offsets_[tensor] + like.bytes.size()};
  }
  // Nothing beside the tensors has changed.
  bool LeavesTheRest(const std::vector<Tensor>& tensors) {
    Bytes now(memory_->Get(), memory_->Get() + memory_->size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      std::copy_n(before_.begin() + static_cast<ptrdiff_t>(offsets_[i]), tensors[i].bytes.size(),
                  now.begin() + static_cast<ptrdiff_t>(offsets_[i]));
    }
    return now == before_;
  }

 private:
  static constexpr int kMultiprocessors = 2;

  std::vector<size_t> offsets_;
  std::unique_ptr<DeviceBuffer> memory_;
  std::unique_ptr<DeviceBuffer> table_;
  Bytes before_;
  DeviceRuns runs_;
  uint64_t blocks_ = 0;
};

class CudaKernels : public testing::Test {
 protected:
  // What the host finds in the same tensors.
  std::string Expected(const std::vector<Tensor>& tensors, NormKind kind) {
    GradientNorm norm(*host_, NormType(kind), /*per_tensor=*/false);
    for (const Tensor& tensor : tensors) {
      norm.BeginTensor(tensor.dtype, tensor.counted);
      norm.Add(tensor.bytes.data(), tensor.elements());
      norm.EndTensor();
    }
    return norm.total().Serialize();
  }

  static std::string Measured(const std::vector<Tensor>& tensors, NormKind kind, size_t gap = 0) {
    NormPartial partial(NormType(kind));
    partial.AddTally(Gradient(tensors, gap).Measure(kind));
    return partial.Serialize();
  }

  const std::unique_ptr<Backend> host_ = *MakeBackend("cpu/baseline");
};

TEST_F(CudaKernels, GiveTheBitsOfTheHostAtEveryLength) {
  for (const DType dtype : kAllDTypes) {
    for (const NormKind kind : kKinds) {
      for (const size_t count : kLengths) {
        const std::vector<Tensor> tensors = {{dtype, RandomElements(dtype, count, count)}};
        ASSERT_EQ(Measured(tensors, kind), Expected(tensors, kind))
            << Name(dtype) << ", " << count << " elements, p = " << NormType(kind);
      }
    }
  }
}

TEST_F(CudaKernels, TakeManyTensorsOfAllTypesAtOnceWhereverTheyLie) {
  std::mt19937 random(1);
  std::vector<Tensor> tensors;
  for (uint64_t i = 0; i < 300; ++i) {
    const DType dtype = kAllDTypes[random() % 4];
    // Empty ones, too, and some of several blocks.
    const size_t count = i % 50 == 0 ? 3 * kBlockElements + random() % 5000 : random() % 90;
    tensors.push_back({dtype, RandomElements(dtype, count, i), i % 7 != 0});
  }
  for (const NormKind kind : kKinds) {
    for (const size_t gap : {0, 1, 3}) {
      EXPECT_EQ(Measured(tensors, kind, gap), Expected(tensors, kind)) << NormType(kind);
    }
  }
}

// A block for each 32 patterns that follow one another: of like magnitude, so that none is lost
// beside the others.
TEST_F(CudaKernels, WidenEveryHalfExactly) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<Tensor> tensors;
    for (uint32_t first = 0; first < 0x8000; first += kLanes) {
      Bytes elements(2 * kLanes);
      for (uint32_t i = 0; i < kLanes; ++i) {
        const auto bits = static_cast<uint16_t>((first + i) | (i & 1) << 15);
        std::memcpy(elements.data() + 2 * i, &bits, 2);
      }
      tensors.push_back({dtype, elements});
    }
    std::vector<DeviceBlock> found;
    Gradient(tensors).Measure(NormKind::kMagnitudes, &found);
    for (size_t i = 0; i < tensors.size(); ++i) {
      NormPartial partial(1);
      partial.AddSum(found[i].sum, found[i].exponent);
      ASSERT_EQ(partial.Serialize(), Expected({tensors[i]}, NormKind::kMagnitudes))
          << Name(dtype) << " patterns from " << i * kLanes;
      const ElementCounts counts = host_->Count(dtype, tensors[i].bytes.data(), kLanes);
      ASSERT_EQ(found[i].nonfinite, counts.nonfinite);
      ASSERT_EQ(found[i].zeros, counts.zeros);
    }
  }
}

TEST_F(CudaKernels, RescaleBlocksOfFloat64WhoseSquaresLeaveTheRangeOfDouble) {
  for (const double scale : {0x1p1023, 0x1p600, 0x1p512, 1.0, 0x1p-450, 0x1p-500, 0x1p-1000, 0.0}) {
    for (const NormKind kind : kKinds) {
      std::vector<double> values(5000);
      std::mt19937_64 random(3);
      for (double& value : values) {
        value = scale * (0.5 + std::ldexp(static_cast<double>(random() >> 12), -53));
      }
      const std::vector<Tensor> tensors = {{DType::kFloat64, Elements(DType::kFloat64, values)}};
      ASSERT_EQ(Measured(tensors, kind), Expected(tensors, kind)) << scale << NormType(kind);
    }
  }
}

TEST_F(CudaKernels, CountNonfiniteElementsOfCountedTensorsAndFindTheFirst) {
  for (const DType dtype : kAllDTypes) {
    for (const NormKind kind : kKinds) {
      std::vector<Tensor> tensors;
      for (const size_t count : {100, 9000, 5000, 77}) {
        tensors.push_back({dtype, Elements(dtype, std::vector<double>(count, 1.5))});
      }
      const auto put = [&](size_t tensor, size_t index, double value) {
        const Bytes element = Elements(dtype, std::vector<double>{value});
        std::copy(element.begin(), element.end(),
                  tensors[tensor].bytes.begin() + static_cast<ptrdiff_t>(index * element.size()));
      };
      put(0, 5, NAN);  // not counted
      tensors[0].counted = false;
      put(1, 8999, kInfinity);
      put(2, 4100, -kInfinity);
      put(2, 4099, kInfinity);
      DeviceTally tally = Gradient(tensors).Measure(kind);
      EXPECT_EQ(tally.nonfinite, 3u) << Name(dtype);
      // Tensor 0 has one block, tensor 1 three.
      EXPECT_EQ(tally.first_nonfinite, 3 * kBlockElements + 8999 - 2 * kBlockElements);
      EXPECT_EQ(Measured(tensors, kind), Expected(tensors, kind));
      put(3, 0, -NAN);
      tally = Gradient(tensors).Measure(kind);
      EXPECT_EQ(tally.nonfinite, 4u);
      EXPECT_EQ(Measured(tensors, kind), Expected(tensors, kind));
      std::vector<DeviceBlock> found;
      Gradient(tensors).Measure(kind, &found);
      ASSERT_EQ(found.size(), 7u);
      EXPECT_EQ(found[0].nonfinite, 1u);  // found, if not counted
      EXPECT_EQ(found[0].first_nonfinite, 5u);
      EXPECT_EQ(found[3].nonfinite, 1u);
      EXPECT_EQ(found[4].nonfinite, 0u);
      EXPECT_EQ(found[5].nonfinite, 2u);
      EXPECT_EQ(found[5].first_nonfinite, 3u);
    }
  }
}

TEST_F(CudaKernels, TellOfEachBlockWhatTheHostCounts) {
  for (const DType dtype : kAllDTypes) {
    const std::vector<Tensor> tensors = {{dtype, RandomElements(dtype, 10000, 4)},
                                         {dtype, RandomElements(dtype, 17, 5), false}};
    std::vector<DeviceBlock> found;
    const DeviceTally tally = Gradient(tensors).Measure(NormKind::kSquares, &found);
    EXPECT_EQ(tally.blocks, 3u);
    ASSERT_EQ(found.size(), 4u);
    for (size_t block = 0; block < 4; ++block) {
      const Tensor& tensor = tensors[block / 3];
      const size_t first = block % 3 * kBlockElements;
      const size_t count = std::min(kBlockElements, tensor.elements() - first);
      const std::byte* const elements = tensor.bytes.data() + first * ElementSize(dtype);
      EXPECT_EQ(found[block].zeros, host_->Count(dtype, elements, count).zeros);
      NormPartial partial(2);
      partial.AddSum(found[block].sum, found[block].exponent);
      EXPECT_EQ(partial.Serialize(),
                Expected({{dtype, {elements, elements + count * ElementSize(dtype)}}},
                         NormKind::kSquares));
    }
  }
}

TEST_F(CudaKernels, ScaleToTheBitsOfTheHostWhereverElementsLie) {
  const double coefficients[] = {0.5,      0.1,  1 / 3.0, -0.7, 0,        1e-30,
                                 0x1p-140, 1e39, 1e300,   NAN,  kInfinity};
  for (const double coefficient : coefficients) {
    for (const size_t gap : {0, 1, 3}) {
      std::vector<Tensor> tensors;
      for (const DType dtype : kAllDTypes) {
        for (const size_t count : {1, 3, 40, 1000, 4096, 9001}) {
          tensors.push_back({dtype, RandomElements(dtype, count, count + gap)});
        }
      }
      Gradient gradient(tensors, gap);
      gradient.Scale(
          {.coefficient = coefficient, .in_double = ScalesInDouble(coefficient), .dtypes = ~0u});
      for (size_t i = 0; i < tensors.size(); ++i) {
        Bytes expected = tensors[i].bytes;
        host_->Scale(tensors[i].dtype, expected.data(), tensors[i].elements(), coefficient);
        const Bytes scaled = gradient.Elements(i, tensors[i]);
        ASSERT_EQ(
            Difference(tensors[i].dtype, scaled.data(), expected.data(), tensors[i].elements()), "")
            << Name(tensors[i].dtype) << " times " << coefficient;
      }
      ASSERT_TRUE(gradient.LeavesTheRest(tensors));
    }
  }
}

TEST_F(CudaKernels, RoundEveryHalfAsTheHostDoes) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    Bytes all(2 << 16);
    for (uint32_t i = 0; i < 1 << 16; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      std::memcpy(all.data() + 2 * i, &bits, 2);
    }
    const std::vector<Tensor> tensors = {{dtype, all}};
    for (const double coefficient : {0.5, 0.3, 0.999, 3.0, 1e-5, 0x1p-130}) {
      Gradient gradient(tensors);
      gradient.Scale(
          {.coefficient = coefficient, .in_double = ScalesInDouble(coefficient), .dtypes = ~0u});
      Bytes expected = all;
      host_->Scale(dtype, expected.data(), 1 << 16, coefficient);
      const Bytes scaled = gradient.Elements(0, tensors[0]);
      EXPECT_EQ(Difference(dtype, scaled.data(), expected.data(), 1 << 16), "") << coefficient;
    }
  }
}

TEST_F(CudaKernels, ScaleOnlyTheTypesThatTheyAreTold) {
  std::vector<Tensor> tensors;
  for (const DType dtype : kAllDTypes) {
    tensors.push_back({dtype, Elements(dtype, std::vector<double>(100, 3))});
  }
  for (const bool assign_zero : {false, true}) {
    Gradient gradient(tensors);
    gradient.Scale({.coefficient = 2,
                    .assign_zero = assign_zero,
                    .dtypes = 1u << static_cast<unsigned>(DType::kBFloat16) |
                              1u << static_cast<unsigned>(DType::kFloat64)});
    for (size_t i = 0; i < tensors.size(); ++i) {
      const DType dtype = tensors[i].dtype;
      const bool told = dtype == DType::kBFloat16 || dtype == DType::kFloat64;
      const double expected = !told ? 3 : assign_zero ? 0 : 6;
      EXPECT_EQ(gradient.Elements(i, tensors[i]),
                Elements(dtype, std::vector<double>(100, expected)));
    }
  }
}

}  // namespace
}  // namespace gradclip
