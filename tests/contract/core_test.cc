// The norm, the coefficient and the scaling together, without a server: on the golden cases and on
// real gradients, for every backend and device that can run here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "server/backend/cuda/cuda_devices.h"
#include "server/clip/clip.h"
#include "server/norm/gradient_norm.h"
#include "tests/contract/on_devices.h"
#include "tests/model/golden.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

struct Tensor {
  DType dtype;
  Bytes elements;
  size_t count() const { return elements.size() / ElementSize(dtype); }
};

Bytes ToBytes(std::string_view text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

// What is under test: a backend of the host, or a device, which leaves the rarer norms to one.
class Computes {
 public:
  explicit Computes(const std::string& name) {
    if (name.starts_with("cuda/")) {
      devices_ = OpenCudaDevices({.devices = {std::stoi(name.substr(5))}}).value();
    }
    host_ = MakeBackend(devices_ == nullptr ? name : "auto").value();
  }

  double TotalNorm(double norm_type, const std::vector<Tensor>& tensors) const {
    if (devices_ != nullptr && (norm_type == 1 || norm_type == 2 || std::isinf(norm_type))) {
      NormPartial total(norm_type);
      for (const Tensor& tensor : tensors) {
        if (!tensor.elements.empty()) MeasureOn(*devices_, tensor.dtype, tensor.elements, total);
      }
      return total.Norm();
    }
    GradientNorm norm(*host_, norm_type, false);
    for (const Tensor& tensor : tensors) {
      norm.BeginTensor(tensor.dtype, true);
      norm.Add(tensor.elements.data(), tensor.count());
      norm.EndTensor();
    }
    return norm.total().Norm();
  }

  void Scale(DType dtype, Bytes& elements, double coefficient) const {
    if (elements.empty()) return;
    if (devices_ == nullptr) {
      host_->Scale(dtype, elements.data(), elements.size() / ElementSize(dtype), coefficient);
    } else {
      // Where the coefficient leaves them as they are, devices are not asked to.
      ScaleOn(*devices_, dtype, elements, coefficient);
    }
  }

 private:
  std::unique_ptr<Devices> devices_;
  std::unique_ptr<Backend> host_;
};

std::vector<std::string> AllThatComputesHere() {
  std::vector<std::string> names = UsableBackends();
  for (const BackendChoice& device : ListCudaDevices()) {
    if (device.usable) names.push_back(device.name);
  }
  return names;
}

// The tensors of a .safetensors file: 8 bytes of header size, a JSON header, the data.
std::vector<Tensor> ReadSafetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, text.data(), sizeof header_bytes);
  const std::string_view data = std::string_view(text).substr(8 + header_bytes);
  std::vector<Tensor> tensors;
  const nlohmann::json header = nlohmann::json::parse(text.substr(8, header_bytes));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t from = entry["data_offsets"][0], to = entry["data_offsets"][1];
    const DType dtype = entry["dtype"] == "F32" ? DType::kFloat32 : DType::kBFloat16;
    EXPECT_EQ(entry["dtype"], std::string(Name(dtype)));
    tensors.push_back({dtype, ToBytes(data.substr(from, to - from))});
  }
  return tensors;
}

