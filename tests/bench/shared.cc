// Gradients in shared memory: against the speed of that memory, against PyTorch, and against the
// shortest call there is.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gradclip/shared_gradient.h"
#include "gradclip/v1/gradclip.grpc.pb.h"
#include "tests/bench/gradient.h"
#include "tests/bench/passes.h"
#include "tests/bench/pytorch_process.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

std::vector<Tensor> Declared(DType dtype, const std::vector<std::vector<int64_t>>& shapes) {
  std::vector<Tensor> tensors;
  for (const std::vector<int64_t>& shape : shapes) {
    tensors.push_back(
        {.name = absl::StrCat("tensor.", tensors.size()), .dtype = dtype, .shape = shape});
  }
  return tensors;
}

// One gradient in shared memory, clipped or measured again and again, over a unix socket.
class SharedClipper {
 public:
  static absl::StatusOr<std::unique_ptr<SharedClipper>> Make(const std::string& address,
                                                             std::vector<Tensor> tensors) {
    auto made = std::unique_ptr<SharedClipper>(new SharedClipper(address));
    SharedGradientOptions options;
    options.require_shared = true;
    absl::StatusOr<SharedGradient> gradient = SharedGradient::Make(made->client_, tensors, options);
    if (!gradient.ok()) return gradient.status();
    made->gradient_.emplace(*std::move(gradient));
    for (const Tensor& tensor : made->tensors()) {
      // To a multiple of 8, as there is room up to the next of 64.
      FillElements(tensor.dtype,
                   {static_cast<std::byte*>(tensor.data), (tensor.bytes() + 7) / 8 * 8});
    }
    return made;
  }

  std::span<const Tensor> tensors() const { return gradient_->tensors(); }

  // All of the memory, but for what is left of the last 64 bytes. REQUIRES: no gaps.
  std::span<std::byte> memory() const {
    uint64_t bytes = 0;
    for (const Tensor& tensor : tensors()) bytes += tensor.bytes();
    return {static_cast<std::byte*>(tensors().front().data), bytes / 64 * 64};
  }

  absl::StatusOr<double> Measure() {
    return TimeOf([&] { return gradient_->ComputeNorm().status(); });
  }

  // To a thousandth less than the norm that the call before has left.
  absl::StatusOr<double> Clip(ReplyMode reply) {
    ClipOptions options;
    options.reply = reply;
    options.max_norm = norm_ * 0.999;
    absl::StatusOr<ClipAnswer> answer = absl::UnknownError("");
    const absl::StatusOr<double> seconds = TimeOf([&] {
      answer = gradient_->Clip(options);
      return answer.status();
    });
    if (!seconds.ok()) return seconds;
    // The first call, with nothing to go by, learns the norm.
    norm_ = answer->clipped ? options.max_norm : answer->norm.total_norm;
    return seconds;
  }

  absl::StatusOr<double> ClipNothing() {
    ClipOptions options;
    options.max_norm = kClipsNothing;
    return TimeOf([&] { return gradient_->Clip(options).status(); });
  }

 private:
  explicit SharedClipper(const std::string& address) : client_(address) {}

  Client client_;
  std::optional<SharedGradient> gradient_;
  double norm_ = kClipsNothing;
};

// Who scales.
struct Way {
  std::string name;
  ReplyMode reply;
};
const Way kWays[] = {{"clipped by the client", ReplyMode::kCoefficient},
                     {"clipped by the server", ReplyMode::kGradientIfChanged}};

class Shared {
 public:
  Shared(Bench& bench, const ServerPair& servers) : bench_(bench), servers_(servers) {}

  absl::Status CompareWithMemory(uint64_t bytes) {
    constexpr uint64_t kTensorBytes = uint64_t{16} << 20;
    std::vector<std::vector<int64_t>> shapes;
    for (uint64_t at = 0; at < bytes; at += kTensorBytes) {
      shapes.push_back({static_cast<int64_t>(std::min(kTensorBytes, bytes - at) / sizeof(float))});
    }
    const std::string what = absl::StrCat(bytes >> 20, " MiB F32");
    auto clipper =
        SharedClipper::Make(servers_.ours.unix_socket, Declared(DType::kFloat32, shapes));
    if (!clipper.ok()) return clipper.status();
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    const std::span<std::byte> memory = (*clipper)->memory();
    const auto read = [&](ReadPass pass) {
      return OnThreads(cores, memory, [pass](std::span<std::byte> part) {
        SinkOfResults() = static_cast<double>(pass(part));
      });
    };
    const auto scale = [&](ScalePass pass) {
      return OnThreads(cores, memory, [pass](std::span<std::byte> part) { pass(part, 1); });
    };
    const absl::StatusOr<ReadPass> fastest_read = Fastest(ReadPasses(), read);
    if (!fastest_read.ok()) return fastest_read.status();
    const absl::StatusOr<ScalePass> fastest_scale = Fastest(ScalePasses(), scale);
    if (!fastest_scale.ok()) return fastest_scale.status();

    const auto compare = [&](const std::string& name, const std::string& limit_is, Timed ours,
                             Timed limit) {
      const absl::StatusOr<Comparison> comparison = Compare(bench_.settings.rounds, ours, limit);
      if (!comparison.ok()) return comparison.status();
      Row row = RateRow(absl::StrCat(what, ", ", name), limit_is, bytes, *comparison);
      row.goal = AtLeast(0.90);
      bench_.report.Add(row);
      return absl::OkStatus();
    };
    absl::Status compared = compare(
        "norm", "read pass", [&] { return (*clipper)->Measure(); },
        [&] { return read(*fastest_read); });
    if (!compared.ok()) return compared;
    for (const Way& way : kWays) {
      compared = compare(
          way.name, "read and scale pass", [&] { return (*clipper)->Clip(way.reply); },
          [&]() -> absl::StatusOr<double> {
            const absl::StatusOr<double> reading = read(*fastest_read);
            if (!reading.ok()) return reading;
            const absl::StatusOr<double> scaling = scale(*fastest_scale);
            return scaling.ok() ? *reading + *scaling : scaling;
          });
      if (!compared.ok()) return compared;
    }
    return ComparePyTorch(what, **clipper, bytes, {AtLeast(1), AtLeast(2)});
  }

