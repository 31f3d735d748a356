#include "server/backend/backend.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/backend/cpu/cpu_backend.h"
#include "server/backend/cpu/kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace gradclip {
namespace {

struct CpuVariant {
  std::string_view name;
  const Kernels& kernels;
  bool usable;
  std::string_view instructions;
};

#ifdef __x86_64__
// __builtin_cpu_supports() also asks whether the system saves the registers. Not every compiler's
// knows F16C, which adds none.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// In order of preference.
std::vector<CpuVariant> CpuVariants() {
  return {
#ifdef __x86_64__
      {"cpu/avx512", kAvx512Kernels, HasAvx512(), "AVX-512 F, BW, VL, DQ and F16C"},
      {"cpu/avx2", kAvx2Kernels, HasAvx2(), "AVX2, FMA and F16C"},
      {"cpu/baseline", kBaselineKernels, true, "SSE2"},
#else
      {"cpu/baseline", kBaselineKernels, true, "NEON"},
#endif
  };
}

}  // namespace

std::vector<BackendChoice> ListBackends() {
  std::vector<BackendChoice> choices;
  for (const CpuVariant& variant : CpuVariants()) {
    choices.push_back({std::string(variant.name), variant.usable,
                       variant.usable
                           ? std::string(variant.instructions)
                           : absl::StrFormat("needs %s, which this processor lacks in part",
                                             variant.instructions)});
  }
  return choices;
}

std::string BackendNames(std::span<const BackendChoice> others) {
  std::vector<BackendChoice> choices(others.begin(), others.end());
  for (BackendChoice& host : ListBackends()) choices.push_back(std::move(host));
  return absl::StrCat(
      "auto, cpu, ",
      absl::StrJoin(choices, ", ", [](std::string* out, const BackendChoice& choice) {
        absl::StrAppend(out, choice.name,
                        choice.usable ? "" : absl::StrCat(" (", choice.detail, ")"));
      }));
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     std::span<const BackendChoice> others) {
  for (const CpuVariant& variant : CpuVariants()) {
    const bool named = name == variant.name;
    if (!named && name != "auto" && name != "cpu") continue;
    if (variant.usable) return std::make_unique<CpuBackend>(variant.name, variant.kernels);
    if (named) {
      return absl::FailedPreconditionError(
          absl::StrFormat("backend \"%s\" can't be used here; --backend takes one of: %s", name,
                          BackendNames(others)));
    }
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "unknown backend \"%s\"; --backend takes one of: %s", name, BackendNames(others)));
}

}  // namespace gradclip
