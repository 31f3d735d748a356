// Gradients in registered memory, alone and mixed with data: the same answers as all data gives.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/memory/budget.h"
#include "server/shm/registry.h"
#include "tests/server/session/gradients.h"
#include "tests/server/session/host_device.h"
#include "tests/server/session/session_fixture.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

// Memory that is shared with the registry, as a client would.
class Memory : public MappedMemfd {
 public:
  using MappedMemfd::MappedMemfd;

  std::string Register(RegionRegistry& regions, bool read_only = false) const {
    const absl::StatusOr<RegionToken> token =
        regions.Register(getuid(), memfd().get(), size(), read_only);
    EXPECT_TRUE(token.ok()) << token.status();
    return std::string(reinterpret_cast<const char*>(token->data()), token->size());
  }
};

struct RangeSpec {
  uint64_t offset;
  uint64_t length;
};

class SharedSession : public SessionTest {
 protected:
  SharedSession() : budget_(uint64_t{1} << 30), registry_(Limits(), budget_) {
    regions_ = &registry_;
    Restart();
  }
  ~SharedSession() override { session_.reset(); }  // it holds regions

  static RegionLimits Limits() {
    return {.max_shared_bytes = uint64_t{1} << 30, .max_shared_bytes_per_peer = uint64_t{1} << 30};
  }

  static v1::SharedRanges Ranges(const std::string& region, const std::vector<RangeSpec>& list) {
    v1::SharedRanges ranges;
    ranges.set_region(region);
    for (const RangeSpec& range : list) {
      ranges.add_offset(range.offset);
      ranges.add_length(range.length);
    }
    return ranges;
  }

  // Runs the tasks at hand on two threads, the last first.
  absl::Status Work() {
    const size_t tasks = session_->work_tasks();
    std::thread odd([&] {
      for (size_t i = 1; i < tasks; i += 2) session_->RunTask(i);
    });
    for (size_t i = (tasks + 1) / 2 * 2; i >= 2; i -= 2) session_->RunTask(i - 2);
    odd.join();
    return session_->FinishWork();
  }

  absl::Status Send(const v1::SharedRanges& ranges) {
    const absl::Status taken = session_->Shared(ranges);
    return taken.ok() ? Work() : taken;
  }
  using SessionTest::Send;

  absl::Status Finish() {
    if (absl::Status closed = HalfClose(); !closed.ok()) return closed;
    session_->ScaleShared();
    return Work();
  }

  MemoryBudget budget_;
  RegionRegistry registry_;
};

