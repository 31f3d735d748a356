// Gradients that a device measures and keeps: the same answers as the host gives.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "server/memory/budget.h"
#include "server/shm/registry.h"
#include "tests/server/session/gradients.h"
#include "tests/server/session/host_device.h"
#include "tests/server/session/session_fixture.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr auto kUnavailable = absl::StatusCode::kUnavailable;
constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;

const absl::Status kBroken = absl::UnavailableError("the device is broken");

struct Answer {
  absl::Status status;
  std::string result;  // without the backend's name
  std::string backend;
  std::string clipped;
};

class DeviceSession : public SessionTest {
 protected:
  DeviceSession() : devices_in_host_memory_(*backend_) { UseDevices(true); }
  ~DeviceSession() override { session_.reset(); }

  HostDevices& devices() { return devices_in_host_memory_; }
  void UseDevices(bool use) { devices_ = use ? &devices_in_host_memory_ : nullptr; }

  // A whole call, its data cut into messages of up to `most` bytes, at random where that is below
  // the gradient's size.
  template <typename Start>
  Answer Ask(const Start& start, std::string_view bytes, size_t most = ~size_t{0},
             uint64_t seed = 1) {
    std::mt19937_64 random(seed);
    Restart();
    Answer answer;
    answer.status = Send(start);
    while (answer.status.ok() && !bytes.empty()) {
      const size_t cut = most < bytes.size() ? random() % (most + 1) : bytes.size();
      answer.status = Send(bytes.substr(0, cut));
      bytes.remove_prefix(cut);
    }
    if (answer.status.ok()) answer.status = HalfClose();
    if (answer.status.ok()) Receive(answer);
    return answer;
  }

  void Receive(Answer& answer) {
    v1::ClipResult result = session_->result();
    answer.backend = result.norm().backend();
    result.mutable_norm()->clear_backend();
    answer.result = result.SerializeAsString();
    if (!result.gradient_follows()) return;
    while (session_->has_segment()) {
      const absl::StatusOr<ReplySegment> segment = session_->NextSegment();
      answer.status = segment.status();
      if (!segment.ok()) return;
      EXPECT_LE(segment->bytes.size(), ArenaBuffer::kSegmentBytes);
      EXPECT_GT(segment->bytes.size(), 0u);
      answer.clipped.append(reinterpret_cast<const char*>(segment->bytes.data()),
                            segment->bytes.size());
    }
  }

  template <typename Start>
  Answer AskHost(const Start& start, std::string_view bytes) {
    UseDevices(false);
    Answer answer = Ask(start, bytes);
    UseDevices(true);
    EXPECT_EQ(answer.status, absl::OkStatus());
    EXPECT_EQ(answer.backend, backend_->name());
    return answer;
  }

  static void ExpectSame(const Answer& answer, const Answer& host) {
    EXPECT_EQ(answer.status, absl::OkStatus());
    EXPECT_EQ(answer.result, host.result);
    EXPECT_TRUE(answer.clipped == host.clipped);
  }

