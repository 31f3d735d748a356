// The golden cases through a real server and the real client: clipped in every reply mode, streamed
// and in shared memory, and measured.
#include "tests/model/golden.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"
#include "server/backend/cuda/cuda_devices.h"
#include "tests/client/files/file_bytes.h"
#include "tests/model/answer.h"
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
  bool shared = false;
  std::string backend;
};

void PrintTo(const Mode& mode, std::ostream* out) {
  *out << mode.name << " " << mode.backend;
}

// The relative error that a norm may have.
double Tolerance(double norm_type) {
  const bool exact_p = norm_type == 1 || norm_type == 2 || std::isinf(norm_type);
  return exact_p ? 1e-12 : 1e-12 / std::min(1.0, norm_type);
}

void ExpectRightNorm(const GoldenCase& golden, double norm) {
  const double exact = golden.exact_total_norm.value();
  EXPECT_TRUE(Same(norm, exact) || std::abs(norm - exact) <= Tolerance(golden.norm_type) * exact)
      << norm << " is not " << exact;
  if (TorchIsRight(golden)) {
    const double torch = *golden.torch_total_norm;
    EXPECT_TRUE(Same(norm, torch) || std::abs(norm - torch) <= 16 * TorchEpsilon(golden) * torch)
        << norm << " is not PyTorch's " << torch;
  }
}

// The case as the model takes it.
v1::ClipGradNormStart StartOf(const GoldenCase& golden) {
  v1::ClipGradNormStart start;
  for (const GoldenTensor& tensor : golden.tensors) {
    v1::TensorSpec& spec = *start.add_tensors();
    spec.set_dtype(static_cast<v1::DType>(tensor.dtype));
    spec.mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  }
  start.mutable_norm()->set_norm_type(golden.norm_type);
  start.set_max_norm(golden.max_norm);
  return start;
}

// One after another.
std::string Join(const std::vector<std::string>& parts) {
  std::string joined;
  for (const std::string& part : parts) joined += part;
  return joined;
}

// A case's tensors in memory that a client may write to.
struct Memory {
  explicit Memory(const GoldenCase& golden) {
    for (const GoldenTensor& tensor : golden.tensors) bytes.push_back(tensor.bytes);
    for (size_t i = 0; i < bytes.size(); ++i) {
      tensors.push_back({"", golden.tensors[i].dtype, golden.tensors[i].shape, bytes[i].data()});
    }
  }

  std::vector<std::string> bytes;
  std::vector<Tensor> tensors;
};

class GoldenCases : public ServerTest, public testing::WithParamInterface<Mode> {
 protected:
  GoldenCases() {
    options_.backend = GetParam().backend;
    if (GetParam().shared) {
      options_.memory_socket = folder_ / "memory";
      options_.max_shared_bytes = options_.memory_budget;
      options_.max_shared_bytes_per_peer = options_.memory_budget;
    }
    Serve();
  }

  // Clips by way of the mode.
  static absl::StatusOr<ClipAnswer> Clip(Client& client, Memory& memory,
                                         const gradclip::ClipOptions& options) {
    if (!GetParam().shared) return client.Clip(memory.tensors, options);
    SharedGradientOptions required;
    required.require_shared = true;
    auto gradient = SharedGradient::Make(client, memory.tensors, required);
    if (!gradient.ok()) return gradient.status();
    for (size_t i = 0; i < memory.bytes.size(); ++i) {
      memory.bytes[i].copy(static_cast<char*>(gradient->tensors()[i].data), std::string::npos);
    }
    const absl::StatusOr<ClipAnswer> answer = gradient->Clip(options);
    for (size_t i = 0; i < memory.bytes.size(); ++i) {
      std::string& bytes = memory.bytes[i];
      bytes.assign(static_cast<const char*>(gradient->tensors()[i].data), bytes.size());
    }
    EXPECT_EQ(gradient->shared(), answer.ok() && !Join(memory.bytes).empty());
    return answer;
  }

