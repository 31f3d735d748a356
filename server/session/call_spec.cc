#include "server/session/call_spec.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "server/group/sha256.h"

namespace gradclip {
namespace {

// A gradient's bytes are counted in int64 by every caller's language.
constexpr uint64_t kMaxGradientBytes = std::numeric_limits<int64_t>::max();

// Names come from strangers and go into messages; a megabyte of one would not help anybody.
constexpr size_t kShownNameBytes = 120;

absl::StatusOr<DType> CheckDType(const v1::TensorSpec& tensor, size_t index) {
  switch (tensor.dtype()) {
    case v1::DTYPE_FLOAT32:
    case v1::DTYPE_FLOAT16:
    case v1::DTYPE_BFLOAT16:
    case v1::DTYPE_FLOAT64:
      return static_cast<DType>(tensor.dtype());
    default:
      return absl::InvalidArgumentError(absl::StrFormat(
          "tensor %s: dtype is %d; it must be DTYPE_FLOAT32 (1), DTYPE_FLOAT16 (2), "
          "DTYPE_BFLOAT16 (3) or DTYPE_FLOAT64 (4)",
          DescribeTensor(tensor.name(), index), static_cast<int>(tensor.dtype())));
  }
}

absl::StatusOr<uint64_t> CountElements(const v1::TensorSpec& tensor, DType dtype, size_t index) {
  const auto describe_shape = [&] {
    return absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]");
  };
  bool empty = false;
  for (int64_t extent : tensor.shape()) {
    if (extent < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: shape %s has the negative extent %d",
                          DescribeTensor(tensor.name(), index), describe_shape(), extent));
    }
    empty = empty || extent == 0;
  }
  if (empty) return uint64_t{0};
  uint64_t elements = 1;
  for (int64_t extent : tensor.shape()) {
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(extent), &elements) ||
        elements > kMaxGradientBytes / ElementSize(dtype)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: shape %s declares more than 2^63 - 1 bytes of %s",
                          DescribeTensor(tensor.name(), index), describe_shape(), Name(dtype)));
    }
  }
  return elements;
}

absl::Status AddTensor(v1::TensorSpec& tensor, CallSpec& spec) {
  const size_t index = spec.tensors.size();
  const absl::StatusOr<DType> dtype = CheckDType(tensor, index);
  if (!dtype.ok()) return dtype.status();
  const absl::StatusOr<uint64_t> elements = CountElements(tensor, *dtype, index);
  if (!elements.ok()) return elements.status();

  TensorDeclaration declaration;
  declaration.name = std::move(*tensor.mutable_name());
  declaration.dtype = *dtype;
  declaration.replica = tensor.replica();
  declaration.elements = *elements;
  const uint64_t bytes = declaration.bytes();
  spec.gradient_bytes += bytes;
  if (spec.gradient_bytes > kMaxGradientBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s: the gradient up to here has more than 2^63 - 1 bytes",
                        DescribeTensor(declaration.name, index)));
  }
  if (bytes > 0) {
    if (!spec.runs.empty() && spec.runs.back().dtype == *dtype) {
      spec.runs.back().bytes += bytes;
    } else {
      spec.runs.push_back({*dtype, bytes});
    }
  }
  spec.tensors.push_back(std::move(declaration));
  return absl::OkStatus();
}

absl::Status OutOfRange(std::string_view field, double value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g; it must be %s", field, value, allowed));
}

absl::StatusOr<Participant> CheckGroup(const v1::Group& group) {
  constexpr size_t kLongestJob = 256;
  constexpr size_t kLongestSecret = 1024;
  if (group.job().empty() || group.job().size() > kLongestJob) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "group.job has %d bytes; it must have 1 to %d", group.job().size(), kLongestJob));
  }
  if (group.rank() >= group.world_size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("group.rank is %d, and group.world_size %d; ranks are 0 .. world_size - 1",
                        group.rank(), group.world_size()));
  }
  if (group.job_secret().size() > kLongestSecret) {
    return absl::InvalidArgumentError(
        absl::StrFormat("group.job_secret has %d bytes; it must have at most %d",
                        group.job_secret().size(), kLongestSecret));
  }
  Participant participant;
  participant.step = {group.job(), group.generation(), group.step(), group.attempt()};
  participant.rank = group.rank();
  participant.world_size = group.world_size();
  participant.timeout = absl::InfiniteDuration();
  if (group.has_timeout()) {
    participant.timeout =
        absl::Seconds(group.timeout().seconds()) + absl::Nanoseconds(group.timeout().nanos());
    if (participant.timeout <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "group.timeout is ", absl::FormatDuration(participant.timeout), "; it must be > 0"));
    }
  }
  participant.secret_hash = Sha256(group.job_secret());
  return participant;
}

// What both RPCs declare alike.
template <typename Start>
absl::StatusOr<CallSpec> MakeCommonSpec(Start& start) {
  CallSpec spec;
  if (start.has_group()) {
    absl::StatusOr<Participant> group = CheckGroup(start.group());
    if (!group.ok()) return group.status();
    spec.group = *std::move(group);
  }
  const v1::NormOptions& norm = start.norm();
  if (norm.has_norm_type()) spec.norm_type = norm.norm_type();
  if (!(spec.norm_type > 0)) {
    return OutOfRange("norm.norm_type", spec.norm_type, "> 0 or +infinity");
  }
  if (norm.has_pre_scale()) spec.rule.pre_scale = norm.pre_scale();
  if (!(spec.rule.pre_scale > 0) || !std::isfinite(spec.rule.pre_scale)) {
    return OutOfRange("norm.pre_scale", spec.rule.pre_scale, "finite and > 0");
  }
  spec.per_tensor = norm.per_tensor();

  spec.tensors.reserve(start.tensors_size());
  for (v1::TensorSpec& tensor : *start.mutable_tensors()) {
    if (absl::Status added = AddTensor(tensor, spec); !added.ok()) return added;
  }
  return spec;
}

