// Gradients in registered memory of a device, alone and mixed with the host's and with data: the
// same answers as all data gives, and what becomes of a call whose device fails.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/memory/budget.h"
#include "server/shm/registry.h"
#include "tests/server/session/gradients.h"
#include "tests/server/session/host_device.h"
#include "tests/server/session/session_fixture.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

class DeviceMemorySession : public SessionTest {
 protected:
  DeviceMemorySession() {
    regions_ = &registry_;
    max_ranges_ = 10'000;
  }
  ~DeviceMemorySession() override { session_.reset(); }  // it holds regions

  // `bytes` of device memory with a few bytes before and behind; its token.
  std::string Register(const std::string& bytes, bool read_only = false) {
    memory_.assign(bytes.size() + 2 * kMargin, std::byte{0x5a});
    std::memcpy(memory_.data() + kMargin, bytes.data(), bytes.size());
    return Token(kMargin, bytes.size(), read_only);
  }
  std::string Token(uint64_t offset, uint64_t length, bool read_only = false) {
    const absl::StatusOr<RegionToken> token =
        registry_.Register(7, HostDevices::Export(memory_.data(), offset, length), read_only);
    EXPECT_TRUE(token.ok()) << token.status();
    return std::string(reinterpret_cast<const char*>(token->data()), token->size());
  }

  // What lies there now.
  std::string Memory() const {
    for (size_t i = 0; i < kMargin; ++i) {
      EXPECT_EQ(memory_[i], std::byte{0x5a});
      EXPECT_EQ(memory_[memory_.size() - 1 - i], std::byte{0x5a});
    }
    return std::string(reinterpret_cast<const char*>(memory_.data()) + kMargin,
                       memory_.size() - 2 * kMargin);
  }

  static v1::SharedRanges Range(const std::string& region, uint64_t offset, uint64_t length) {
    v1::SharedRanges ranges;
    ranges.set_region(region);
    ranges.add_offset(offset);
    ranges.add_length(length);
    return ranges;
  }

  // Runs the tasks at hand on two threads.
  absl::Status Work() {
    const size_t tasks = session_->work_tasks();
    std::thread odd([&] {
      for (size_t i = 1; i < tasks; i += 2) session_->RunTask(i);
    });
    for (size_t i = 0; i < tasks; i += 2) session_->RunTask(i);
    odd.join();
    return session_->FinishWork();
  }

  using SessionTest::Send;
  absl::Status Send(const v1::SharedRanges& ranges) {
    const absl::Status taken = session_->Shared(ranges);
    if (!taken.ok()) return taken;
    EXPECT_EQ(session_->work_waits(), session_->work_tasks() > 0);
    return Work();
  }
  absl::Status Finish() {
    if (absl::Status closed = HalfClose(); !closed.ok()) return closed;
    session_->ScaleShared();
    return Work();
  }

  // A call with all of a case's bytes in one region, each tensor where its elements are aligned.
  absl::Status Ask(const Case& made) {
    v1::SharedRanges ranges;
    std::string spread;
    size_t begin = 0;
    for (const v1::TensorSpec& tensor : made.start.tensors()) {
      spread.resize((spread.size() + 7) / 8 * 8);
      const size_t bytes = CountElements(tensor) * SizeOfElement(tensor);
      ranges.add_offset(spread.size());
      ranges.add_length(bytes);
      spread += made.bytes.substr(begin, bytes);
      begin += bytes;
    }
    ranges.set_region(Register(spread));
    laid_out_ = ranges;
    Restart();
    if (absl::Status started = Send(made.start); !started.ok()) return started;
    if (absl::Status sent = Send(ranges); !sent.ok()) return sent;
    return Finish();
  }
  // The elements of the last Ask() as they are now, as data would have them.
  std::string Elements() const {
    std::string elements;
    const std::string memory = Memory();
    for (int i = 0; i < laid_out_.offset_size(); ++i) {
      elements += memory.substr(laid_out_.offset(i), laid_out_.length(i));
    }
    return elements;
  }

