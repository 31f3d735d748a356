#include "client/command/group_flags.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command/flags.h"

namespace gradclip {
namespace {

constexpr const char* kNeeded[] = {"--job", "--step", "--rank", "--world-size"};
constexpr size_t kLongestSecret = 1024;

// A flag that takes a whole number from `least` to `most`. (The library would read 010 as 8.)
template <typename Number>
void AddWhole(CLI::App& verb, const std::string& name, Number& number, uint64_t least,
              uint64_t most, std::vector<std::string>& given, const std::string& meaning) {
  const auto check = [least, most](const std::string& text) {
    uint64_t value = 0;
    if (absl::SimpleAtoi(text, &value) && value >= least && value <= most) return std::string();
    return absl::StrCat("must be a whole number from ", least, " to ", most, ", not ", text);
  };
  const auto parse = [name, &number, &given](const std::string& text) {
    uint64_t value = 0;
    (void)absl::SimpleAtoi(text, &value);
    number = static_cast<Number>(value);
    given.push_back(name);
  };
  verb.add_option_function<std::string>(name, parse, meaning)
      ->type_name("NUMBER")
      ->default_str(absl::StrCat(number))
      ->check(check);
}

}  // namespace

void GroupFlags::AddTo(CLI::App& verb) {
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  constexpr uint64_t kAny32 = std::numeric_limits<uint32_t>::max();
  const auto add_text = [&](const char* name, std::string& value, const char* type,
                            const char* meaning,
                            const std::function<std::string(const std::string&)>& check) {
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
  const auto not_empty = [](const std::string& text) {
    return text.empty() ? std::string("must not be empty") : std::string();
  };
  add_text("--job", group_.job, "NAME",
           "The gradient is one rank's part of this job's; all ranks get one norm", not_empty);
  AddWhole(verb, "--step", group_.step, 0, kAny, given_, "The job's step");
  AddWhole(verb, "--rank", group_.rank, 0, kAny32, given_, "This rank, from 0 on");
  AddWhole(verb, "--world-size", group_.world_size, 1, kAny32, given_, "How many ranks there are");
  AddWhole(verb, "--generation", group_.generation, 0, kAny, given_,
           "Raised when the job restarts");
  AddWhole(verb, "--attempt", group_.attempt, 0, kAny32, given_,
           "Raised by all ranks to try an aborted step again");
  AddWhole(verb, "--max-attempts", group_.max_attempts, 1, 1'000'000, given_,
           "Go on with the next attempt where a step is aborted, up to so many");
  add_text(
      "--group-timeout", timeout_, "DURATION",
      "How long the step may take from its first rank's arrival; by default the server's limit",
      [](const std::string& text) {
        absl::Duration duration;
        return absl::ParseDuration(text, &duration) && duration > absl::ZeroDuration()
                   ? std::string()
                   : absl::StrCat("must be a time over 0 with its unit, as in 30s or 2m, not ",
                                  text);
      });
  add_text("--job-secret-file", secret_file_, "FILE",
           "The job's secret is in this file: who opens the job fixes it", not_empty);
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
    std::string secret(std::istreambuf_iterator<char>(file), {});
    while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
    if (!file || secret.empty() || secret.size() > kLongestSecret) {
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
