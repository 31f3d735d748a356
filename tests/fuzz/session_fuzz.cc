// The session against a slow, plain model: for any start message, gradient and cuts, the same
// verdict, norms, counts, decision and clipped bytes, and the same bits for other cuts.
#include <google/protobuf/stubs/logging.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>

#include "server/backend/backend.h"
#include "server/memory/arena.h"
#include "server/session/session.h"
#include "tests/fuzz/fuzz.h"
#include "tests/model/answer.h"
#include "tests/model/model.h"

namespace gradclip {
namespace {

constexpr uint64_t kMaxCallBytes = 1 << 20;

std::span<const std::byte> AsBytes(std::string_view bytes) {
  return std::as_bytes(std::span(bytes));
}

struct Outcome {
  absl::Status status;
  v1::ClipResult result;
  std::string clipped;
};

const Backend& TheBackend() {
  static const std::unique_ptr<Backend> backend = MakeBackend("auto").value();
  return *backend;
}

ArenaPool& Arenas() {
  static ArenaPool arenas;
  return arenas;
}

// A whole call, its gradient in parts of cut_bytes.
template <typename Start>
Outcome Run(const Start& start, std::string_view gradient, size_t cut_bytes) {
  Session session({.backend = TheBackend(), .arenas = Arenas(), .max_call_bytes = kMaxCallBytes});
  Outcome outcome;
  outcome.status = session.Start(Start(start));
  while (outcome.status.ok() && !gradient.empty()) {
    const std::string_view part = gradient.substr(0, cut_bytes);
    gradient.remove_prefix(part.size());
    if (session.passes_through()) {
      std::string out(part.size() + 7, '\0');
      size_t written = 0;
      outcome.status =
          session.PassThrough(AsBytes(part), reinterpret_cast<std::byte*>(out.data()), &written);
      outcome.clipped += out.substr(0, written);
    } else {
      outcome.status = session.Data(AsBytes(part));
    }
  }
  if (outcome.status.ok()) outcome.status = session.HalfClose();
  if (!outcome.status.ok()) return outcome;
  outcome.result = session.result();
  if (outcome.result.gradient_follows()) {
    for (size_t i = 0; i < session.segment_count(); ++i) {
      const auto segment = session.ScaleSegment(i);
      outcome.clipped.append(reinterpret_cast<const char*>(segment.data()), segment.size());
    }
  }
  return outcome;
}

bool SameDouble(double a, double b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

// To the bit, but for zeros' and NaNs' signs.
void CheckSameNorms(const v1::NormResult& a, const v1::NormResult& b) {
  FUZZ_CHECK(SameDouble(a.total_norm(), b.total_norm()));
  FUZZ_CHECK(a.nonfinite_elements() == b.nonfinite_elements());
  FUZZ_CHECK(a.first_nonfinite() == b.first_nonfinite());
  FUZZ_CHECK(a.tensors_size() == b.tensors_size());
  for (int i = 0; i < a.tensors_size(); ++i) {
    FUZZ_CHECK(SameDouble(a.tensors(i).norm(), b.tensors(i).norm()));
    FUZZ_CHECK(a.tensors(i).nonfinite_elements() == b.tensors(i).nonfinite_elements());
    FUZZ_CHECK(a.tensors(i).zero_elements() == b.tensors(i).zero_elements());
  }
}

void CheckNorm(const v1::NormResult& norm, const ModelNorm& model, bool per_tensor) {
  FUZZ_CHECK(model.total.Holds(norm.total_norm()));
  FUZZ_CHECK(norm.nonfinite_elements() == model.nonfinite_elements);
  FUZZ_CHECK(norm.group_nonfinite_elements() == model.nonfinite_elements);
  FUZZ_CHECK(norm.first_nonfinite() == model.first_nonfinite);
  FUZZ_CHECK(norm.backend() == TheBackend().name());
  FUZZ_CHECK(norm.tensors_size() == (per_tensor ? static_cast<int>(model.tensors.size()) : 0));
  for (int i = 0; i < norm.tensors_size(); ++i) {
    FUZZ_CHECK(model.tensors[i].norm.Holds(norm.tensors(i).norm()));
    FUZZ_CHECK(norm.tensors(i).nonfinite_elements() == model.tensors[i].nonfinite_elements);
    FUZZ_CHECK(norm.tensors(i).zero_elements() == model.tensors[i].zero_elements);
  }
}

// The decision to the bit; where norm and epsilon together are beyond double, to a rounding.
void CheckDecision(const v1::ClipGradNormStart& start, const v1::ClipResult& result) {
  const double total_norm = result.norm().total_norm();
  const v1::ClipResult model = ModelDecide(start, total_norm);
  const double epsilon = start.has_epsilon() ? start.epsilon() : 1e-6;
  const bool beyond = std::isfinite(total_norm) && std::isinf(total_norm + epsilon);
  FUZZ_CHECK(SameDouble(result.coefficient(), model.coefficient()) ||
             (beyond && std::abs(result.coefficient() - model.coefficient()) <=
                            0x1p-52 * model.coefficient() + 0x1p-1074));
  FUZZ_CHECK(result.clipped() == model.clipped());
  FUZZ_CHECK(result.skipped() == model.skipped());
  FUZZ_CHECK(result.gradient_follows() == model.gradient_follows());
}

void CheckClip(const v1::ClipGradNormStart& start, std::string_view gradient,
               const Outcome& outcome) {
  const absl::StatusCode verdict = ModelVerdict(start, gradient.size(), kMaxCallBytes);
  if (verdict != absl::StatusCode::kOk) {
    FUZZ_CHECK(outcome.status.code() == verdict);
    return;
  }
  const v1::NormResult& norm = outcome.result.norm();
  if (start.has_total_norm()) {
    FUZZ_CHECK(outcome.status.ok());
    FUZZ_CHECK(SameDouble(norm.total_norm(), start.total_norm()));
    FUZZ_CHECK(norm.nonfinite_elements() == 0 && norm.first_nonfinite().empty());
    FUZZ_CHECK(norm.tensors().empty());
  } else {
    const ModelNorm model = ModelMeasure(start, gradient);
    if (!outcome.status.ok()) {
      FUZZ_CHECK(absl::IsFailedPrecondition(outcome.status));
      FUZZ_CHECK(start.nonfinite() == v1::NONFINITE_ERROR && !std::isfinite(model.total.high));
      return;
    }
    CheckNorm(norm, model, start.norm().per_tensor());
  }
  FUZZ_CHECK(start.nonfinite() != v1::NONFINITE_ERROR || std::isfinite(norm.total_norm()));
  CheckDecision(start, outcome.result);
  if (outcome.result.gradient_follows()) {
    FUZZ_CHECK(SameElements(start, outcome.clipped, ModelScale(start, outcome.result, gradient)));
  } else {
    FUZZ_CHECK(outcome.clipped.empty());
  }
}

// ComputeNorm of the same gradient.
void CheckCompute(const v1::ClipGradNormStart& start, std::string_view gradient, size_t cut_bytes,
                  const Outcome& clip) {
  v1::ComputeNormStart compute;
  *compute.mutable_tensors() = start.tensors();
  if (start.has_norm()) *compute.mutable_norm() = start.norm();
  if (start.has_group()) *compute.mutable_group() = start.group();
  const Outcome outcome = Run(compute, gradient, cut_bytes);
  FUZZ_CHECK(outcome.status.code() == ModelVerdict(compute, gradient.size()));
  if (!outcome.status.ok()) return;
  if (clip.status.ok() && !start.has_total_norm()) {
    CheckSameNorms(outcome.result.norm(), clip.result.norm());
  } else {
    CheckNorm(outcome.result.norm(), ModelMeasure(start, gradient), start.norm().per_tensor());
  }
}

// Two bytes: lengths of the cuts. Two bytes, little-endian: length of the serialised start. The
// start. The rest: the gradient.
void Check(std::string_view input) {
  if (input.size() < 4) return;
  const size_t first_cut = 1 + static_cast<uint8_t>(input[0]);
  const size_t second_cut = 1 + static_cast<uint8_t>(input[1]);
  const size_t start_bytes = static_cast<uint8_t>(input[2]) | static_cast<uint8_t>(input[3]) << 8;
  input.remove_prefix(4);
  v1::ClipGradNormStart start;
  const std::string_view serialised = input.substr(0, start_bytes);
  {
    const google::protobuf::LogSilencer silence;  // most inputs are no message
    if (!start.ParseFromArray(serialised.data(), static_cast<int>(serialised.size()))) return;
  }
  const std::string_view gradient = input.substr(serialised.size());

  const Outcome first = Run(start, gradient, first_cut);
  const Outcome second = Run(start, gradient, second_cut);
  FUZZ_CHECK(first.status.code() == second.status.code());
  FUZZ_CHECK(first.status.ok() || !first.status.message().empty());
  if (first.status.ok()) {
    CheckSameNorms(first.result.norm(), second.result.norm());
    FUZZ_CHECK(SameDouble(first.result.coefficient(), second.result.coefficient()));
    FUZZ_CHECK(first.clipped.empty() ? second.clipped.empty()
                                     : SameElements(start, first.clipped, second.clipped));
  }
  CheckClip(start, gradient, first);
  CheckCompute(start, gradient, second_cut, first);
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
