// gradclip bench
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <new>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "client/command/flags.h"
#include "client/command/gradient.h"
#include "client/command/gradient_calls.h"
#include "client/command/output.h"
#include "client/command/progress.h"
#include "client/command/verbs.h"
#include "server/options/bytes.h"

namespace gradclip {
namespace {

struct BenchFlags {
  ServerFlags server;
  std::string bytes = "1GiB";
  uint64_t tensors = 1;
  std::string dtype = "F32";
  std::string reply = "coefficient";
  SharedFlags shared;
  uint64_t rounds = 10;
  bool quiet = false;
};

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};

DType ParseDType(absl::string_view text) {
  for (DType dtype : kDTypes) {
    if (text == std::string(Name(dtype))) return dtype;
  }
  return DType::kFloat32;
}

// Fills with numbers of either sign from 0.5 to 1: the sign and mantissa at random, the exponent
// fixed, so that every dtype's are normal and stay so over many rounds. `state`: of xorshift64.
template <typename Bits>
void Fill(const Tensor& tensor, Bits random_bits, Bits exponent, uint64_t& state) {
  auto* const elements = static_cast<std::byte*>(tensor.data);
  const uint64_t count = tensor.elements();
  for (uint64_t i = 0; i < count; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const Bits bits = static_cast<Bits>((static_cast<Bits>(state) & random_bits) | exponent);
    std::memcpy(elements + i * sizeof(Bits), &bits, sizeof(Bits));
  }
}

void Fill(std::span<const Tensor> tensors) {
  uint64_t state = 0x9e3779b97f4a7c15;
  for (const Tensor& tensor : tensors) {
    switch (tensor.dtype) {
      case DType::kFloat32:
        Fill<uint32_t>(tensor, 0x807fffff, 0x3f000000, state);
        break;
      case DType::kFloat16:
        Fill<uint16_t>(tensor, 0x83ff, 0x3800, state);
        break;
      case DType::kBFloat16:
        Fill<uint16_t>(tensor, 0x807f, 0x3f00, state);
        break;
      case DType::kFloat64:
        Fill<uint64_t>(tensor, 0x800fffffffffffff, 0x3fe0000000000000, state);
        break;
    }
  }
}

// `elements` cut into `count` tensors of sizes that differ by one at most; without data.
std::vector<Tensor> CutIntoTensors(DType dtype, uint64_t elements, uint64_t count) {
  std::vector<Tensor> tensors;
  tensors.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t size = elements / count + (i < elements % count ? 1 : 0);
    tensors.push_back({absl::StrCat("tensor.", i), dtype, {static_cast<int64_t>(size)}});
  }
  return tensors;
}

// Seconds of each round, sorted; the answer of the last.
struct Measured {
  std::vector<double> seconds;
  ClipAnswer answer;

  // The smallest that is at least as long as this share of the rounds.
  double Quantile(double share) const {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(seconds.size())));
    return seconds[std::max<size_t>(rank, 1) - 1];
  }
};

using ClipCall =
    absl::FunctionRef<absl::StatusOr<ClipAnswer>(const ClipOptions&, const CallOptions&)>;

absl::StatusOr<Measured> Measure(const BenchFlags& flags, ClipCall clip) {
  Progress progress(ProgressTerminal(flags.quiet));
  ClipOptions options;
  options.reply = ParseReply(flags.reply);
  // The first round is not counted: it connects, faults memory in and learns the norm.
  options.max_norm = std::numeric_limits<double>::infinity();
  Measured measured;
  for (uint64_t round = 0; round <= flags.rounds; ++round) {
    CallOptions call = flags.server.call();
    call.progress = [&](uint64_t done, uint64_t total) {
      progress.Update(round * total + done, (flags.rounds + 1) * total);
    };
    const absl::Time start = absl::Now();
    const absl::StatusOr<ClipAnswer> answer = clip(options, call);
    if (!answer.ok()) return flags.server.Advise(answer.status());
    if (round > 0) measured.seconds.push_back(absl::ToDoubleSeconds(absl::Now() - start));
    measured.answer = *answer;
    // Every counted round clips, by a little: after thousands the numbers are still normal. (What
    // was clipped has the norm that was the limit.)
    options.max_norm = 0.999 * std::min(options.max_norm, answer->norm.total_norm);
  }
  std::sort(measured.seconds.begin(), measured.seconds.end());
  return measured;
}

