// The session against a slow, plain model: for any start message, gradient and cuts, the same
// verdict, norms, counts, decision and clipped bytes, and the same bits for other cuts.
#include <cstdint>
#include <optional>
#include <string>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/session_check.h"
#include "tests/model/answer.h"
#include "tests/model/model.h"

namespace gradclip {
namespace {

// A whole call, its gradient in parts of cut_bytes.
template <typename Start>
Ended Run(const Start& start, std::string_view gradient, size_t cut_bytes) {
  Session session({.backend = TheBackend(), .arenas = Arenas(), .max_call_bytes = kMaxCallBytes});
  Ended outcome;
  outcome.status = session.Start(Start(start));
  while (outcome.status.ok() && !gradient.empty()) {
    const std::string_view part = gradient.substr(0, cut_bytes);
    gradient.remove_prefix(part.size());
    outcome.status = SendData(session, part, outcome.clipped);
  }
  if (outcome.status.ok()) outcome.status = EndStream(session);
  if (outcome.status.ok()) TakeAnswer(session, outcome);
  return outcome;
}

void CheckClip(const v1::ClipGradNormStart& start, std::string_view gradient,
               const Ended& outcome) {
  CheckAnswer(start, gradient, ModelVerdict(start, gradient.size(), kMaxCallBytes),
              /*sent_as_data=*/true, outcome);
  if (!outcome.status.ok()) return;
  if (outcome.result.gradient_follows()) {
    FUZZ_CHECK(SameElements(start, outcome.clipped, ModelScale(start, outcome.result, gradient)));
  } else {
    FUZZ_CHECK(outcome.clipped.empty());
  }
}

// Two bytes: lengths of the cuts. Two bytes, little-endian: length of the serialised start. The
// start. The rest: the gradient.
void Check(std::string_view input) {
  if (input.size() < 2) return;
  const size_t first_cut = 1 + static_cast<uint8_t>(input[0]);
  const size_t second_cut = 1 + static_cast<uint8_t>(input[1]);
  input.remove_prefix(2);
  const std::optional<v1::ClipGradNormStart> start = TakeStart(input);
  if (!start.has_value()) return;

  const Ended first = Run(*start, input, first_cut);
  const Ended second = Run(*start, input, second_cut);
  FUZZ_CHECK(first.status.code() == second.status.code());
  FUZZ_CHECK(first.status.ok() || !first.status.message().empty());
  if (first.status.ok()) {
    CheckSameNorms(first.result.norm(), second.result.norm());
    FUZZ_CHECK(SameDouble(first.result.coefficient(), second.result.coefficient()));
    FUZZ_CHECK(first.clipped.empty() ? second.clipped.empty()
                                     : SameElements(*start, first.clipped, second.clipped));
  }
  CheckClip(*start, input, first);
  const v1::ComputeNormStart compute = ComputeStart(*start);
  CheckComputed(*start, input, ModelVerdict(compute, input.size()), first,
                Run(compute, input, second_cut));
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