  struct Goals {
    std::optional<Goal> clipped;
    std::optional<Goal> not_clipped;
  };

  absl::Status CompareWithPyTorch(const std::string& what, DType dtype,
                                  const std::vector<std::vector<int64_t>>& shapes,
                                  const Goals& goals) {
    auto clipper = SharedClipper::Make(servers_.ours.unix_socket, Declared(dtype, shapes));
    if (!clipper.ok()) return clipper.status();
    uint64_t bytes = 0;
    for (const Tensor& tensor : (*clipper)->tensors()) bytes += tensor.bytes();
    return ComparePyTorch(what, **clipper, bytes, goals);
  }

  // Against the shortest call: unary, empty, to the raw server.
  absl::Status CompareWithEmptyCall() {
    auto clipper = SharedClipper::Make(servers_.ours.unix_socket,
                                       Declared(DType::kFloat32, TransformerShapes()));
    if (!clipper.ok()) return clipper.status();
    const auto stub = v1::GradClip::NewStub(
        grpc::CreateChannel(servers_.raw.unix_socket, grpc::InsecureChannelCredentials()));
    const auto empty_call = [&] {
      return TimeOf([&] {
        grpc::ClientContext context;
        v1::GetServerInfoResponse response;
        const grpc::Status status = stub->GetServerInfo(&context, {}, &response);
        return status.ok() ? absl::OkStatus() : absl::UnavailableError(status.error_message());
      });
    };
    const int calls = bench_.settings.quick ? 10 : 200 * bench_.settings.rounds;
    const auto compare = [&](const std::string& name, std::optional<Goal> goal, Timed ours) {
      const absl::StatusOr<Comparison> comparison = Compare(calls, ours, empty_call);
      if (!comparison.ok()) return comparison.status();
      for (const Row& row : LatencyRows(absl::StrCat("41 tensors, 1.4 MB, ", name),
                                        "empty unary call", *comparison, goal)) {
        bench_.report.Add(row);
      }
      return absl::OkStatus();
    };
    for (const Way& way : kWays) {
      absl::Status compared =
          compare(way.name, AtMost(2.5), [&] { return (*clipper)->Clip(way.reply); });
      if (!compared.ok()) return compared;
    }
    return compare("not clipped", AtMost(2.5), [&] { return (*clipper)->ClipNothing(); });
  }

 private:
  absl::Status ComparePyTorch(const std::string& what, SharedClipper& clipper, uint64_t bytes,
                              const Goals& goals) {
    absl::StatusOr<PyTorch> pytorch = PyTorch::Start(bench_.folder, clipper.tensors());
    if (!pytorch.ok()) {
      bench_.report.Note(
          absl::StrCat(what, " beside PyTorch: not measured: ", pytorch.status().message()));
      return absl::OkStatus();
    }
    const std::string limit_is = absl::StrCat("PyTorch ", pytorch->version());
    const auto compare = [&](const std::string& name, std::optional<Goal> goal, double max_norm,
                             Timed ours) {
      const absl::StatusOr<Comparison> comparison =
          Compare(bench_.settings.rounds, ours, [&] { return pytorch->Clip(max_norm); });
      if (!comparison.ok()) return comparison.status();
      Row row = RateRow(absl::StrCat(what, ", ", name), limit_is, bytes, *comparison);
      row.goal = goal;
      bench_.report.Add(row);
      return absl::OkStatus();
    };
    for (const Way& way : kWays) {
      absl::Status compared =
          compare(way.name, goals.clipped, kAlwaysClips, [&] { return clipper.Clip(way.reply); });
      if (!compared.ok()) return compared;
    }
    return compare("not clipped", goals.not_clipped, kClipsNothing,
                   [&] { return clipper.ClipNothing(); });
  }

  Bench& bench_;
  const ServerPair& servers_;
};

}  // namespace

absl::Status RunShared(Bench& bench) {
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder, /*shares_memory=*/true);
  if (!servers.ok()) return servers.status();
  bench.report.BeginSection(
      "shared", "gradclip::SharedGradient, calls included, over a unix socket; GB/s of gradient");
  Shared shared(bench, *servers);
  const uint64_t large = uint64_t{bench.settings.quick ? 4u : 1024u} << 20;
  if (absl::Status run = shared.CompareWithMemory(large); !run.ok()) return run;
  absl::Status run = shared.CompareWithPyTorch(
      "GPT-2 124M BF16", DType::kBFloat16,
      bench.settings.quick ? std::vector<std::vector<int64_t>>{{768, 768}} : Gpt2Shapes(),
      {AtLeast(1.6), AtLeast(2.5)});
  if (!run.ok()) return run;
  run = shared.CompareWithPyTorch("4,000 tensors of 64 F32", DType::kFloat32,
                                  std::vector<std::vector<int64_t>>(4000, std::vector<int64_t>{64}),
                                  {AtLeast(20), {}});
  if (!run.ok()) return run;
  return shared.CompareWithEmptyCall();
}

}  // namespace gradclip::bench
