// The example that trains: against a real server, as a user runs it and piece by piece.
#include <gmock/gmock.h>

#include <cmath>
#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "examples/train/clipping.h"
#include "examples/train/collectives.h"
#include "examples/train/model.h"
#include "examples/train/processes.h"
#include "examples/train/range.h"
#include "examples/train/record.h"
#include "examples/train/shared_array.h"
#include "examples/train/trainer.h"
#include "tests/e2e/process.h"

namespace train {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Optional;

constexpr size_t kSteps = 40;
constexpr double kMaxNorm = 1.5;

class TrainProgram : public testing::TestWithParam<const char*> {};

TEST_P(TrainProgram, HasTheSameBitsInEveryMode) {
  const gradclip::ServerProcess server;
  gradclip::Process program("gradclip-train", {"--server", server.address(), "--processes",
                                               GetParam(), "--steps", absl::StrCat(kSteps)});
  EXPECT_EQ(program.Wait(), 0) << program.err();
  EXPECT_THAT(program.out(), HasSubstr("the same bits at every one of 40 steps: "));
}

// With 7 some have no hidden units.
INSTANTIATE_TEST_SUITE_P(Over, TrainProgram, testing::Values("1", "2", "3", "5", "7"),
                         [](const auto& info) { return absl::StrCat(info.param, "Processes"); });

TEST(TrainProgram, SaysWhichRankFailedAndWhy) {
  gradclip::Process program("gradclip-train", {"--server", "unix:/nowhere"});
  EXPECT_EQ(program.Wait(), 1);
  EXPECT_THAT(program.err(), HasSubstr("gradclip-train: rank 0 failed: UNAVAILABLE: step 0: "));
}

class Training : public testing::Test {
 protected:
  // What a rank does in place of Clipping::Clip().
  using Call = std::function<absl::StatusOr<gradclip::ClipAnswer>(
      Clipping& clipping, size_t rank, std::span<gradclip::Tensor> gradient, uint64_t step)>;

  static absl::StatusOr<gradclip::ClipAnswer> ClipAsTold(Clipping& clipping, size_t /*rank*/,
                                                         std::span<gradclip::Tensor> gradient,
                                                         uint64_t step) {
    return clipping.Clip(gradient, step);
  }

  // The records of rank 0.
  std::vector<Record> Train(Mode mode, const Call& call = ClipAsTold) {
    const size_t processes = mode == Mode::kSingle ? 1 : kProcesses;
    Collectives collectives(processes, Elements(Layout(kUnits)));
    const SharedArray<Record> records(processes * kSteps);
    const absl::Status trained = RunProcesses(processes, [&](size_t rank) {
      std::optional<Participant> participant;
      if (mode != Mode::kSingle) participant = ParticipantOf(rank);
      Clipping clipping(server_.address(), kMaxNorm, participant);
      Trainer trainer(mode, kProcesses, rank, collectives);
      return trainer.Train([&](std::span<gradclip::Tensor> gradient,
                               uint64_t step) { return call(clipping, rank, gradient, step); },
                           records.Part(rank * kSteps, kSteps));
    });
    EXPECT_TRUE(trained.ok()) << trained;
    const std::span<const Record> first = records.Part(0, kSteps);
    return {first.begin(), first.end()};
  }

  static Participant ParticipantOf(size_t rank) {
    return {"job", 0, static_cast<uint32_t>(rank), kProcesses};
  }

