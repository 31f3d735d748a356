#include "tests/model/golden.h"

#include <absl/strings/escaping.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace gradclip {
namespace {

using nlohmann::json;

json ReadJson(const std::string& path) {
  std::ifstream file(std::string(GRADCLIP_TEST_DATA) + path);
  return json::parse(file);
}

// A number, or "inf" or "nan".
double ToDouble(const json& value) {
  if (value.is_number()) return value.get<double>();
  return value == "inf" ? std::numeric_limits<double>::infinity()
                        : std::numeric_limits<double>::quiet_NaN();
}

DType ToDType(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    if (Name(dtype) == name) return dtype;
  }
  throw json::other_error::create(501, "unknown dtype " + name, nullptr);
}

std::string Decode(const json& base64) {
  std::string bytes;
  absl::Base64Unescape(base64.get<std::string>(), &bytes);
  return bytes;
}

GoldenCase ToCase(const json& from) {
  GoldenCase golden;
  golden.name = from["name"];
  golden.norm_type = ToDouble(from["norm_type"]);
  golden.max_norm = ToDouble(from["max_norm"]);
  golden.error_if_nonfinite = from["error_if_nonfinite"];
  if (!from["exact_total_norm"].is_null()) {
    golden.exact_total_norm = ToDouble(from["exact_total_norm"]);
  }
  const json& torch = from["torch"];
  golden.torch_raises = torch.contains("raises");
  if (torch.contains("total_norm")) {
    golden.torch_total_norm = ToDouble(torch["total_norm"]);
  }
  for (size_t i = 0; i < from["tensors"].size(); ++i) {
    const json& tensor = from["tensors"][i];
    GoldenTensor& to = golden.tensors.emplace_back();
    to.dtype = ToDType(tensor["dtype"]);
    to.shape = tensor["shape"].get<std::vector<int64_t>>();
    to.bytes = Decode(tensor["data"]);
    if (torch.contains("clipped")) to.torch_clipped = Decode(torch["clipped"][i]);
  }
  return golden;
}

double Epsilon(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-52;
    case DType::kFloat32:
      return 0x1p-23;
    case DType::kFloat16:
      return 0x1p-10;
    case DType::kBFloat16:
      break;
  }
  return 0x1p-7;
}

}  // namespace

std::vector<GoldenCase> ReadGoldenCases() {
  std::vector<GoldenCase> cases;
  const json root = ReadJson("/conformance/clip_grad_norm.json");
  for (const json& from : root["cases"]) cases.push_back(ToCase(from));
  return cases;
}

bool TorchIsRight(const GoldenCase& golden) {
  return golden.torch_total_norm.has_value() && golden.name.find("_square_") == std::string::npos &&
         golden.name != "fp32_max" && golden.name != "fp32_subnormal";
}

double TorchEpsilon(const GoldenCase& golden) {
  double epsilon = 0;
  for (const GoldenTensor& tensor : golden.tensors) {
    epsilon = std::max(epsilon, Epsilon(tensor.dtype));
  }
  return epsilon;
}

GoldenGradient ReadGoldenGradient(const std::string& stem) {
  const json from = ReadJson("/gradients/expected.json")["files"][stem];
  return {from["total_norm_f64"], from["max_norm"], from["coefficient_f64"]};
}

}  // namespace gradclip