  // Everything about one case.
  void Check(Client& client, const GoldenCase& golden) {
    Memory memory(golden);
    const std::string before = Join(memory.bytes);
    gradclip::ClipOptions options;
    options.max_norm = golden.max_norm;
    options.norm.norm_type = golden.norm_type;
    options.reply = GetParam().reply;
    if (golden.error_if_nonfinite) options.nonfinite = NonfinitePolicy::kError;

    const absl::StatusOr<ClipAnswer> answer = Clip(client, memory, options);
    if (golden.torch_raises) {
      EXPECT_EQ(answer.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_EQ(Join(memory.bytes), before);
      return;
    }
    ASSERT_TRUE(answer.ok()) << answer.status();
    ExpectRightNorm(golden, answer->norm.total_norm);
    const v1::ClipGradNormStart start = StartOf(golden);
    ExpectRightDecision(golden, start, *answer);

    // To the bit: every element times the coefficient.
    v1::ClipResult result;
    result.set_coefficient(answer->coefficient);
    EXPECT_TRUE(SameElements(start, Join(memory.bytes), ModelScale(start, result, before)));
    for (size_t i = 0; TorchIsRight(golden) && i < memory.bytes.size(); ++i) {
      CheckAgainstPyTorch(golden, golden.tensors[i], memory.bytes[i]);
    }
  }

  // The coefficient of the exact norm: to the bit where the norm is exact to the bit.
  static void ExpectRightDecision(const GoldenCase& golden, const v1::ClipGradNormStart& start,
                                  const ClipAnswer& answer) {
    const double exact_norm = golden.exact_total_norm.value();
    const v1::ClipResult exact = ModelDecide(start, exact_norm);
    EXPECT_TRUE(Same(answer.coefficient, exact.coefficient()) ||
                (answer.norm.total_norm != exact_norm &&
                 std::abs(answer.coefficient - exact.coefficient()) <=
                     Tolerance(golden.norm_type) * exact.coefficient()))
        << answer.coefficient << " is not " << exact.coefficient();
    EXPECT_EQ(answer.clipped, exact.clipped());
    EXPECT_FALSE(answer.skipped);
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

  const Folder folder_;
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

class GoldenNorms : public ServerTest, public testing::WithParamInterface<std::string> {
 protected:
  // Devices leave the rarer norms, and gradients without elements, to the host.
  static std::string Measuring(const GoldenCase& golden) {
    const bool device = GetParam().starts_with("cuda");
    const bool rare =
        !(golden.norm_type == 1 || golden.norm_type == 2 || std::isinf(golden.norm_type)) ||
        Join(Memory(golden).bytes).empty();
    return device && rare ? std::string((*MakeBackend("auto"))->name()) : GetParam();
  }
};

TEST_P(GoldenNorms, AreMeasuredRight) {
  options_.backend = GetParam();
  Serve();
  Client client(server_->addresses()[0]);
  for (const GoldenCase& golden : ReadGoldenCases()) {
    SCOPED_TRACE(golden.name);
    const Memory memory(golden);
    gradclip::NormOptions options;
    options.norm_type = golden.norm_type;
    options.per_tensor = true;
    const absl::StatusOr<NormAnswer> answer = client.ComputeNorm(memory.tensors, options);
    ASSERT_TRUE(answer.ok()) << answer.status();
    ExpectRightNorm(golden, answer->total_norm);
    EXPECT_EQ(answer->backend, Measuring(golden));

    const ModelNorm model = ModelMeasure(StartOf(golden), Join(memory.bytes));
    EXPECT_TRUE(model.total.Holds(answer->total_norm)) << answer->total_norm;
    EXPECT_EQ(answer->nonfinite_elements, model.nonfinite_elements);
    EXPECT_EQ(answer->group_nonfinite_elements, model.nonfinite_elements);
    EXPECT_EQ(answer->first_nonfinite, model.first_nonfinite);
    ASSERT_EQ(answer->tensors.size(), model.tensors.size());
    for (size_t i = 0; i < model.tensors.size(); ++i) {
      const TensorNorm& tensor = answer->tensors[i];
      EXPECT_TRUE(model.tensors[i].norm.Holds(tensor.norm)) << tensor.norm;
      EXPECT_EQ(tensor.nonfinite_elements, model.tensors[i].nonfinite_elements);
      EXPECT_EQ(tensor.zero_elements, model.tensors[i].zero_elements);
    }
  }
}

std::string TestName(std::string name) {
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

std::vector<std::string> UsableBackends() {
  std::vector<BackendChoice> choices = ListCudaDevices();
  for (BackendChoice& host : ListBackends()) choices.push_back(std::move(host));
  std::vector<std::string> names;
  for (const BackendChoice& choice : choices) {
    if (choice.usable) names.push_back(choice.name);
  }
  return names;
}

std::vector<Mode> Modes() {
  std::vector<Mode> modes;
  for (const std::string& backend : UsableBackends()) {
    modes.push_back({"Coefficient", ReplyMode::kCoefficient, false, backend});
    modes.push_back({"Gradient", ReplyMode::kGradient, false, backend});
    modes.push_back({"IfChanged", ReplyMode::kGradientIfChanged, false, backend});
    modes.push_back({"SharedCoefficient", ReplyMode::kCoefficient, true, backend});
    modes.push_back({"SharedInPlace", ReplyMode::kGradientIfChanged, true, backend});
  }
  return modes;
}

INSTANTIATE_TEST_SUITE_P(Modes, GoldenCases, testing::ValuesIn(Modes()), [](const auto& info) {
  return TestName(info.param.name + "_" + info.param.backend);
});

INSTANTIATE_TEST_SUITE_P(Backends, GoldenNorms, testing::ValuesIn(UsableBackends()),
                         [](const auto& info) { return TestName(info.param); });

}  // namespace
}  // namespace gradclip