  static constexpr uint32_t kProcesses = 2;
  gradclip::ServerProcess server_;
};

TEST_F(Training, LearnsAndIsClippedInSomeSteps) {
  const std::vector<Record> records = Train(Mode::kSingle);
  EXPECT_LT(records.back().loss, 0.5f * records.front().loss);
  size_t clipped = 0;
  for (const Record& record : records) clipped += record.total_norm > kMaxNorm ? 1 : 0;
  EXPECT_GT(clipped, 0u);
  EXPECT_LT(clipped, kSteps);
}

TEST_F(Training, IsFoundDifferentWhereReplicasAreNotMarked) {
  const auto forget = [](Clipping& clipping, size_t, std::span<gradclip::Tensor> gradient,
                         uint64_t step) {
    for (gradclip::Tensor& tensor : gradient) tensor.replica = false;
    return clipping.Clip(gradient, step);
  };
  EXPECT_THAT(FirstDifference(Train(Mode::kSingle), Train(Mode::kSharded, forget)),
              Optional(AllOf(HasSubstr("step 0: "), HasSubstr("total norm"))));
}

TEST_F(Training, GoesOnWhereARankGaveUpAndCameBack) {
  constexpr uint64_t kStep = 2;
  Collectives together(kProcesses, 1);
  // Returns once the service has ended the step's first attempt, to which no other rank came.
  const auto give_up = [&](std::span<gradclip::Tensor> gradient) {
    gradclip::Client client(server_.address());
    gradclip::ClipOptions options;
    options.max_norm = kMaxNorm;
    gradclip::CallOptions call;
    call.group.emplace();
    call.group->job = ParticipantOf(1).job;
    call.group->step = kStep;
    call.group->rank = 1;
    call.group->world_size = kProcesses;
    call.timeout = absl::Milliseconds(500);
    absl::Status status;
    do {
      status = client.Clip(gradient, options, call).status();
      if (status.ok()) std::abort();
    } while (!absl::IsAborted(status));
  };
  const auto clip = [&](Clipping& clipping, size_t rank, std::span<gradclip::Tensor> gradient,
                        uint64_t step) {
    if (step == kStep && rank == 1) give_up(gradient);
    float nothing = 0;
    together.AllReduce(rank, {&nothing, 1});
    return clipping.Clip(gradient, step);
  };
  const std::vector<Record> records = Train(Mode::kDataParallel, clip);
  EXPECT_EQ(records[kStep].attempt, 1u);
  EXPECT_EQ(records[kStep + 1].attempt, 0u);
  EXPECT_EQ(FirstDifference(Train(Mode::kSingle), records), std::nullopt);
}

TEST(TrainRecord, DiffersByOneBit) {
  const std::vector<Record> records = {{1, 2, 0.5, 3, 0}, {1, 2, 0, 3, 0}};
  std::vector<Record> other = records;
  other[0].attempt = 1;
  EXPECT_EQ(FirstDifference(records, other), std::nullopt);
  other[1].coefficient = -0.0;
  EXPECT_THAT(FirstDifference(records, other), Optional(HasSubstr("step 1: ")));
  other[0].total_norm = std::nextafter(2.0, 3.0);
  EXPECT_THAT(FirstDifference(records, other), Optional(HasSubstr("step 0: ")));
  other = records;
  other[0].parameters ^= 1;
  EXPECT_THAT(FirstDifference(records, other), Optional(HasSubstr("step 0: ")));

  std::vector<float> values = {1, 2, 3};
  const uint64_t digest = Digest(values);
  values[2] = std::nextafter(3.0f, 4.0f);
  EXPECT_NE(Digest(values), digest);
}

TEST(TrainProcesses, EndTogether) {
  EXPECT_TRUE(RunProcesses(3, [](size_t) { return absl::OkStatus(); }).ok());
  const auto lose_one = [](const std::function<absl::Status()>& lose) {
    Collectives collectives(3, 1);  // in which the others wait for the one that is lost
    return std::string(RunProcesses(3, [&](size_t rank) {
                         if (rank == 1) return lose();
                         float value = 0;
                         collectives.AllReduce(rank, {&value, 1});
                         return absl::OkStatus();
                       }).message());
  };
  EXPECT_EQ(lose_one([] { return absl::AbortedError("disk full"); }),
            "rank 1 failed: ABORTED: disk full");
  EXPECT_EQ(lose_one([] {
              raise(SIGKILL);
              return absl::OkStatus();
            }),
            "rank 1 was killed by signal 9");
  EXPECT_EQ(lose_one([]() -> absl::Status { _exit(7); }), "rank 1 ended with status 7");
}

TEST(TrainShards, AreCutBetweenBlocks) {
  const std::vector<Parameter> layout = Layout(kUnits);
  for (const size_t ranks : {1, 2, 3, 5, 64}) {
    size_t end = 0;
    for (size_t rank = 0; rank < ranks; ++rank) {
      const Range shard = ShardOf(layout, ranks, rank);
      EXPECT_EQ(shard.begin, end);
      end = shard.end;
      for (const Parameter& parameter : layout) {
        if (shard.begin < parameter.offset || shard.begin >= parameter.offset + parameter.size()) {
          continue;
        }
        EXPECT_EQ((shard.begin - parameter.offset) % kBlockElements, 0u);
      }
    }
    EXPECT_EQ(end, Elements(layout));
  }
}

TEST(TrainModel, HasTheSlopeOfTheLossAsItsGradient) {
  const std::vector<Example> examples = MakeDigits(20, 7);
  Model model({{0, kUnits}}, 7, [](std::span<float>) {});
  std::vector<float> gradient(model.values().size());
  std::vector<float> ignored(gradient.size());
  model.Gradient(examples, 1, gradient);
  double square = 0;
  for (const float element : gradient) square += static_cast<double>(element) * element;
  const std::vector<float> values = model.values();
  const auto loss_at = [&](double distance) {
    for (size_t i = 0; i < values.size(); ++i) {
      model.values()[i] = static_cast<float>(values[i] + distance * gradient[i]);
    }
    return static_cast<double>(model.Gradient(examples, 1, ignored));
  };
  const double distance = 1e-2 / std::sqrt(square);
  const double slope = (loss_at(distance) - loss_at(-distance)) / (2 * distance);
  EXPECT_NEAR(slope, square, 0.01 * square);
}

}  // namespace
}  // namespace train
