#include "tests/fuzz/session_check.h"

#include <google/protobuf/stubs/logging.h>

#include <cmath>
#include <memory>

#include "tests/fuzz/fuzz.h"
#include "tests/model/answer.h"

namespace gradclip {
namespace {

std::span<const std::byte> AsBytes(std::string_view bytes) {
  return std::as_bytes(std::span(bytes));
}

void CheckNorm(const Ended& outcome, const ModelNorm& model, bool per_tensor) {
  const v1::NormResult& norm = outcome.result.norm();
  FUZZ_CHECK(model.total.Holds(norm.total_norm()));
  FUZZ_CHECK(norm.nonfinite_elements() == model.nonfinite_elements);
  FUZZ_CHECK(norm.group_nonfinite_elements() == model.nonfinite_elements);
  FUZZ_CHECK(norm.first_nonfinite() == model.first_nonfinite);
  FUZZ_CHECK(norm.backend() == outcome.backend);
  FUZZ_CHECK(norm.tensors_size() == (per_tensor ? static_cast<int>(model.tensors.size()) : 0));
  for (int i = 0; i < norm.tensors_size(); ++i) {
    FUZZ_CHECK(model.tensors[i].norm.Holds(norm.tensors(i).norm()));
    FUZZ_CHECK(norm.tensors(i).nonfinite_elements() == model.tensors[i].nonfinite_elements);
    FUZZ_CHECK(norm.tensors(i).zero_elements() == model.tensors[i].zero_elements);
  }
}

// The decision to the bit; where norm and epsilon together are beyond double, to a rounding.
void CheckDecision(const v1::ClipGradNormStart& start, bool sent_as_data,
                   const v1::ClipResult& result) {
  const double total_norm = result.norm().total_norm();
  const v1::ClipResult model = ModelDecide(start, total_norm);
  const double epsilon = start.has_epsilon() ? start.epsilon() : 1e-6;
  const bool beyond = std::isfinite(total_norm) && std::isinf(total_norm + epsilon);
  FUZZ_CHECK(SameDouble(result.coefficient(), model.coefficient()) ||
             (beyond && std::abs(result.coefficient() - model.coefficient()) <=
                            0x1p-52 * model.coefficient() + 0x1p-1074));
  FUZZ_CHECK(result.clipped() == model.clipped());
  FUZZ_CHECK(result.skipped() == model.skipped());
  // A result that goes out at once can't know how the gradient will come.
  const bool may_follow = sent_as_data || start.has_total_norm();
  FUZZ_CHECK(result.gradient_follows() == (may_follow && model.gradient_follows()));
}

}  // namespace

const Backend& TheBackend() {
  static const std::unique_ptr<Backend> backend = MakeBackend("auto").value();
  return *backend;
}

ArenaPool& Arenas() {
  static ArenaPool arenas;
  return arenas;
}

std::optional<v1::ClipGradNormStart> TakeStart(std::string_view& input) {
  if (input.size() < 2) return std::nullopt;
  const size_t bytes = static_cast<uint8_t>(input[0]) | static_cast<uint8_t>(input[1]) << 8;
  const std::string_view serialised = input.substr(2, bytes);
  input.remove_prefix(2 + serialised.size());
  v1::ClipGradNormStart start;
  const google::protobuf::LogSilencer silence;  // most inputs are no message
  if (!start.ParseFromArray(serialised.data(), static_cast<int>(serialised.size()))) {
    return std::nullopt;
  }
  return start;
}

v1::ComputeNormStart ComputeStart(const v1::ClipGradNormStart& start) {
  v1::ComputeNormStart compute;
  *compute.mutable_tensors() = start.tensors();
  if (start.has_norm()) *compute.mutable_norm() = start.norm();
  if (start.has_group()) *compute.mutable_group() = start.group();
  return compute;
}

absl::Status SendData(Session& session, std::string_view bytes, std::string& clipped) {
  if (!session.passes_through()) return session.Data(AsBytes(bytes));
  std::string out(bytes.size() + 7, '\0');
  size_t written = 0;
  absl::Status status =
      session.PassThrough(AsBytes(bytes), reinterpret_cast<std::byte*>(out.data()), &written);
  clipped += out.substr(0, written);
  return status;
}

absl::Status EndStream(Session& session) {
  if (absl::Status closed = session.HalfClose(); !closed.ok()) return closed;
  if (!session.spec().group.has_value()) return absl::OkStatus();
  const absl::StatusOr<Outcome> outcome = Merge({{0, session.contribution().Serialize()}});
  FUZZ_CHECK(outcome.ok());
  return session.Conclude(*outcome);
}

void TakeAnswer(Session& session, Ended& outcome) {
  outcome.result = session.result();
  if (!outcome.result.gradient_follows()) return;
  while (session.has_segment()) {
    const absl::StatusOr<ReplySegment> segment = session.NextSegment();
    FUZZ_CHECK(segment.ok());
    outcome.clipped.append(reinterpret_cast<const char*>(segment->bytes.data()),
                           segment->bytes.size());
  }
}

bool SameDouble(double a, double b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

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

void CheckAnswer(const v1::ClipGradNormStart& start, std::string_view gradient,
                 absl::StatusCode verdict, bool sent_as_data, const Ended& outcome) {
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
    CheckNorm(outcome, model, start.norm().per_tensor());
  }
  FUZZ_CHECK(start.nonfinite() != v1::NONFINITE_ERROR || std::isfinite(norm.total_norm()));
  CheckDecision(start, sent_as_data, outcome.result);
}

void CheckComputed(const v1::ClipGradNormStart& start, std::string_view gradient,
                   absl::StatusCode verdict, const Ended& clip, const Ended& outcome) {
  FUZZ_CHECK(outcome.status.code() == verdict);
  if (!outcome.status.ok()) return;
  if (clip.status.ok() && !start.has_total_norm()) {
    CheckSameNorms(outcome.result.norm(), clip.result.norm());
  } else {
    CheckNorm(outcome, ModelMeasure(start, gradient), start.norm().per_tensor());
  }
}

}  // namespace gradclip
