#include "client/command/group_flags.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command/flags.h"

namespace gradclip {
namespace {

constexpr const char* kNeeded[] = {"--job", "--step", "--rank", "--world-size"};
constexpr size_t kLongestSecret = 1024;

}  // namespace

void GroupFlags::AddTo(CLI::App& verb) {
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  constexpr uint64_t kAny32 = std::numeric_limits<uint32_t>::max();
  const auto add_text = [&](const char* name, std::string& value, const char* type,
                            const char* meaning, const CLI::Validator& check) {
    verb.add_option_function<std::string>(
            name,
            [this, name, &value](const std::string& text) {
              value = text;
              given_.emplace_back(name);
            },
            meaning)
        ->type_name(type)
        ->check(check);
  };
  const auto add_whole = [&](const char* name, auto& value, uint64_t least, uint64_t most,
                             const char* meaning) {
    AddWhole(
        verb, name, least, most,
        [this, name, &value](uint64_t number) {
          value = static_cast<std::remove_reference_t<decltype(value)>>(number);
          given_.emplace_back(name);
        },
        meaning)
        ->default_str(absl::StrCat(value));
  };
  add_text("--job", group_.job, "NAME",
           "The gradient is one rank's part of this job's; all ranks get one norm",
           NotEmptyCheck());
  add_whole("--step", group_.step, 0, kAny, "The job's step");
  add_whole("--rank", group_.rank, 0, kAny32, "This rank, from 0 on");
  add_whole("--world-size", group_.world_size, 1, kAny32, "How many ranks there are");
  add_whole("--generation", group_.generation, 0, kAny, "Raised when the job restarts");
  add_whole("--attempt", group_.attempt, 0, kAny32,
            "Raised by all ranks to try an aborted step again");
  add_whole("--max-attempts", group_.max_attempts, 1, 1'000'000,
            "Go on with the next attempt where a step is aborted, up to so many");
  add_text(
      "--group-timeout", timeout_, "DURATION",
      "How long the step may take from its first rank's arrival; by default the server's limit",
      DurationCheck());
  add_text("--job-secret-file", secret_file_, "FILE",
           "The job's secret is in this file: who opens the job fixes it", NotEmptyCheck());
}

absl::Status GroupFlags::Apply(absl::string_view verb, CallOptions& call) const {
  if (given_.empty()) return absl::OkStatus();
  for (const char* const flag : kNeeded) {
    if (std::find(given_.begin(), given_.end(), flag) != given_.end()) continue;
    return UsageError(verb, absl::StrCat(given_.front(), " needs ", flag,
                                         ": a rank is given by --job, --step, --rank and "
                                         "--world-size"));
  }
  Group group = group_;
  // AddTo() has checked it.
  if (!timeout_.empty()) absl::ParseDuration(timeout_, &group.timeout);
  if (!secret_file_.empty()) {
    std::ifstream file(secret_file_, std::ios::binary);
    std::string secret(kLongestSecret + 3, '\0');  // with the end of a line, and one byte too many
    file.read(secret.data(), static_cast<std::streamsize>(secret.size()));
    secret.resize(static_cast<size_t>(file.gcount()));
    while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
    if (!file.is_open() || file.bad() || secret.empty() || secret.size() > kLongestSecret) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--job-secret-file %s can't be read, or does not hold 1 to %d bytes",
                          secret_file_, kLongestSecret));
    }
    group.job_secret = std::move(secret);
  }
  call.group = std::move(group);
  return absl::OkStatus();
}

void GroupFlags::AppendField(const NormAnswer& answer,
                             std::vector<std::pair<std::string, std::string>>& fields) const {
  if (given_.empty()) return;
  fields.emplace_back(
      "group", absl::StrFormat("rank %d of %d of %s, step %d, attempt %d; %d elements of all "
                               "ranks are not finite",
                               group_.rank, group_.world_size, group_.job, group_.step,
                               answer.attempt, answer.group_nonfinite_elements));
}

void GroupFlags::AddTo(const NormAnswer& answer, Json& json) const {
  if (!given_.empty()) json["attempt"] = answer.attempt;
}

}  // namespace gradclip
