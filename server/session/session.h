// One call's protocol, from start to the last reply byte, without the transport: refuses malformed
// streams, measures the gradient as it comes, decides, and scales what goes back.
// Not thread-safe; one per call.
#ifndef GRADCLIP_SERVER_SESSION_SESSION_H_
#define GRADCLIP_SERVER_SESSION_SESSION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"
#include "server/memory/arena.h"
#include "server/norm/gradient_norm.h"
#include "server/session/call_spec.h"

namespace gradclip {

// The order of events:
//   Start()  once
//   Data()   any number of times, in stream order
//   HalfClose()  when the caller has sent all
//   result(), then, where result().gradient_follows(), ScaleSegment() for each segment
// With a given total_norm (passes_through()), result() stands after Start() and PassThrough() takes
// the place of Data(). An event that returns an error ends the session: no other may follow.
class Session {
 public:
  // max_call_bytes: gradient bytes that may be kept (--max-call-bytes). Backend and arenas must
  // outlive the session.
  Session(uint64_t max_call_bytes, const Backend& backend, ArenaPool& arenas);
  ~Session();

  absl::Status Start(v1::ComputeNormStart start);
  absl::Status Start(v1::ClipGradNormStart start);

  // Whether `bytes` more may come: INVALID_ARGUMENT before the start and beyond what it declares.
  absl::Status CheckMayReceive(uint64_t bytes) const;

  // The next bytes of the gradient, cut anywhere. REQUIRES: admission of spec().bytes_to_keep().
  absl::Status Data(std::span<const std::byte> bytes);

  // The next bytes in; the clipped bytes of all elements that are complete by now are written to
  // `out`, which has room for bytes.size() + 7. *written says how many.
  absl::Status PassThrough(std::span<const std::byte> bytes, std::byte* out, size_t* written);

  // A request that is none of start and data: refusals.
  absl::Status Shared() const;
  absl::Status NoPayload() const;

  absl::Status HalfClose();

  // After an OK Start().
  bool started() const { return started_; }
  const CallSpec& spec() const { return spec_; }
  bool clips() const { return clips_; }  // ClipGradNorm's start, not ComputeNorm's
  bool passes_through() const { return spec_.total_norm.has_value(); }
  uint64_t received_bytes() const { return received_bytes_; }

  // After HalfClose() (ComputeNorm: norm() alone is meant).
  const v1::ClipResult& result() const { return result_; }

  // The clipped gradient, in the order in which its bytes came. Scale each segment once, in order.
  size_t segment_count() const;
  std::span<const std::byte> ScaleSegment(size_t index);
  // What the segments live in; hold it while their bytes are in use.
  const std::shared_ptr<ArenaBuffer>& gradient() const { return gradient_; }

 private:
  // Where in the declared gradient the stream stands.
  struct Position {
    size_t tensor = 0;
    uint64_t byte = 0;  // in that tensor
  };

  absl::Status Begin(absl::StatusOr<CallSpec> spec);
  absl::Status TakeElements(std::span<const std::byte> whole);
  void EnterTensors();  // begins the tensor at position_; ends those that have no (more) bytes
  void LeaveTensor();
  absl::Status Decide(double total_norm);
  bool ChangesAnything() const;
  void Scale(std::span<std::byte> elements);

  const uint64_t max_call_bytes_;
  const Backend& backend_;
  ArenaPool& arenas_;

  bool started_ = false;
  bool clips_ = false;
  CallSpec spec_;
  Position position_;
  bool in_tensor_ = false;
  uint64_t received_bytes_ = 0;

  // The bytes of an element that is not complete yet.
  std::array<std::byte, 8> partial_{};
  size_t partial_bytes_ = 0;

  std::optional<GradientNorm> norm_;
  std::shared_ptr<ArenaBuffer> gradient_;  // null where nothing is kept

  v1::ClipResult result_;
  bool assign_zero_ = false;

  // Where scaling stands among spec_.runs.
  size_t scale_run_ = 0;
  uint64_t scale_byte_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_SESSION_H_