TEST_F(SharedSession, ClipsTheWorkedExampleInPlace) {
  Memory memory(100);
  memory.Write(8, Bytes<float>({3, 4, 1, 2}));
  ASSERT_EQ(Send(ClipStart(5, 2)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(memory.Register(registry_), {{8, 16}})), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_NEAR(result().norm().total_norm(), std::sqrt(30.0), 1e-12);
  EXPECT_FALSE(result().gradient_follows());
  EXPECT_FALSE(session_->has_segment());
  EXPECT_EQ(session_->shared_bytes(), 16u);
  const float c = static_cast<float>(result().coefficient());
  EXPECT_EQ(memory.Read(8, 16), Bytes<float>({3 * c, 4 * c, 1 * c, 2 * c}));
  EXPECT_EQ(memory.Read(0, 8), std::string(8, '\0'));
  EXPECT_EQ(memory.Read(24, 8), std::string(8, '\0'));
}

// For each cut of the gradient one part, sent as data or laid anywhere into shared memory. In every
// other round the first half is mostly data, which a device takes.
TEST_F(SharedSession, GivesTheAnswersOfDataForAnyMixOfSharedAndData) {
  struct Way {
    double norm_type;
    bool per_tensor;
    bool nonfinite;
  };
  HostDevices devices(*backend_);
  uint64_t seed = 1;
  for (const Way way : {Way{2, false, false}, Way{2, true, true}, Way{1, true, false},
                        Way{kInfinity, false, true}, Way{kInfinity, true, false}}) {
    Case made = AllKinds(seed, way.norm_type, way.per_tensor, way.nonfinite);
    devices_ = nullptr;
    Restart();
    Run(made.start, made.bytes);
    const std::string expected_result = result().SerializeAsString();
    const std::string expected = ClippedBytes();
    for (int round = 0; round < 12; ++round) {
      SCOPED_TRACE(testing::Message() << way.norm_type << " round " << round);
      std::mt19937_64 random(++seed);
      devices_ = round % 2 == 1 ? &devices : nullptr;
      devices.set_slots(1 + round % 3);
      std::vector<std::pair<size_t, size_t>> cuts = SomeElementStarts(made, random, round % 8 + 1);
      cuts.emplace_back(made.bytes.size(), 0);

      Memory memory(made.bytes.size() * 2 + 100'000);
      const std::string region = memory.Register(registry_);
      Restart();
      ASSERT_EQ(Send(made.start), absl::OkStatus());
      std::vector<std::pair<RangeSpec, size_t>> placed;  // where in memory, from where in the bytes
      std::vector<std::pair<size_t, size_t>> sent;       // from where, how much
      std::vector<RangeSpec> pending;
      uint64_t free = 64;
      size_t from = 0;
      size_t element = 1;  // bytes of those in the part that begins at `from`
      const auto flush = [&] {
        if (pending.empty()) return;
        ASSERT_EQ(Send(Ranges(region, pending)), absl::OkStatus());
        pending.clear();
      };
      for (const auto& [to, size] : cuts) {
        const std::string_view part = std::string_view(made.bytes).substr(from, to - from);
        const bool for_device = devices_ != nullptr && to < made.bytes.size() / 2;
        if (round == 0 || (random() % 3 != 0 && !for_device)) {
          if (random() % 2 == 0) free += 8 * (random() % 100);
          free = (free + element - 1) / element * element;
          memory.Write(free, part);
          pending.push_back({free, part.size()});
          placed.emplace_back(pending.back(), from);
          free += part.size();
          if (random() % 4 == 0) flush();
        } else {
          flush();
          sent.emplace_back(from, part.size());
          // Data may come in any cuts.
          const size_t half = random() % (part.size() + 1);
          ASSERT_EQ(Send(part.substr(0, half)), absl::OkStatus());
          ASSERT_EQ(Send(part.substr(half)), absl::OkStatus());
        }
        from = to;
        element = size;
      }
      flush();
      const size_t data_bytes =
          std::accumulate(sent.begin(), sent.end(), size_t{0},
                          [](size_t sum, auto& at) { return sum + at.second; });
      ASSERT_EQ(Finish(), absl::OkStatus());
      EXPECT_EQ(session_->shared_bytes(), made.bytes.size() - data_bytes);
      EXPECT_EQ(result().gradient_follows(), data_bytes > 0);
      v1::ClipResult same = result();
      same.set_gradient_follows(true);
      if (session_->shared_bytes() == 0) {
        EXPECT_EQ(same.norm().backend(),
                  devices_ == nullptr ? backend_->name() : HostDevices::kName);
        same.mutable_norm()->set_backend(std::string(backend_->name()));
      }
      EXPECT_EQ(same.SerializeAsString(), expected_result);
      const std::string back = ClippedBytes();
      ASSERT_EQ(back.size(), data_bytes);
      size_t at = 0;
      for (const auto& [begin, bytes] : sent) {
        ASSERT_EQ(back.substr(at, bytes), expected.substr(begin, bytes));
        at += bytes;
      }
      for (const auto& [range, begin] : placed) {
        ASSERT_EQ(memory.Read(range.offset, range.length), expected.substr(begin, range.length));
      }
    }
  }
  session_.reset();  // it may hold a queue
  EXPECT_GT(devices.opened(), 10u);
}

TEST_F(SharedSession, GivesTheNormOfDataForOtherNorms) {
  const Case made = AllKinds(3, 3, true, false);
  Run(made.start, made.bytes);
  const v1::ClipResult expected = result();
  Memory memory(made.bytes.size() + 1000);
  std::mt19937_64 random(1);
  std::vector<RangeSpec> ranges;
  size_t from = 0;
  size_t free = 0;
  for (const auto& [to, size] : SomeElementStarts(made, random, 1)) {
    memory.Write(free, std::string_view(made.bytes).substr(from, to - from));
    ranges.push_back({free, to - from});
    free = (free + to - from + 7) / 8 * 8;
    from = to;
  }
  memory.Write(free, std::string_view(made.bytes).substr(from));
  ranges.push_back({free, made.bytes.size() - from});
  Restart();
  ASSERT_EQ(Send(made.start), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(memory.Register(registry_), ranges)), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_NEAR(result().norm().total_norm() / expected.norm().total_norm(), 1, 1e-15);
  ASSERT_EQ(result().norm().tensors_size(), expected.norm().tensors_size());
  for (int i = 0; i < expected.norm().tensors_size(); ++i) {
    EXPECT_NEAR(result().norm().tensors(i).norm(), expected.norm().tensors(i).norm(),
                1e-14 * expected.norm().tensors(i).norm());
  }
}

TEST_F(SharedSession, TakesManyTensorsInOneRange) {
  std::mt19937_64 random(5);
  v1::ClipGradNormStart start;
  std::string bytes;
  for (int i = 0; i < 3000; ++i) {
    const auto elements = static_cast<int64_t>(i % 7 == 3 ? 0 : random() % 300);
    *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {elements});
    for (int64_t j = 0; j < elements; ++j) {
      bytes += Bytes<uint32_t>({static_cast<uint32_t>(random() & 0x807fffff) | 0x3f800000});
    }
  }
  start.set_max_norm(1);
  Memory memory(bytes.size());
  const std::string region = memory.Register(registry_);
  for (const bool per_tensor : {false, true}) {
    start.mutable_norm()->set_per_tensor(per_tensor);
    Restart();
    Run(start, bytes);
    const std::string expected_result = result().SerializeAsString();
    const std::string expected = ClippedBytes();
    memory.Write(0, bytes);
    Restart();
    ASSERT_EQ(Send(start), absl::OkStatus());
    ASSERT_EQ(Send(Ranges(region, {{0, bytes.size()}})), absl::OkStatus());
    ASSERT_EQ(Finish(), absl::OkStatus());
    v1::ClipResult same = result();
    same.set_gradient_follows(true);
    EXPECT_EQ(same.SerializeAsString(), expected_result);
    EXPECT_EQ(memory.Read(0, bytes.size()), expected);
  }
}

TEST_F(SharedSession, ReadsOnlyForNormsAndCoefficients) {
  Memory memory(16);
  memory.Write(0, Bytes<float>({3, 4}));
  const std::string region = memory.Register(registry_, /*read_only=*/true);
  v1::ClipGradNormStart start = ClipStart(1);
  start.set_reply(v1::REPLY_COEFFICIENT);
  ASSERT_EQ(Send(start), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(region, {{0, 8}})), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_EQ(result().norm().total_norm(), 5);
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({3, 4}));

  Restart();
  v1::ComputeNormStart norm;
  *norm.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {2});
  ASSERT_EQ(Send(norm), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(region, {{0, 8}})), absl::OkStatus());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_EQ(result().norm().total_norm(), 5);

  Restart();
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  EXPECT_THAT(Send(Ranges(region, {{0, 8}})), Refuses(kPrecondition, "read only"));
}

