#include "client/command/gradient_calls.h"

#include <cstring>
#include <iostream>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/command/output.h"

namespace gradclip {
namespace {

std::optional<std::vector<uid_t>> ParseUids(absl::string_view text) {
  std::vector<uid_t> uids;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    uint32_t uid = 0;
    if (!absl::SimpleAtoi(part, &uid) || uid == std::numeric_limits<uint32_t>::max()) {
      return std::nullopt;
    }
    uids.push_back(uid);
  }
  return uids;
}

void Copy(std::span<const Tensor> from, std::span<const Tensor> to) {
  for (size_t i = 0; i < from.size(); ++i) {
    if (const uint64_t bytes = from[i].bytes(); bytes > 0) {
      std::memcpy(to[i].data, from[i].data, bytes);
    }
  }
}

}  // namespace

void SharedFlags::AddTo(CLI::App& verb) {
  verb.add_flag("--shared", shared,
                "Share the gradient's memory with a server on this host (its --memory-socket) "
                "instead of sending it");
  const auto parse = [this](const std::string& text) {
    if (auto uids = ParseUids(text)) server_uids = *std::move(uids);
  };
  const auto check = [](const std::string& text) {
    return ParseUids(text).has_value()
               ? std::string()
               : absl::StrCat("must be user ids with commas between them, as in 1000,1001, not ",
                              text);
  };
  verb.add_option_function<std::string>(
          "--server-uids", parse,
          "With --shared: users, beside root and your own, as whom the server may run")
      ->type_name("UID,...")
      ->check(check);
}

absl::StatusOr<GradientCalls> GradientCalls::Make(Client& client, const SharedFlags& flags,
                                                  std::span<const Tensor> tensors) {
  GradientCalls calls(client, tensors);
  if (!flags.shared) return calls;
  SharedGradientOptions options;
  options.server_uids = flags.server_uids;
  options.warn = [](const std::string& warning) {
    std::cerr << "gradclip: " << Printable(warning) << "\n";
  };
  absl::StatusOr<SharedGradient> shared = SharedGradient::Make(client, tensors, std::move(options));
  if (!shared.ok()) return shared.status();
  Copy(tensors, shared->tensors());
  calls.shared_.emplace(*std::move(shared));
  return calls;
}

std::span<const Tensor> GradientCalls::tensors() const {
  return shared_.has_value() ? shared_->tensors() : given_;
}

absl::StatusOr<NormAnswer> GradientCalls::ComputeNorm(const NormOptions& options,
                                                      const CallOptions& call) {
  return shared_.has_value() ? shared_->ComputeNorm(options, call)
                             : client_.ComputeNorm(given_, options, call);
}

absl::StatusOr<ClipAnswer> GradientCalls::Clip(const ClipOptions& options,
                                               const CallOptions& call) {
  return shared_.has_value() ? shared_->Clip(options, call) : client_.Clip(given_, options, call);
}

void GradientCalls::CopyBack(const ClipAnswer& answer) {
  // What is not written stays one with the file that is mapped there.
  if (shared_.has_value() && answer.coefficient != 1) Copy(shared_->tensors(), given_);
}

void GradientCalls::AppendField(std::vector<std::pair<std::string, std::string>>& fields) const {
  if (!shared_.has_value()) return;
  const absl::Status& refusal = shared_->refusal();
  fields.emplace_back(
      "shared memory",
      shared_->shared() ? "yes" : absl::StrCat("no", refusal.ok() ? "" : ": ", refusal.message()));
}

}  // namespace gradclip