  // Expects the host's answer from the device, for some cuts and numbers of slots.
  template <typename Start>
  void ExpectTheHostsAnswer(const Start& start, std::string_view bytes) {
    const Answer host = AskHost(start, bytes);
    for (const auto& [slots, most] : {std::pair<size_t, size_t>{1, ~size_t{0}},
                                      {2, 70'001},
                                      {3, size_t{3} << 20},
                                      {2, bytes.size() / 200}}) {
      SCOPED_TRACE(testing::Message() << slots << " slots, messages of up to " << most);
      devices().set_slots(slots);
      const Answer answer = Ask(start, bytes, most, slots);
      ExpectSame(answer, host);
      EXPECT_EQ(answer.backend, HostDevices::kName);
      EXPECT_EQ(devices().measured_slots(), devices().promised_slots());
      EXPECT_EQ(devices().open_queues(), 0u);
    }
  }

 private:
  HostDevices devices_in_host_memory_;
};

constexpr int64_t kSlot = DeviceQueue::kSlotBytes;

// Tensors of about 24 MiB in all, with blocks and slots that end, or nearly end, with one.
Case SeveralSlots(uint64_t seed, double norm_type, bool per_tensor, bool nonfinite) {
  return MakeCase({{4095},
                   {kSlot / 4},
                   {4097},
                   {0},
                   {kSlot / 2 + 1},
                   {1},
                   {kSlot / 8 - 1},
                   {4096, 3},
                   {kSlot - 7},
                   {2, 0},
                   {1'234'567}},
                  seed, norm_type, per_tensor, nonfinite);
}

TEST_F(DeviceSession, GivesTheHostsAnswerForSeveralSlots) {
  uint64_t seed = 1;
  for (const double p : {1.0, 2.0, kInfinity}) {
    for (const bool nonfinite : {false, true}) {
      SCOPED_TRACE(testing::Message() << "p = " << p << (nonfinite ? ", not finite" : ""));
      ++seed;
      const Case made = SeveralSlots(seed, p, /*per_tensor=*/seed % 3 == 0, nonfinite);
      ExpectTheHostsAnswer(made.start, made.bytes);
    }
  }
}

TEST_F(DeviceSession, GivesTheHostsAnswerForAllKindsOfTensors) {
  uint64_t seed = 10;
  for (const double p : {1.0, 2.0, kInfinity}) {
    for (const bool per_tensor : {false, true}) {
      for (const bool nonfinite : {false, true}) {
        SCOPED_TRACE(testing::Message() << "p = " << p << ", seed " << seed);
        const Case made = AllKinds(seed++, p, per_tensor, nonfinite);
        ExpectTheHostsAnswer(made.start, made.bytes);
      }
    }
  }
}

TEST_F(DeviceSession, GivesTheHostsAnswerForThousandsOfTinyTensors) {
  std::vector<std::vector<int64_t>> shapes;
  for (int64_t i = 0; i < 5000; ++i) shapes.push_back({i % 7, i % 11 == 3 ? 0 : 1});
  for (const bool per_tensor : {false, true}) {
    const Case made = MakeCase(shapes, 2, 2, per_tensor, /*nonfinite=*/false);
    ExpectTheHostsAnswer(made.start, made.bytes);
  }
  EXPECT_GE(devices().measured_slots(), 4000 / DeviceQueue::kSlotRuns);
}

TEST_F(DeviceSession, GivesTheHostsAnswerWhereSquaresLeaveTheRangeOfDouble) {
  v1::ClipGradNormStart start;
  std::string bytes;
  for (const double scale : {1e-200, 1e200, 0.0, 1.0}) {
    *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {9000});
    for (int i = 0; i < 9000; ++i) bytes += Bytes<double>({scale * (i % 10)});
  }
  start.set_max_norm(1);
  for (const double p : {1.0, 2.0}) {
    for (const bool per_tensor : {false, true}) {
      start.mutable_norm()->set_norm_type(p);
      start.mutable_norm()->set_per_tensor(per_tensor);
      ExpectTheHostsAnswer(start, bytes);
    }
  }
}

