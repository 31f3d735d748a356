// The session against a slow, plain model: for any start message, gradient and cuts, the same
// verdict, norm and clipped bytes, and the same bits for other cuts.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>

#include "server/backend/backend.h"
#include "server/memory/arena.h"
#include "server/session/session.h"
#include "tests/fuzz/fuzz.h"
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

Outcome Run(const v1::ClipGradNormStart& start, std::string_view gradient, size_t cut_bytes) {
  static const std::unique_ptr<Backend> backend = MakeBackend("auto").value();
  static ArenaPool arenas;
  Session session(kMaxCallBytes, *backend, arenas);
  Outcome outcome;
  outcome.status = session.Start(start);
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

// Equal elements; one NaN is as good as another.
bool SameElements(const v1::ClipGradNormStart& start, std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (const v1::TensorSpec& tensor : start.tensors()) {
    uint64_t elements = 1;
    for (int64_t extent : tensor.shape()) elements *= extent;
    const auto dtype = static_cast<DType>(tensor.dtype());
    for (; elements > 0; --elements) {
      const bool both_nan = std::isnan(Decode(dtype, a)) && std::isnan(Decode(dtype, b));
      if (!both_nan && a.substr(0, ElementSize(dtype)) != b.substr(0, ElementSize(dtype))) {
        return false;
      }
      a.remove_prefix(ElementSize(dtype));
      b.remove_prefix(ElementSize(dtype));
    }
  }
  return true;
}

void CheckAnswer(const v1::ClipGradNormStart& start, std::string_view gradient,
                 const Outcome& outcome) {
  const v1::ClipResult& result = outcome.result;
  const double pre_scale = start.norm().has_pre_scale() ? start.norm().pre_scale() : 1;
  const double p = start.norm().has_norm_type() ? start.norm().norm_type() : 2;
  if (!start.has_total_norm() && p >= 0.01 && p <= 1000) {
    const double expected = static_cast<double>(ModelNorm(start, gradient) * pre_scale);
    const double norm = result.norm().total_norm();
    const double tolerance = 1e-11 / std::min(1.0, p);
    // Products at the ends of the range round by more than their size: pre_scale is applied in
    // double.
    const bool extreme = !(expected > 1e-290 && expected < 1e300);
    FUZZ_CHECK(extreme || std::abs(norm - expected) <= tolerance * expected ||
               SameDouble(norm, expected));
    FUZZ_CHECK(std::isnan(norm) == std::isnan(expected));
  }
  if (!result.gradient_follows()) {
    FUZZ_CHECK(outcome.clipped.empty());
  } else if (std::isnan(result.coefficient())) {
    FUZZ_CHECK(outcome.clipped.size() == gradient.size());
  } else {
    FUZZ_CHECK(SameElements(start, outcome.clipped, ModelScale(start, result, gradient)));
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
  if (!start.ParseFromArray(serialised.data(), static_cast<int>(serialised.size()))) return;
  const std::string_view gradient = input.substr(serialised.size());

  const Outcome first = Run(start, gradient, first_cut);
  const Outcome second = Run(start, gradient, second_cut);
  FUZZ_CHECK(first.status.code() == second.status.code());
  if (!first.status.ok()) {
    FUZZ_CHECK(!first.status.message().empty());
    return;
  }
  FUZZ_CHECK(DeclaredBytes(start) == gradient.size());
  FUZZ_CHECK(SameDouble(first.result.norm().total_norm(), second.result.norm().total_norm()));
  FUZZ_CHECK(SameDouble(first.result.coefficient(), second.result.coefficient()));
  FUZZ_CHECK(first.result.norm().first_nonfinite() == second.result.norm().first_nonfinite());
  FUZZ_CHECK(first.result.norm().nonfinite_elements() == second.result.norm().nonfinite_elements());
  FUZZ_CHECK(SameElements(start, first.clipped, second.clipped) || first.clipped.empty());
  CheckAnswer(start, gradient, first);
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