TEST_F(SharedSession, TouchesNothingWhereNothingIsClipped) {
  Memory memory(8);
  memory.Write(0, Bytes<float>({3, 4}));
  ASSERT_EQ(Send(ClipStart(10)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(memory.Register(registry_), {{0, 8}})), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  session_->ScaleShared();
  EXPECT_EQ(session_->work_tasks(), 0u);
  EXPECT_EQ(Work(), absl::OkStatus());
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({3, 4}));
}

TEST_F(SharedSession, SaysHowMuchWorkThereIs) {
  Memory memory(24);
  memory.Write(0, Bytes<float>({3, 4, 0, 0, 5, 6}));
  const std::string region = memory.Register(registry_);
  ASSERT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(region, {{0, 8}})), absl::OkStatus());
  EXPECT_EQ(session_->work_bytes(), 8u);
  ASSERT_EQ(session_->Shared(Ranges(region, {{16, 8}})), absl::OkStatus());
  EXPECT_EQ(session_->work_bytes(), 8u);
  ASSERT_EQ(Work(), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  session_->ScaleShared();  // both, not only the last
  EXPECT_EQ(session_->work_tasks(), 2u);
  EXPECT_EQ(session_->work_bytes(), 16u);
}

TEST_F(SharedSession, ScalesAtOnceByANormThatIsGiven) {
  Memory memory(24);
  memory.Write(0, Bytes<float>({3, 4}));
  memory.Write(16, Bytes<float>({2}));
  v1::ClipGradNormStart start = ClipStart(1, 2);
  start.set_total_norm(2);
  start.set_epsilon(0);
  ASSERT_EQ(Send(start), absl::OkStatus());
  const std::string region = memory.Register(registry_);
  ASSERT_EQ(Send(Ranges(region, {{0, 8}})), absl::OkStatus());
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({1.5, 2}));
  std::string out(11, '\0');
  size_t written = 0;
  ASSERT_EQ(session_->PassThrough(AsBytes(Bytes<float>({8})),
                                  reinterpret_cast<std::byte*>(out.data()), &written),
            absl::OkStatus());
  EXPECT_EQ(out.substr(0, written), Bytes<float>({4}));
  ASSERT_EQ(Send(Ranges(region, {{16, 4}})), absl::OkStatus());
  EXPECT_EQ(memory.Read(16, 4), Bytes<float>({1}));
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({1.5, 2}));
  EXPECT_EQ(HalfClose(), absl::OkStatus());
}