  struct Expected {
    v1::ClipResult result;
    std::string bytes;
  };
  // What the host makes of the case as data.
  Expected AskHost(const Case& made) {
    Restart();
    Run(made.start, made.bytes);
    return {result(), ClippedBytes()};
  }
  // The same but for who measured, and that nothing follows.
  void ExpectResult(Expected expected, const char* backend = HostDevices::kName) const {
    expected.result.mutable_norm()->set_backend(backend);
    expected.result.set_gradient_follows(result().gradient_follows());
    EXPECT_EQ(result().ShortDebugString(), expected.result.ShortDebugString());
  }

  static constexpr size_t kMargin = 64;
  std::vector<std::byte> memory_;
  v1::SharedRanges laid_out_;
  HostDevices on_device_{*backend_};
  MemoryBudget budget_{1};  // none is charged
  RegionRegistry registry_{
      {.max_shared_bytes = uint64_t{1} << 30, .max_shared_bytes_per_peer = uint64_t{1} << 30},
      budget_,
      &on_device_};
};

TEST_F(DeviceMemorySession, ClipsTheWorkedExampleInPlace) {
  const std::string region = Register(Bytes<float>({3, 4, 1, 2}));
  Restart();
  ASSERT_EQ(Send(ClipStart(5, 2)), absl::OkStatus());
  ASSERT_EQ(Send(Range(region, 0, 16)), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_NEAR(result().norm().total_norm(), std::sqrt(30.0), 1e-12);
  EXPECT_EQ(result().norm().backend(), HostDevices::kName);
  EXPECT_FALSE(result().gradient_follows());
  const float c = static_cast<float>(result().coefficient());
  EXPECT_EQ(Memory(), Bytes<float>({3 * c, 4 * c, 1 * c, 2 * c}));
}

TEST_F(DeviceMemorySession, GivesTheAnswersOfDataForAllKinds) {
  uint64_t seed = 1;
  for (const double p : {1.0, 2.0, kInfinity}) {
    for (const bool per_tensor : {false, true}) {
      for (const bool nonfinite : {false, true}) {
        SCOPED_TRACE(testing::Message() << "p " << p << " " << per_tensor << nonfinite);
        const Case made = AllKinds(++seed, p, per_tensor, nonfinite);
        const Expected expected = AskHost(made);
        ASSERT_EQ(Ask(made), absl::OkStatus());
        ExpectResult(expected);
        EXPECT_TRUE(Elements() == expected.bytes);
      }
    }
  }
}

TEST_F(DeviceMemorySession, TakesMoreTensorsAndBlocksThanADeviceDoesAtOnce) {
  std::vector<std::vector<int64_t>> shapes(2 * DeviceMemory::kMostRuns + 3, {5});
  shapes.push_back({70'001});
  for (const bool per_tensor : {false, true}) {
    const Case made = MakeCase(shapes, 4, 2, per_tensor, true);
    const Expected expected = AskHost(made);
    ASSERT_EQ(Ask(made), absl::OkStatus());
    ExpectResult(expected);
    EXPECT_TRUE(Elements() == expected.bytes);
  }
}

// Other p are the host's to measure, in tasks as those of its own memory.
TEST_F(DeviceMemorySession, MeasuresOtherNormsOnTheHost) {
  for (const bool per_tensor : {false, true}) {
    const Case made = AllKinds(5, 3.5, per_tensor, false);
    const Expected expected = AskHost(made);
    ASSERT_EQ(Ask(made), absl::OkStatus());
    EXPECT_NEAR(result().norm().total_norm(), expected.result.norm().total_norm(),
                1e-14 * expected.result.norm().total_norm());
    EXPECT_EQ(result().norm().tensors_size(), expected.result.norm().tensors_size());
    EXPECT_EQ(result().norm().backend(), backend_->name());
  }
}

// For each cut of the gradient one part: data, or a range of one of two windows of device memory.
TEST_F(DeviceMemorySession, GivesTheAnswersOfDataForAnyMix) {
  uint64_t seed = 10;
  for (const double p : {1.0, 2.0, kInfinity}) {
    for (int round = 0; round < 12; ++round) {
      SCOPED_TRACE(testing::Message() << p << " round " << round);
      const Case made = AllKinds(++seed, p, round % 2 == 0, round % 3 == 0);
      const Expected expected = AskHost(made);
      std::mt19937_64 random(seed);
      std::vector<std::pair<size_t, size_t>> cuts = SomeElementStarts(made, random, round % 4 + 1);
      cuts.emplace_back(made.bytes.size(), 0);

      // The whole gradient, each part moved to where its elements are aligned.
      std::string spread;
      std::vector<size_t> places;
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        spread.resize((spread.size() + 15) / 8 * 8);
        places.push_back(spread.size());
        spread += made.bytes.substr(cuts[i].first, cuts[i + 1].first - cuts[i].first);
      }
      const std::string regions[] = {Register(spread), Token(kMargin - 8, spread.size() + 8)};

      Restart();
      ASSERT_EQ(Send(made.start), absl::OkStatus());
      std::vector<bool> as_data;
      for (size_t i = 0; i < places.size(); ++i) {
        const size_t length = cuts[i + 1].first - cuts[i].first;
        as_data.push_back(random() % 3 == 0);
        const size_t window = random() % 2;
        const absl::Status sent =
            as_data.back() ? Send(made.bytes.substr(cuts[i].first, length))
                           : Send(Range(regions[window], places[i] + 8 * window, length));
        ASSERT_EQ(sent, absl::OkStatus());
      }
      ASSERT_EQ(Finish(), absl::OkStatus());
      const std::string streamed = ClippedBytes();
      const std::string in_place = Memory();
      std::string clipped;
      size_t sent = 0;
      for (size_t i = 0; i < places.size(); ++i) {
        const size_t length = cuts[i + 1].first - cuts[i].first;
        if (as_data[i]) {
          clipped += streamed.substr(sent, length);
          sent += length;
        } else {
          clipped += in_place.substr(places[i], length);
        }
      }
      EXPECT_TRUE(clipped == expected.bytes);
      if (std::find(as_data.begin(), as_data.end(), false) != as_data.end()) ExpectResult(expected);
    }
  }
}

TEST_F(DeviceMemorySession, ReadsOnlyForTheCoefficient) {
  const std::string bytes = Bytes<float>({3, 4});
  const std::string region = Register(bytes, /*read_only=*/true);
  v1::ClipGradNormStart start = ClipStart(1);
  Restart();
  ASSERT_EQ(Send(start), absl::OkStatus());
  EXPECT_THAT(Send(Range(region, 0, 8)),
              Refuses(absl::StatusCode::kFailedPrecondition, "read only"));
  start.set_reply(v1::REPLY_COEFFICIENT);
  Restart();
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(Range(region, 0, 8)), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_EQ(result().norm().total_norm(), 5);
  EXPECT_EQ(Memory(), bytes);
}

TEST_F(DeviceMemorySession, ScalesByAGivenNorm) {
  const std::string region = Register(Bytes<float>({3, 4}));
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_total_norm(2);
  Restart();
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(Range(region, 0, 8)), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  EXPECT_EQ(result().norm().backend(), HostDevices::kName);
  const float c = static_cast<float>(result().coefficient());
  EXPECT_EQ(Memory(), Bytes<float>({3 * c, 4 * c}));
}

TEST_F(DeviceMemorySession, KeepsRangesApartAndInsideWhicheverWindowTheyAreOf) {
  const std::string region = Register(std::string(64, 'x'));
  const std::string later = Token(kMargin + 8, 32);
  const auto ask = [&](const v1::SharedRanges& first, const v1::SharedRanges& second) {
    Restart();
    EXPECT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
    absl::Status sent = Send(first);
    if (sent.ok()) sent = Send(second);
    return sent;
  };
  EXPECT_EQ(ask(Range(region, 0, 8), Range(later, 0, 8)), absl::OkStatus());
  EXPECT_THAT(ask(Range(region, 8, 8), Range(later, 0, 8)), Refuses(kInvalid, "overlaps"));
  EXPECT_THAT(ask(Range(later, 4, 8), Range(region, 0, 16)), Refuses(kInvalid, "overlaps"));
  EXPECT_THAT(ask(Range(later, 28, 8), Range(region, 0, 8)),
              Refuses(kInvalid, "ends beyond the region's 32 bytes"));
  EXPECT_THAT(ask(Range(region, 2, 8), Range(later, 24, 8)), Refuses(kInvalid, "whole elements"));
}

// Every use of the memory fails in turn. What was measured leaves it as it was; what was to be
// scaled may be, or in part.
TEST_F(DeviceMemorySession, TellsWhatADeviceThatFailsHasDone) {
  const Case made = AllKinds(20, 2, false, false);
  const uint64_t calls_before = on_device_.calls();
  ASSERT_EQ(Ask(made), absl::OkStatus());
  const uint64_t calls = on_device_.calls() - calls_before;
  ASSERT_EQ(calls, 2u);  // one measures, one scales
  for (const absl::Status& failure :
       {absl::UnavailableError("host/7: broken"), absl::ResourceExhaustedError("host/7: full")}) {
    on_device_.FailAt(0, failure);
    const absl::Status measured = Ask(made);
    EXPECT_EQ(measured.code(), failure.code());
    EXPECT_THAT(std::string(measured.message()),
                testing::AllOf(testing::HasSubstr("is as it was"),
                               testing::HasSubstr(std::string(failure.message()))));
    EXPECT_TRUE(Elements() == made.bytes);
    on_device_.FailAt(1, failure);
    EXPECT_THAT(Ask(made), Refuses(absl::StatusCode::kDataLoss, std::string(failure.message())));
    on_device_.NeverFail();
    EXPECT_EQ(Ask(made), absl::OkStatus());
  }
}

TEST_F(DeviceMemorySession, TellsOfOpenElementsThatCannotBeBrought) {
  const std::string region = Register(std::string(32'000, '\0'));
  v1::ComputeNormStart start;
  *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {6000});
  for (uint64_t nth = 0; nth < 3; ++nth) {
    Restart();
    ASSERT_EQ(Send(start), absl::OkStatus());
    ASSERT_EQ(Send(Range(region, 0, 4000)), absl::OkStatus());
    on_device_.FailAt(nth, absl::UnavailableError("host/7: broken"));
    // The rest of the first block, and the last one.
    const absl::Status sent = Send(Range(region, 8000, 20'000));
    EXPECT_EQ(sent.code(), nth < 2 ? absl::StatusCode::kUnavailable : absl::StatusCode::kOk);
    on_device_.NeverFail();
  }
}

TEST_F(DeviceMemorySession, ServersWithoutDevicesTakeNone) {
  RegionRegistry none({.max_shared_bytes = 100, .max_shared_bytes_per_peer = 100}, budget_);
  EXPECT_THAT(none.Register(7, ExportedMemory{.length = 8}, false).status(),
              Refuses(absl::StatusCode::kUnimplemented, "--allow-cuda-ipc"));
  EXPECT_EQ(none.bytes(), 0u);
}

TEST_F(DeviceMemorySession, CountsAgainstTheLimitsOfRegions) {
  RegionRegistry registry({.max_regions = 2,
                           .max_regions_per_peer = 2,
                           .max_shared_bytes = 100,
                           .max_shared_bytes_per_peer = 80},
                          budget_, &on_device_);
  memory_.resize(100);
  const auto add = [&](uid_t uid, uint64_t bytes) {
    return registry.Register(uid, HostDevices::Export(memory_.data(), 0, bytes), false);
  };
  constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;
  EXPECT_THAT(add(1, 81).status(), Refuses(kExhausted, "--max-shared-bytes-per-peer"));
  const absl::StatusOr<RegionToken> first = add(1, 80);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(registry.bytes(), 80u);
  EXPECT_EQ(budget_.used_bytes(), 0u);
  EXPECT_THAT(add(2, 21).status(), Refuses(kExhausted, "--max-shared-bytes"));
  ASSERT_TRUE(add(2, 20).ok());
  EXPECT_THAT(add(3, 1).status(), Refuses(kExhausted, "--max-regions"));
  registry.Forget(*first);
  EXPECT_EQ(registry.bytes(), 20u);
  EXPECT_TRUE(add(3, 80).ok());
}

}  // namespace
}  // namespace gradclip