absl::StatusOr<Measured> MeasureStreamed(const BenchFlags& flags, std::vector<Tensor> tensors,
                                         uint64_t bytes) {
  const std::unique_ptr<std::byte[]> data(new (std::nothrow) std::byte[bytes]);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this machine has no ", BytesText(bytes), " to spare; lower --bytes"));
  }
  std::byte* next = data.get();
  for (Tensor& tensor : tensors) {
    tensor.data = next;
    next += tensor.bytes();
  }
  Fill(tensors);
  Client client(flags.server.server, flags.server.client());
  return Measure(flags, [&](const ClipOptions& options, const CallOptions& call) {
    return client.Clip(tensors, options, call);
  });
}

absl::StatusOr<Measured> MeasureShared(const BenchFlags& flags, std::span<const Tensor> tensors) {
  Client client(flags.server.server, flags.server.client());
  SharedGradientOptions options;
  options.server_uids = flags.shared.server_uids;
  options.require_shared = true;  // else something else would be measured
  absl::StatusOr<SharedGradient> gradient = SharedGradient::Make(client, tensors, options);
  if (!gradient.ok()) return gradient.status();
  Fill(gradient->tensors());
  return Measure(flags, [&](const ClipOptions& clip, const CallOptions& call) {
    return gradient->Clip(clip, call);
  });
}

absl::Status Bench(const BenchFlags& flags) {
  const DType dtype = ParseDType(flags.dtype);
  const uint64_t elements = ParseBytes(flags.bytes).value_or(0) / ElementSize(dtype);
  const uint64_t bytes = elements * ElementSize(dtype);
  if (elements < flags.tensors) {
    return UsageError("bench",
                      absl::StrCat("--bytes=", flags.bytes, " holds ", elements, " ", flags.dtype,
                                   " elements, too few for --tensors=", flags.tensors));
  }
  const std::vector<Tensor> tensors = CutIntoTensors(dtype, elements, flags.tensors);
  const absl::StatusOr<Measured> measured =
      flags.shared.shared ? MeasureShared(flags, tensors) : MeasureStreamed(flags, tensors, bytes);
  if (!measured.ok()) return measured.status();

  const double median = measured->Quantile(0.5), slow = measured->Quantile(0.99);
  const double gigabytes_per_second = static_cast<double>(bytes) / median / 1e9;
  if (flags.server.json) {
    std::cout << JsonLine({{"bytes", bytes},
                           {"tensors", flags.tensors},
                           {"dtype", flags.dtype},
                           {"reply", flags.reply},
                           {"shared", flags.shared.shared},
                           {"rounds", flags.rounds},
                           {"gigabytes_per_second", gigabytes_per_second},
                           {"p50_seconds", median},
                           {"p99_seconds", slow},
                           {"backend", measured->answer.norm.backend}});
  } else if (flags.quiet) {
    std::cout << NumberText(gigabytes_per_second) << "\n";
  } else {
    std::cout << Fields(
        {{"gradient", absl::StrCat(BytesText(bytes), ", ", CountText(elements), " ", flags.dtype,
                                   " elements in ", CountText(flags.tensors),
                                   flags.tensors == 1 ? " tensor" : " tensors")},
         {"reply", flags.reply},
         {"shared memory", flags.shared.shared ? "yes" : "no"},
         {"rounds", CountText(flags.rounds)},
         {"rate", absl::StrCat(RateText(bytes, absl::Seconds(median)), " of gradient, median")},
         {"p50", DurationText(absl::Seconds(median))},
         {"p99", DurationText(absl::Seconds(slow))},
         {"backend", measured->answer.norm.backend}});
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchVerb(CLI::App& app, Action& chosen) {
  CLI::App& verb =
      *app.add_subcommand("bench", "Measure how fast a server clips a gradient made up here");
  const auto flags = std::make_shared<BenchFlags>();
  flags->server.AddTo(verb);
  flags->server.AddMessageBytesTo(verb);
  flags->shared.AddTo(verb);
  verb.add_option("--bytes", flags->bytes, "Size of the gradient: 65536, 64MiB, 1GiB, 2GB")
      ->type_name("SIZE")
      ->capture_default_str()
      ->check(BytesCheck());
  AddCount(verb, "--tensors", flags->tensors, "How many tensors it is cut into");
  verb.add_option("--dtype", flags->dtype, "F32, F16, BF16 or F64")
      ->type_name("DTYPE")
      ->capture_default_str()
      ->check(WordCheck({"F32", "F16", "BF16", "F64"}));
  AddReply(verb, flags->reply);
  AddCount(verb, "--rounds", flags->rounds, "How many calls are timed, after one that is not");
  AddQuiet(verb, flags->quiet, "Print the rate in GB/s alone, and no progress");
  verb.callback([flags, &chosen] { chosen = [flags] { return Bench(*flags); }; });
}

}  // namespace gradclip