absl::Status CheckTotalNorm(const v1::ClipGradNormStart& start) {
  const double total_norm = start.total_norm();
  if (start.has_group()) {
    return absl::InvalidArgumentError(
        "total_norm is set together with group; with total_norm nothing is measured, and so there "
        "is nothing that ranks could share");
  }
  if (total_norm < 0) return OutOfRange("total_norm", total_norm, ">= 0 or NaN");
  if (start.norm().per_tensor()) {
    return absl::InvalidArgumentError(
        "total_norm is set together with norm.per_tensor; with total_norm nothing is measured");
  }
  if (start.reply() == v1::REPLY_COEFFICIENT) {
    return absl::InvalidArgumentError(
        "total_norm is set together with reply REPLY_COEFFICIENT; who knows the norm and scales "
        "the "
        "gradient needs no server: the coefficient is min(1, max_norm / (total_norm + epsilon))");
  }
  return absl::OkStatus();
}

// The shortest text that reads back as the same double.
std::string Shortest(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return std::string(text.data(), end.ptr);
}

std::string_view NameOf(OnNonfinite policy) {
  switch (policy) {
    case OnNonfinite::kPropagate:
      return "NONFINITE_PROPAGATE";
    case OnNonfinite::kError:
      return "NONFINITE_ERROR";
    case OnNonfinite::kSkip:
      return "NONFINITE_SKIP";
    case OnNonfinite::kZero:
      return "NONFINITE_ZERO";
  }
  return "";
}

// What all ranks of a group must declare alike.
Terms TermsOf(const CallSpec& spec, bool clips) {
  Terms terms = {{"the RPC", clips ? "ClipGradNorm" : "ComputeNorm"},
                 {"group.world_size", absl::StrCat(spec.group->world_size)},
                 {"norm.norm_type", Shortest(spec.norm_type)},
                 {"norm.pre_scale", Shortest(spec.rule.pre_scale)}};
  if (clips) {
    terms.push_back({"max_norm", Shortest(spec.rule.max_norm)});
    terms.push_back({"epsilon", Shortest(spec.rule.epsilon)});
    terms.push_back({"nonfinite", std::string(NameOf(spec.rule.nonfinite))});
  }
  return terms;
}

}  // namespace

std::string DescribeTensor(const std::string& name, size_t index) {
  if (name.empty()) return absl::StrCat("#", index);
  if (name.size() > kShownNameBytes) {
    return absl::StrCat("\"", absl::Utf8SafeCEscape(name.substr(0, kShownNameBytes)), "...\" (#",
                        index, ")");
  }
  return absl::StrCat("\"", absl::Utf8SafeCEscape(name), "\"");
}

absl::StatusOr<CallSpec> MakeCallSpec(v1::ComputeNormStart&& start) {
  absl::StatusOr<CallSpec> spec = MakeCommonSpec(start);
  if (spec.ok() && spec->group.has_value()) spec->group->terms = TermsOf(*spec, /*clips=*/false);
  return spec;
}

absl::StatusOr<CallSpec> MakeCallSpec(v1::ClipGradNormStart&& start) {
  absl::StatusOr<CallSpec> spec = MakeCommonSpec(start);
  if (!spec.ok()) return spec;

  if (!start.has_max_norm()) {
    return absl::InvalidArgumentError(
        "max_norm is not set; it must be >= 0, and +infinity measures without clipping");
  }
  // -0 is >= 0 too, and what is divided by it or multiplied with it would have the wrong sign.
  if (!(start.max_norm() >= 0)) return OutOfRange("max_norm", start.max_norm(), ">= 0");
  spec->rule.max_norm = std::fabs(start.max_norm());
  if (start.has_epsilon()) {
    if (!(start.epsilon() >= 0) || !std::isfinite(start.epsilon())) {
      return OutOfRange("epsilon", start.epsilon(), "finite and >= 0");
    }
    spec->rule.epsilon = std::fabs(start.epsilon());
  }
  if (!v1::NonfinitePolicy_IsValid(start.nonfinite())) {
    return OutOfRange("nonfinite", start.nonfinite(), "a NonfinitePolicy, 0 to 3");
  }
  spec->rule.nonfinite = static_cast<OnNonfinite>(start.nonfinite());
  if (!v1::ReplyMode_IsValid(start.reply())) {
    return OutOfRange("reply", start.reply(), "a ReplyMode, 0 to 2");
  }
  spec->reply = start.reply();
  if (start.has_total_norm()) {
    if (absl::Status checked = CheckTotalNorm(start); !checked.ok()) return checked;
    spec->total_norm = std::fabs(start.total_norm());
  }
  if (spec->group.has_value()) spec->group->terms = TermsOf(*spec, /*clips=*/true);
  return spec;
}

}  // namespace gradclip
