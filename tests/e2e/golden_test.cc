// The golden cases through a real server and the real client, in every reply mode.
#include "tests/model/golden.h"

#include <gmock/gmock.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "gradclip/client.h"
#include "tests/model/model.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

bool Same(double a, double b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

struct Mode {
  std::string name;
  ReplyMode reply;
  std::string backend;
};

void PrintTo(const Mode& mode, std::ostream* out) {
  *out << mode.name << " " << mode.backend;
}

class GoldenCases : public ServerTest, public testing::WithParamInterface<Mode> {
 protected:
  GoldenCases() {
    options_.backend = GetParam().backend;
    Serve();
  }

  // Everything about one case.
  void Check(Client& client, const GoldenCase& golden) {
    std::vector<std::string> memory;
    for (const GoldenTensor& tensor : golden.tensors) memory.push_back(tensor.bytes);
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < memory.size(); ++i) {
      tensors.push_back({"", golden.tensors[i].dtype, golden.tensors[i].shape, memory[i].data()});
    }
    gradclip::ClipOptions options;
    options.max_norm = golden.max_norm;
    options.norm.norm_type = golden.norm_type;
    options.reply = GetParam().reply;
    if (golden.error_if_nonfinite) options.nonfinite = NonfinitePolicy::kError;

    const absl::StatusOr<ClipAnswer> answer = client.Clip(tensors, options);
    if (golden.torch_raises) {
      EXPECT_EQ(answer.status().code(), absl::StatusCode::kFailedPrecondition);
      for (size_t i = 0; i < memory.size(); ++i) EXPECT_EQ(memory[i], golden.tensors[i].bytes);
      return;
    }
    ASSERT_TRUE(answer.ok()) << answer.status();
    CheckNorm(golden, answer->norm.total_norm);
    for (size_t i = 0; i < memory.size(); ++i) {
      CheckElements(golden.tensors[i], memory[i], answer->coefficient);
      if (TorchIsRight(golden)) CheckAgainstPyTorch(golden, golden.tensors[i], memory[i]);
    }
  }

  static void CheckNorm(const GoldenCase& golden, double norm) {
    const bool exact_p =
        golden.norm_type == 1 || golden.norm_type == 2 || std::isinf(golden.norm_type);
    const double tolerance = exact_p ? 1e-12 : 1e-12 / std::min(1.0, golden.norm_type);
    if (golden.exact_total_norm.has_value()) {
      const double exact = *golden.exact_total_norm;
      EXPECT_TRUE(Same(norm, exact) || std::abs(norm - exact) <= tolerance * exact)
          << norm << " is not " << exact;
    }
    if (TorchIsRight(golden)) {
      const double torch = *golden.torch_total_norm;
      EXPECT_TRUE(Same(norm, torch) || std::abs(norm - torch) <= 16 * TorchEpsilon(golden) * torch)
          << norm << " is not PyTorch's " << torch;
    }
  }

  // To the bit: every element times the coefficient.
  static void CheckElements(const GoldenTensor& tensor, const std::string& clipped,
                            double coefficient) {
    v1::ClipGradNormStart start;
    v1::TensorSpec& spec = *start.add_tensors();
    spec.set_dtype(static_cast<v1::DType>(tensor.dtype));
    spec.mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
    v1::ClipResult result;
    result.set_coefficient(coefficient);
    const std::string expected = ModelScale(start, result, tensor.bytes);
    ASSERT_EQ(clipped.size(), expected.size());
    const size_t size = ElementSize(tensor.dtype);
    for (size_t at = 0; at < clipped.size(); at += size) {
      const std::string element = clipped.substr(at, size);
      if (std::isnan(Decode(tensor.dtype, element))) {
        EXPECT_TRUE(std::isnan(coefficient) ||
                    std::isnan(Decode(tensor.dtype, expected.substr(at, size))));
      } else {
        EXPECT_EQ(element, expected.substr(at, size)) << "element " << at / size;
      }
    }
  }

  // Within what PyTorch rounds.
  static void CheckAgainstPyTorch(const GoldenCase& golden, const GoldenTensor& tensor,
                                  const std::string& clipped) {
    const size_t size = ElementSize(tensor.dtype);
    // The step between subnormals of the narrowest format there is here, F16.
    const double smallest = tensor.dtype == DType::kFloat16 ? std::ldexp(1.0, -24) : 1e-45;
    for (size_t at = 0; at < clipped.size(); at += size) {
      const double ours = Decode(tensor.dtype, clipped.substr(at, size));
      const double torch = Decode(tensor.dtype, tensor.torch_clipped.substr(at, size));
      EXPECT_TRUE(Same(ours, torch) ||
                  std::abs(ours - torch) <= 16 * TorchEpsilon(golden) * std::abs(torch) + smallest)
          << "element " << at / size << ": " << ours << " is not PyTorch's " << torch;
    }
  }
};

TEST_P(GoldenCases, AreAnsweredRight) {
  Client client(server_->addresses()[0]);
  const std::vector<GoldenCase> cases = ReadGoldenCases();
  ASSERT_GE(cases.size(), 130u);
  for (const GoldenCase& golden : cases) {
    SCOPED_TRACE(golden.name);
    Check(client, golden);
  }
}

std::vector<Mode> Modes() {
  std::vector<Mode> modes;
  for (const BackendChoice& backend : ListBackends()) {
    if (!backend.usable) continue;
    modes.push_back({"Coefficient", ReplyMode::kCoefficient, backend.name});
    modes.push_back({"Gradient", ReplyMode::kGradient, backend.name});
    modes.push_back({"IfChanged", ReplyMode::kGradientIfChanged, backend.name});
  }
  return modes;
}

INSTANTIATE_TEST_SUITE_P(Modes, GoldenCases, testing::ValuesIn(Modes()), [](const auto& info) {
  std::string name = info.param.name + "_" + info.param.backend;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
});

}  // namespace
}  // namespace gradclip