// FNV-1a over everything that is the same to the bit on every machine. NaN has one form.
class Digest {
 public:
  void Add(double value) {
    if (std::isnan(value)) value = std::numeric_limits<double>::quiet_NaN();
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    for (int byte = 0; byte < 8; ++byte) {
      value_ = (value_ ^ (bits >> (8 * byte) & 0xff)) * 0x100000001b3;
    }
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

class CoreTest : public testing::TestWithParam<std::string> {
 protected:
  void ExpectScaledAsThePlainReference(const std::vector<Tensor>& tensors, double coefficient) {
    for (const Tensor& tensor : tensors) {
      Bytes scaled = tensor.elements;
      computes_.Scale(tensor.dtype, scaled, coefficient);
      EXPECT_EQ(
          Difference(tensor.dtype, scaled.data(),
                     PlainScale(tensor.dtype, tensor.elements, coefficient).data(), tensor.count()),
          "");
    }
  }

  const Computes computes_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Backends, CoreTest, testing::ValuesIn(AllThatComputesHere()),
                         [](const auto& info) { return TestName(info.param); });

TEST_P(CoreTest, AnswersTheGoldenCases) {
  const std::vector<GoldenCase> cases = ReadGoldenCases();
  ASSERT_GT(cases.size(), 100);
  int with_torch = 0;
  for (const GoldenCase& golden : cases) {
    SCOPED_TRACE(golden.name);
    std::vector<Tensor> tensors;
    for (const GoldenTensor& tensor : golden.tensors) {
      tensors.push_back({tensor.dtype, ToBytes(tensor.bytes)});
    }
    const double norm = computes_.TotalNorm(golden.norm_type, tensors);
    const ClipRule rule = {.max_norm = golden.max_norm};
    const ClipDecision decision = Decide(rule, norm);

    ASSERT_TRUE(golden.exact_total_norm.has_value());
    const double exact = *golden.exact_total_norm;
    if (!std::isfinite(exact)) {
      EXPECT_TRUE(SameBits(norm, exact)) << norm;
    } else {
      const double bound =
          golden.norm_type == 1 || golden.norm_type == 2 || std::isinf(golden.norm_type)
              ? 1e-12
              : 1e-12 / std::min(1.0, golden.norm_type);
      EXPECT_LE(std::fabs(norm - exact), bound * exact) << norm << ", not " << exact;
      const double coefficient = Decide(rule, exact).coefficient;
      EXPECT_LE(std::fabs(decision.coefficient - coefficient), 2 * bound * coefficient);
    }
    const double exact_coefficient = Decide(rule, exact).coefficient;
    ExpectScaledAsThePlainReference(tensors, exact_coefficient);
    ExpectScaledAsThePlainReference(tensors, decision.coefficient);
    EXPECT_TRUE(!golden.torch_raises || !std::isfinite(norm));
    if (!TorchIsRight(golden)) continue;

    // A few roundings of norm and coefficient to PyTorch's type, one of the product.
    ++with_torch;
    const double torch_epsilon = TorchEpsilon(golden);
    if (std::isfinite(norm)) {
      EXPECT_LE(std::fabs(*golden.torch_total_norm - norm), 4 * torch_epsilon * norm);
    } else {
      EXPECT_TRUE(SameBits(*golden.torch_total_norm, norm));
    }
    for (size_t t = 0; t < tensors.size(); ++t) {
      Tensor& tensor = tensors[t];
      const Bytes torch = ToBytes(golden.tensors[t].torch_clipped);
      ASSERT_EQ(torch.size(), tensor.elements.size());
      computes_.Scale(tensor.dtype, tensor.elements, decision.coefficient);
      for (size_t i = 0; i < tensor.count(); ++i) {
        const size_t at = i * ElementSize(tensor.dtype);
        const double ours = PlainValue(tensor.dtype, tensor.elements.data() + at);
        const double theirs = PlainValue(tensor.dtype, torch.data() + at);
        // The second part is for elements that become subnormal.
        EXPECT_TRUE(SameBits(ours, theirs) ||
                    std::fabs(ours - theirs) <= 6 * torch_epsilon * std::fabs(ours) + 1e-44)
            << "tensor " << t << " [" << i << "]: " << ours << ", PyTorch " << theirs;
      }
    }
  }
  EXPECT_GT(with_torch, 70);
}

TEST_P(CoreTest, AnswersForRealGradients) {
  for (const std::string stem : {"step-001", "step-060", "step-060-bf16", "step-090"}) {
    SCOPED_TRACE(stem);
    const GoldenGradient golden = ReadGoldenGradient(stem);
    const std::vector<Tensor> tensors =
        ReadSafetensors(std::string(GRADCLIP_TEST_DATA) + "/gradients/" + stem + ".safetensors");
    ASSERT_EQ(tensors.size(), 41);
    const double norm = computes_.TotalNorm(2, tensors);
    EXPECT_LE(std::fabs(norm - golden.total_norm), 1e-12 * golden.total_norm);
    const ClipDecision decision = Decide({.max_norm = golden.max_norm}, norm);
    EXPECT_LE(std::fabs(decision.coefficient - golden.coefficient), 2e-12);
    EXPECT_EQ(decision.clipped, golden.coefficient < 1);
    ExpectScaledAsThePlainReference(tensors, decision.coefficient);
  }
}

TEST_P(CoreTest, GivesTheBitsOfTheBaseline) {
  const Computes baseline("cpu/baseline");
  for (const GoldenCase& golden : ReadGoldenCases()) {
    std::vector<Tensor> tensors;
    for (const GoldenTensor& tensor : golden.tensors) {
      tensors.push_back({tensor.dtype, ToBytes(tensor.bytes)});
    }
    EXPECT_TRUE(SameBits(computes_.TotalNorm(golden.norm_type, tensors),
                         baseline.TotalNorm(golden.norm_type, tensors)))
        << golden.name;
  }
}

// The figure is what x86-64 gives; the same test runs on AArch64.
TEST_P(CoreTest, GivesTheSameBitsOnEveryMachine) {
  Digest digest;
  const auto add = [&](double norm_type, double max_norm, std::vector<Tensor> tensors) {
    const double norm = computes_.TotalNorm(norm_type, tensors);
    const double coefficient = Decide({.max_norm = max_norm}, norm).coefficient;
    digest.Add(norm);
    digest.Add(coefficient);
    for (Tensor& tensor : tensors) {
      computes_.Scale(tensor.dtype, tensor.elements, coefficient);
      const size_t size = ElementSize(tensor.dtype);
      for (size_t at = 0; at < tensor.elements.size(); at += size) {
        digest.Add(PlainValue(tensor.dtype, tensor.elements.data() + at));
      }
    }
  };
  for (const GoldenCase& golden : ReadGoldenCases()) {
    const double p = golden.norm_type;
    if (p != 1 && p != 2 && !std::isinf(p)) continue;
    std::vector<Tensor> tensors;
    for (const GoldenTensor& tensor : golden.tensors) {
      tensors.push_back({tensor.dtype, ToBytes(tensor.bytes)});
    }
    add(p, golden.max_norm, tensors);
  }
  for (const std::string stem : {"step-060", "step-060-bf16", "step-090"}) {
    const std::vector<Tensor> tensors =
        ReadSafetensors(std::string(GRADCLIP_TEST_DATA) + "/gradients/" + stem + ".safetensors");
    for (const double p : {1.0, 2.0, std::numeric_limits<double>::infinity()}) add(p, 0.1, tensors);
  }
  EXPECT_EQ(digest.value(), 3212857942608627538u);
}

}  // namespace
}  // namespace gradclip