TEST_F(SharedSession, KeepsOnlyWhatComesAsData) {
  max_call_bytes_ = 8;
  Restart();
  Memory memory(8);
  ASSERT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
  EXPECT_EQ(session_->bytes_to_keep(), 16u);
  EXPECT_THAT(session_->CheckBytesToKeep(),
              Refuses(absl::StatusCode::kResourceExhausted, "at most 8 for one call"));
  ASSERT_EQ(Send(Ranges(memory.Register(registry_), {{0, 8}})), absl::OkStatus());
  EXPECT_EQ(session_->bytes_to_keep(), 8u);
  EXPECT_EQ(session_->CheckBytesToKeep(), absl::OkStatus());
  session_->PrepareToKeep();
  EXPECT_EQ(session_->bytes_to_keep(), 0u);
}

TEST_F(SharedSession, RefusesRangesThatAreNotWholeElementsInTheRegion) {
  Memory memory(100);
  const std::string region = memory.Register(registry_);
  const uint64_t size = memory.size();
  const auto send = [&](const v1::SharedRanges& ranges) {
    Restart();
    EXPECT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
    return Send(ranges);
  };
  EXPECT_THAT(send(Ranges(region, {{size - 4, 8}})),
              Refuses(kInvalid, "range #0, of 8 bytes at " + std::to_string(size - 4) +
                                    ", ends beyond the region's " + std::to_string(size)));
  EXPECT_THAT(send(Ranges(region, {{0, 4}, {~uint64_t{0} - 3, 8}})),
              Refuses(kInvalid, "range #1, of 8 bytes at 18446744073709551612, ends beyond"));
  EXPECT_THAT(send(Ranges(region, {{0, ~uint64_t{0}}})), Refuses(kInvalid, "ends beyond"));
  EXPECT_THAT(send(Ranges(region, {{size + 8, 0}})), Refuses(kInvalid, "ends beyond"));
  EXPECT_THAT(send(Ranges(region, {{2, 8}})), Refuses(kInvalid, "element's 4 bytes"));
  EXPECT_THAT(send(Ranges(region, {{0, 6}})), Refuses(kInvalid, "tensor \"w0\""));
  EXPECT_THAT(send(Ranges(region, {{0, 8}, {8, 16}})), Refuses(kInvalid, "declare 16 in all"));
  EXPECT_THAT(send(Ranges(region, {{0, 8}, {4, 8}})), Refuses(kInvalid, "range #1"));
  EXPECT_THAT(send(Ranges(region, {{4, 8}, {0, 8}})), Refuses(kInvalid, "overlaps"));
  EXPECT_THAT(send(Ranges(region, {{0, 8}, {0, 8}})), Refuses(kInvalid, "overlaps"));
  v1::SharedRanges uneven = Ranges(region, {{0, 8}});
  uneven.add_offset(8);
  EXPECT_THAT(send(uneven), Refuses(kInvalid, "2 offsets and 1 lengths"));
  EXPECT_EQ(send(Ranges(region, {{16, 8}, {size, 0}, {0, 8}})), absl::OkStatus());
}

