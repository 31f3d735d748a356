// What the session's fuzz targets share: a whole call, and what the model says of its outcome.
#ifndef GRADCLIP_TESTS_FUZZ_SESSION_CHECK_H_
#define GRADCLIP_TESTS_FUZZ_SESSION_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"
#include "server/memory/arena.h"
#include "server/session/session.h"

namespace gradclip {

inline constexpr uint64_t kMaxCallBytes = 1 << 20;

const Backend& TheBackend();
ArenaPool& Arenas();

// Takes two bytes off the input, little-endian the length of a serialised start, and the start.
// None where there is none.
std::optional<v1::ClipGradNormStart> TakeStart(std::string_view& input);

// ComputeNorm of the same.
v1::ComputeNormStart ComputeStart(const v1::ClipGradNormStart& start);

struct Ended {
  absl::Status status;
  v1::ClipResult result;
  std::string clipped;
  std::string backend{TheBackend().name()};  // what must have measured
};

// The next bytes of the gradient. With a given norm, what comes back goes to `clipped`.
absl::Status SendData(Session& session, std::string_view bytes, std::string& clipped);

// HalfClose(). With a group, concludes with what this one rank alone has, which has gone over the
// wire: the answer is that without a group.
absl::Status EndStream(Session& session);

// After EndStream() and the work: the result, and the clipped bytes where they follow it.
void TakeAnswer(Session& session, Ended& outcome);

bool SameDouble(double a, double b);

// To the bit, but for zeros' and NaNs' signs.
void CheckSameNorms(const v1::NormResult& a, const v1::NormResult& b);

// Verdict, norms, counts and decision of a call that got `gradient`. `verdict` leaves out what the
// norm's value decides, as ModelVerdict() does. sent_as_data: at least some of it came as data.
void CheckAnswer(const v1::ClipGradNormStart& start, std::string_view gradient,
                 absl::StatusCode verdict, bool sent_as_data, const Ended& outcome);

// The same of ComputeNorm, which got the gradient as `clip` did.
void CheckComputed(const v1::ClipGradNormStart& start, std::string_view gradient,
                   absl::StatusCode verdict, const Ended& clip, const Ended& outcome);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_FUZZ_SESSION_CHECK_H_