TEST_F(DeviceSession, NamesTheFirstNonfiniteElementOfCountedTensors) {
  v1::ClipGradNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {5000}, "replica");
  start.mutable_tensors(0)->set_replica(true);
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {10'000}, "w");
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT64, {1'000'000}, "v");
  start.set_max_norm(1);
  std::vector<float> replica(5000, 1), w(10'000, 1);
  std::vector<double> v(1'000'000, 1);
  replica[3] = std::numeric_limits<float>::quiet_NaN();
  w[4100] = w[9000] = std::numeric_limits<float>::infinity();
  v[999'999] = -kInfinity;
  for (const double p : {1.0, 2.0, kInfinity}) {
    for (const bool per_tensor : {false, true}) {
      start.mutable_norm()->set_norm_type(p);
      start.mutable_norm()->set_per_tensor(per_tensor);
      ExpectTheHostsAnswer(start, Bytes(replica) + Bytes(w) + Bytes(v));
      EXPECT_EQ(result().norm().first_nonfinite(), "w[4100]");
      EXPECT_EQ(result().norm().nonfinite_elements(), 3u);
    }
  }
}

TEST_F(DeviceSession, ScalesOnlyWhereSomethingChangesAndKeepsOnlyWhatComesBack) {
  Case made = SeveralSlots(4, 2, false, false);
  made.start.mutable_norm()->set_pre_scale(1);
  made.start.set_max_norm(1e9);
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_TRUE(result().gradient_follows());
  made.start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_FALSE(result().gradient_follows());
  made.start.set_reply(v1::REPLY_COEFFICIENT);
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_EQ(devices().scaled_pieces(), 0u);

  made.start.set_max_norm(1);
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_EQ(devices().scaled_pieces(), 0u);
  made.start.set_reply(v1::REPLY_GRADIENT_IF_CHANGED);
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_GT(devices().scaled_pieces(), 0u);
}

TEST_F(DeviceSession, AssignsZerosWhereThePolicySaysSo) {
  Case made = SeveralSlots(5, 2, false, /*nonfinite=*/true);  // NONFINITE_ZERO
  ExpectTheHostsAnswer(made.start, made.bytes);
  EXPECT_TRUE(result().skipped());
  made.start.set_nonfinite(v1::NONFINITE_SKIP);
  ExpectTheHostsAnswer(made.start, made.bytes);
  made.start.set_nonfinite(v1::NONFINITE_ERROR);
  EXPECT_THAT(Ask(made.start, made.bytes).status,
              Refuses(absl::StatusCode::kFailedPrecondition, "NONFINITE_ERROR"));
}

TEST_F(DeviceSession, ComputesNorms) {
  const Case made = SeveralSlots(6, 1, true, true);
  v1::ComputeNormStart start;
  *start.mutable_tensors() = made.start.tensors();
  *start.mutable_norm() = made.start.norm();
  ExpectTheHostsAnswer(start, made.bytes);
}

TEST_F(DeviceSession, ScalesByTheCoefficientOfAGroup) {
  Case made = AllKinds(7, 2, false, false);
  made.start.mutable_group()->set_job("job");
  made.start.mutable_group()->set_world_size(1);
  std::string expected;
  for (const bool on_device : {false, true}) {
    UseDevices(on_device);
    Restart();
    ASSERT_EQ(Send(made.start), absl::OkStatus());
    ASSERT_EQ(Send(made.bytes), absl::OkStatus());
    ASSERT_EQ(HalfClose(), absl::OkStatus());
    const absl::StatusOr<Outcome> outcome = Merge({{0, session_->contribution().Serialize()}});
    ASSERT_EQ(outcome.status(), absl::OkStatus());
    ASSERT_EQ(session_->Conclude(*outcome), absl::OkStatus());
    if (!on_device) expected = ClippedBytes();
  }
  EXPECT_EQ(devices().open_queues(), 1u);
  EXPECT_TRUE(ClippedBytes() == expected);
  EXPECT_EQ(devices().open_queues(), 0u);
}

TEST_F(DeviceSession, LeavesSegmentsToTheirOwners) {
  const Case made = SeveralSlots(8, 2, false, false);
  const Answer host = AskHost(made.start, made.bytes);
  Restart();
  ASSERT_EQ(Send(made.start), absl::OkStatus());
  ASSERT_EQ(Send(made.bytes), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  std::vector<ReplySegment> segments;
  while (session_->has_segment()) segments.push_back(*session_->NextSegment());
  session_.reset();
  std::string clipped;
  for (const ReplySegment& segment : segments) {
    clipped.append(reinterpret_cast<const char*>(segment.bytes.data()), segment.bytes.size());
  }
  EXPECT_TRUE(clipped == host.clipped);
}

TEST_F(DeviceSession, StaysOnTheHostForOtherNormsAndGivenOnes) {
  Case made = AllKinds(9, 3, false, false);
  EXPECT_EQ(Ask(made.start, made.bytes).backend, backend_->name());
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_total_norm(2);
  ASSERT_EQ(Send(start).code(), absl::StatusCode::kInvalidArgument);  // a second start
  Restart();
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_EQ(result().norm().backend(), backend_->name());
  EXPECT_EQ(Ask(ClipStart(1, 0), "").backend, backend_->name());
  EXPECT_EQ(devices().calls(), 0u);
}

TEST_F(DeviceSession, LeavesNothingOpenWhereACallIsAbandonedOrRefused) {
  const Case made = SeveralSlots(11, 2, false, false);
  for (const size_t bytes : {size_t{1}, size_t{5'000'000}, made.bytes.size()}) {
    Restart();
    ASSERT_EQ(Send(made.start), absl::OkStatus());
    ASSERT_EQ(Send(std::string_view(made.bytes).substr(0, bytes)), absl::OkStatus());
  }
  EXPECT_EQ(devices().open_queues(), 1u);
  EXPECT_GT(devices().kept_pieces(), 5u);
  EXPECT_EQ(Send("x").code(), absl::StatusCode::kInvalidArgument);
  Restart();
  EXPECT_EQ(devices().open_queues(), 0u);
  EXPECT_EQ(devices().kept_pieces(), 0u);
}

TEST_F(DeviceSession, GoesOnOnTheHostWhereTheDeviceFailsAnywhere) {
  for (const bool per_tensor : {false, true}) {
    Case made = SeveralSlots(12, 2, per_tensor, true);
    made.start.set_reply(v1::REPLY_COEFFICIENT);
    const Answer host = AskHost(made.start, made.bytes);
    for (const size_t slots : {1, 2, 3}) {
      devices().set_slots(slots);
      const uint64_t before = devices().calls();
      ASSERT_EQ(Ask(made.start, made.bytes).backend, HostDevices::kName);
      const uint64_t calls = devices().calls() - before;
      ASSERT_GT(calls, 20u);
      for (uint64_t n = 0; n < calls; ++n) {
        SCOPED_TRACE(testing::Message() << slots << " slots, call " << n);
        devices().FailAt(n, n % 2 == 0 ? kBroken : absl::ResourceExhaustedError("full"));
        const Answer answer = Ask(made.start, made.bytes, 100'000, n);
        ExpectSame(answer, host);
        EXPECT_EQ(answer.backend, backend_->name());
        EXPECT_TRUE(session_->fell_back());
        EXPECT_EQ(devices().open_queues(), 0u);
      }
      devices().NeverFail();
      EXPECT_EQ(Ask(made.start, made.bytes).status, absl::OkStatus());
      EXPECT_FALSE(session_->fell_back());
    }
  }
}

TEST_F(DeviceSession, LosesOnlyWhatTheDeviceAloneKept) {
  const Case made = SeveralSlots(13, 1, true, false);
  const Answer host = AskHost(made.start, made.bytes);
  for (const size_t slots : {1, 2, 3}) {
    devices().set_slots(slots);
    const uint64_t before = devices().calls();
    ASSERT_EQ(Ask(made.start, made.bytes).backend, HostDevices::kName);
    const uint64_t calls = devices().calls() - before;
    for (uint64_t n = 0; n < calls; ++n) {
      SCOPED_TRACE(testing::Message() << slots << " slots, call " << n);
      devices().FailAt(n, kBroken);
      const Answer answer = Ask(made.start, made.bytes, size_t{1} << 20, n);
      // Until Open(), Measure() for each slot and the first Await() the slots hold all.
      if (n <= slots + 1) {
        ExpectSame(answer, host);
        EXPECT_EQ(answer.backend, backend_->name());
      } else {
        EXPECT_THAT(answer.status, AllOf(Refuses(kUnavailable, "host/7 failed with the gradient's"),
                                         Refuses(kUnavailable,
                                                 "the device is broken. Send the "
                                                 "call again")));
      }
      Restart();
      EXPECT_EQ(devices().open_queues(), 0u);
      EXPECT_EQ(devices().kept_pieces(), 0u);
    }
    devices().NeverFail();
  }
}

TEST_F(DeviceSession, EndsWithTheDevicesStatusWhereTheHostMayNotGoOn) {
  host_on_device_error_ = false;
  Case made = SeveralSlots(14, 2, false, false);
  for (const v1::ReplyMode reply : {v1::REPLY_COEFFICIENT, v1::REPLY_GRADIENT}) {
    made.start.set_reply(reply);
    const uint64_t before = devices().calls();
    ASSERT_EQ(Ask(made.start, made.bytes).status, absl::OkStatus());
    const uint64_t calls = devices().calls() - before;
    for (uint64_t n = 0; n < calls; ++n) {
      devices().FailAt(n, kBroken);
      EXPECT_EQ(Ask(made.start, made.bytes).status, kBroken) << n;
    }
    devices().FailAt(1, absl::ResourceExhaustedError("full"));
    EXPECT_EQ(Ask(made.start, made.bytes).status, absl::ResourceExhaustedError("full"));
    devices().NeverFail();
  }
}

TEST_F(DeviceSession, TakesADeviceWithoutMemoryForTheHostOrSaysWhichFlagSetsIt) {
  const Case made = AllKinds(15, 2, false, false);
  const Answer host = AskHost(made.start, made.bytes);
  devices().FailAt(0, absl::ResourceExhaustedError("host/7 has 5 bytes left"));
  ExpectSame(Ask(made.start, made.bytes), host);
  host_on_device_error_ = false;
  devices().FailAt(0, absl::ResourceExhaustedError("host/7 has 5 bytes left (--flag)"));
  EXPECT_THAT(Ask(made.start, made.bytes).status,
              AllOf(Refuses(kExhausted, "(--flag)"), Refuses(kExhausted, "host/7 has 5 bytes left"),
                    Refuses(kExhausted, "--on-gpu-error=cpu"),
                    Refuses(kExhausted, std::to_string(made.bytes.size()) + " bytes")));
}

// Data that a device has taken, and then memory that is shared.
class HandOver : public DeviceSession {
 protected:
  HandOver() : budget_(uint64_t{1} << 30), registry_(Limits(), budget_) { regions_ = &registry_; }
  ~HandOver() override { session_.reset(); }

  static RegionLimits Limits() {
    return {.max_shared_bytes = uint64_t{1} << 30, .max_shared_bytes_per_peer = uint64_t{1} << 30};
  }

  // Sends the first `bytes` as data, the others as shared memory. Where all goes well `clipped` is
  // of both.
  Answer AskMixed(const Case& made, size_t bytes) {
    MappedMemfd memory(made.bytes.size() + 8 * made.start.tensors_size());
    const absl::StatusOr<RegionToken> token =
        registry_.Register(getuid(), memory.memfd().get(), memory.size(), /*read_only=*/false);
    const absl::Cleanup forget = [&] { registry_.Forget(*token); };
    v1::SharedRanges ranges;
    ranges.set_region(token->data(), token->size());
    // Each tensor begins at a multiple of 8.
    size_t begin = 0;
    size_t free = 0;
    for (const v1::TensorSpec& tensor : made.start.tensors()) {
      const size_t end = begin + CountElements(tensor) * SizeOfElement(tensor);
      const size_t first = std::max(begin, bytes);
      if (first < end) {
        memory.Write(free, std::string_view(made.bytes).substr(first, end - first));
        ranges.add_offset(free);
        ranges.add_length(end - first);
        free = (free + end - first + 7) / 8 * 8;
      }
      begin = end;
    }

    Restart();
    Answer answer;
    answer.status = Send(made.start);
    if (answer.status.ok()) answer.status = Send(std::string_view(made.bytes).substr(0, bytes));
    if (answer.status.ok()) answer.status = session_->Shared(ranges);
    if (!answer.status.ok()) return answer;
    EXPECT_EQ(devices().open_queues(), 0u);
    Work();
    answer.status = HalfClose();
    session_->ScaleShared();
    Work();
    if (answer.status.ok()) Receive(answer);
    for (int i = 0; i < ranges.offset_size(); ++i) {
      answer.clipped += memory.Read(ranges.offset(i), ranges.length(i));
    }
    return answer;
  }

 private:
  void Work() {
    for (size_t i = 0; i < session_->work_tasks(); ++i) session_->RunTask(i);
    EXPECT_EQ(session_->FinishWork(), absl::OkStatus());
  }

  MemoryBudget budget_;
  RegionRegistry registry_;
};

TEST_F(HandOver, GivesTheHostsAnswerWhereverDataEnds) {
  std::mt19937_64 random(16);
  for (const double p : {1.0, 2.0, kInfinity}) {
    const bool per_tensor = p != 2;
    const Case made = SeveralSlots(16, p, per_tensor, /*nonfinite=*/p == 1);
    const Answer host = AskHost(made.start, made.bytes);
    for (const auto& [bytes, size] : SomeElementStarts(made, random, 2)) {
      if (bytes == 0) continue;
      SCOPED_TRACE(testing::Message() << "p = " << p << ", data up to " << bytes);
      devices().set_slots(1 + random() % 3);
      const Answer answer = AskMixed(made, bytes);
      ExpectSame(answer, host);
      EXPECT_EQ(answer.backend, backend_->name());
    }
  }
  EXPECT_GT(devices().opened(), 10u);
}

TEST_F(HandOver, LosesOnlyWhatTheDeviceAloneKept) {
  Case made = SeveralSlots(17, 2, true, false);
  const Answer host = AskHost(made.start, made.bytes);
  const size_t bytes = 16'000'008;
  const uint64_t before = devices().calls();
  ExpectSame(AskMixed(made, bytes), host);
  const uint64_t calls = devices().calls() - before;
  ASSERT_GT(calls, 20u);
  for (uint64_t n = 0; n < calls; ++n) {
    SCOPED_TRACE(testing::Message() << "call " << n);
    devices().FailAt(n, kBroken);
    const Answer answer = AskMixed(made, bytes);
    if (n <= 3) {
      ExpectSame(answer, host);
    } else {
      EXPECT_THAT(answer.status, Refuses(kUnavailable, "Send the call again"));
    }
  }
  Restart();
  EXPECT_EQ(devices().open_queues(), 0u);
}

TEST_F(HandOver, StaysOnTheHostWhereSharedMemoryComesFirst) {
  const Case made = AllKinds(18, 2, false, false);
  const Answer host = AskHost(made.start, made.bytes);
  const Answer answer = AskMixed(made, 0);
  EXPECT_EQ(answer.status, absl::OkStatus());
  EXPECT_EQ(answer.backend, backend_->name());
  EXPECT_TRUE(answer.clipped == host.clipped);
  EXPECT_EQ(devices().calls(), 0u);
}

}  // namespace
}  // namespace gradclip