TEST_F(SharedSession, FindsOverlapsAcrossMessagesAndRegistrationsOfOneMemory) {
  Memory memory(100);
  const std::string first = memory.Register(registry_);
  const std::string second = memory.Register(registry_);
  Memory other(100);
  ASSERT_EQ(Send(ClipStart(1, 3)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(first, {{0, 8}})), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(other.Register(registry_), {{0, 8}})), absl::OkStatus());
  EXPECT_THAT(Send(Ranges(second, {{4, 8}})), Refuses(kInvalid, "overlaps"));
}

TEST_F(SharedSession, RefusesTokensThatNameNothing) {
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  EXPECT_THAT(Send(Ranges("short", {{0, 8}})), Refuses(kInvalid, "5 bytes"));
  EXPECT_THAT(Send(Ranges(std::string(16, 'x'), {{0, 8}})),
              Refuses(absl::StatusCode::kNotFound, "no region has this token"));
}

TEST_F(SharedSession, RefusesMoreRangesThanItsLimit) {
  max_ranges_ = 2;
  Restart();
  Memory memory(100);
  const std::string region = memory.Register(registry_);
  ASSERT_EQ(Send(ClipStart(1, 2)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(region, {{0, 4}})), absl::OkStatus());
  EXPECT_THAT(Send(Ranges(region, {{4, 4}, {8, 4}})),
              Refuses(absl::StatusCode::kResourceExhausted, "3 ranges or more; the limit is 2"));
}

TEST_F(SharedSession, RefusesRangesBeforeTheStartAndAmidAnElement) {
  Memory memory(100);
  const std::string region = memory.Register(registry_);
  EXPECT_THAT(Send(Ranges(region, {{0, 8}})), Refuses(kInvalid, "start comes first"));
  Restart();
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  ASSERT_EQ(Send(std::string_view("abcde")), absl::OkStatus());
  EXPECT_THAT(Send(Ranges(region, {{0, 4}})), Refuses(kInvalid, "ends with 1 bytes of an element"));
}

TEST_F(SharedSession, DoesNothingMoreOnceItIsAbandoned) {
  Memory memory(8);
  memory.Write(0, Bytes<float>({3, 4}));
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(memory.Register(registry_), {{0, 8}})), absl::OkStatus());
  ASSERT_EQ(HalfClose(), absl::OkStatus());
  session_->ScaleShared();
  session_->Abandon();
  EXPECT_TRUE(absl::IsCancelled(Work()));
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({3, 4}));
}

TEST_F(SharedSession, HoldsTheRegionUntilItsEnd) {
  Memory memory(8);
  memory.Write(0, Bytes<float>({3, 4}));
  const std::string region = memory.Register(registry_);
  ASSERT_EQ(Send(ClipStart(1)), absl::OkStatus());
  ASSERT_EQ(Send(Ranges(region, {{0, 8}})), absl::OkStatus());
  RegionToken token;
  std::memcpy(token.data(), region.data(), token.size());
  registry_.Forget(token);
  EXPECT_EQ(registry_.regions(), 0u);
  EXPECT_EQ(registry_.bytes(), memory.size());
  ASSERT_EQ(Finish(), absl::OkStatus());
  EXPECT_NE(memory.Read(0, 8), Bytes<float>({3, 4}));
  session_.reset();
  EXPECT_EQ(registry_.bytes(), 0u);
  EXPECT_EQ(budget_.used_bytes(), 0u);
}

}  // namespace
}  // namespace gradclip
