#include "server/security/allow_list.h"

#include <sys/types.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/options/bytes.h"
#include "server/options/suggest.h"
#include "server/security/file_lines.h"

namespace gradclip {
namespace {

constexpr absl::string_view kFlag = "allow";
constexpr absl::string_view kEverybodyElse = "*";
constexpr absl::string_view kUser = "uid:";

constexpr absl::string_view kJobs = "jobs";
constexpr absl::string_view kSharedMemory = "shared-memory";
constexpr absl::string_view kMaxGradientBytes = "max-gradient-bytes";

std::vector<std::string> Keys() {
  return {std::string(kJobs), std::string(kSharedMemory), std::string(kMaxGradientBytes)};
}

bool IsKey(absl::string_view word) {
  return word == kJobs || word == kSharedMemory || word == kMaxGradientBytes;
}

// What others have written, for messages: printable and not long.
std::string Quoted(absl::string_view text) {
  constexpr size_t kLongest = 64;
  const bool cut = text.size() > kLongest;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kLongest)), cut ? "...\"" : "\"");
}

std::string Who(absl::string_view identity) {
  return identity.empty() ? "a caller without a name" : Quoted(identity);
}

// What is wrong with it; empty: nothing.
std::string WhyNoIdentity(absl::string_view word) {
  if (IsKey(word.substr(0, word.find('=')))) {
    return absl::StrCat("begins with ", Quoted(word), "; it wants an identity first");
  }
  absl::string_view user = word;
  uid_t uid = 0;
  // Other ways to write the same number would never be looked for.
  if (absl::ConsumePrefix(&user, kUser) &&
      (!absl::SimpleAtoi(user, &uid) || absl::StrCat(uid) != user)) {
    return absl::StrCat("begins with ", Quoted(word), "; it wants ", kUser,
                        " and the number of a user: uid:1000");
  }
  return "";
}

// Reads the value into the permission. INVALID_ARGUMENT, with what it should be.
absl::Status Set(absl::string_view key, absl::string_view value, Permission& permission) {
  if (key == kJobs) {
    permission.jobs.emplace();
    if (value.empty()) return absl::OkStatus();
    *permission.jobs = absl::StrSplit(value, ',');
    for (const std::string& prefix : *permission.jobs) {
      if (prefix.empty()) {
        return absl::InvalidArgumentError(
            "prefixes of names with commas between, none of them empty; without jobs= it may use "
            "all jobs, with nothing after it none");
      }
    }
  } else if (key == kSharedMemory) {
    if (value != "yes" && value != "no") return absl::InvalidArgumentError("yes or no");
    permission.shared_memory = value == "yes";
  } else {
    const absl::StatusOr<uint64_t> bytes = ParseBytes(std::string_view(value.data(), value.size()));
    if (!bytes.ok()) return bytes.status();
    permission.max_gradient_bytes = *bytes;
  }
  return absl::OkStatus();
}

std::string NoSuchKey(absl::string_view key) {
  const std::optional<std::string> closest = Closest(key, Keys());
  return absl::StrCat("has ", Quoted(key), ", which is no key",
                      closest.has_value() ? absl::StrCat(" (did you mean ", *closest, "?)") : "",
                      "; there are ", absl::StrJoin(Keys(), ", "));
}

}  // namespace

absl::Status CheckJob(const Permission& permission, absl::string_view identity,
                      absl::string_view job) {
  if (!permission.jobs.has_value() ||
      std::any_of(permission.jobs->begin(), permission.jobs->end(),
                  [job](const std::string& prefix) { return absl::StartsWith(job, prefix); })) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(
      absl::StrCat(Who(identity), " may not use the job ", Quoted(job),
                   ": choose a name that it may use, or ask who runs the server to allow this one "
                   "(jobs= in the operator's --allow file)"));
}

absl::Status CheckSharedMemory(const Permission& permission, absl::string_view identity) {
  if (permission.shared_memory) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(Who(identity),
                   " may not share memory: send the gradient's bytes, or ask who runs the server "
                   "to allow it (shared-memory= in the operator's --allow file)"));
}

absl::Status CheckGradientBytes(const Permission& permission, absl::string_view identity,
                                uint64_t bytes) {
  if (bytes <= permission.max_gradient_bytes) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("the gradient has ", bytes, " bytes; ", Who(identity), " may have at most ",
                   permission.max_gradient_bytes,
                   " measured in one call: ask who runs the server to allow more "
                   "(max-gradient-bytes= in the operator's --allow file)"));
}

absl::StatusOr<AllowList> AllowList::Parse(absl::string_view text) {
  AllowList list;
  std::map<std::string, size_t, std::less<>> lines;  // where each identity was
  for (const FileLine& line : FileLines(text)) {
    const std::vector<absl::string_view>& words = line.words;
    if (const std::string why = WhyNoIdentity(words[0]); !why.empty()) {
      return Malformed(line.number, why);
    }
    const auto [first, is_first] = lines.emplace(words[0], line.number);
    if (!is_first) {
      return Malformed(line.number, absl::StrCat("has the identity ", Quoted(words[0]),
                                                 " again, which line ", first->second, " has"));
    }
    Permission permission;
    std::set<absl::string_view> keys;
    for (size_t i = 1; i < words.size(); ++i) {
      const size_t equals = words[i].find('=');
      if (equals == absl::string_view::npos) {
        return Malformed(line.number,
                         absl::StrCat("has ", Quoted(words[i]),
                                      " after the identity; it wants KEY=VALUE, without "
                                      "blanks, and a comment on a line of its own"));
      }
      const absl::string_view key = words[i].substr(0, equals);
      const absl::string_view value = words[i].substr(equals + 1);
      if (!IsKey(key)) return Malformed(line.number, NoSuchKey(key));
      if (!keys.insert(key).second)
        return Malformed(line.number, absl::StrCat("has ", key, "= twice"));
      if (const absl::Status set = Set(key, value, permission); !set.ok()) {
        return Malformed(line.number, absl::StrCat("has ", key, "=", Quoted(value), "; it wants ",
                                                   set.message()));
      }
    }
    list.by_identity_.emplace(words[0], std::move(permission));
  }
  if (list.by_identity_.empty()) {
    return absl::InvalidArgumentError("has no line, so that nobody could do anything");
  }
  return list;
}

const Permission* AllowList::Find(absl::string_view identity) const {
  auto found = by_identity_.find(identity);
  if (found == by_identity_.end()) found = by_identity_.find(kEverybodyElse);
  return found == by_identity_.end() ? nullptr : &found->second;
}

absl::StatusOr<std::unique_ptr<Permissions>> Permissions::Make(const std::string& allow, Log& log) {
  auto list = FollowedValue<AllowList>::Make("permissions", std::string(kFlag), allow, log);
  if (!list.ok()) return list.status();
  return std::unique_ptr<Permissions>(new Permissions(*std::move(list)));
}

absl::StatusOr<std::shared_ptr<const Permission>> Permissions::Of(
    absl::string_view identity) const {
  std::shared_ptr<const AllowList> list = list_->now();
  const Permission* const permission = list->Find(identity);
  if (permission != nullptr) return std::shared_ptr<const Permission>(std::move(list), permission);
  if (identity.empty()) {
    return absl::PermissionDeniedError(
        "callers without a name may do nothing here: call with a token or a certificate, or ask "
        "who runs the server to add a line for them (*) to the --allow file");
  }
  return absl::PermissionDeniedError(
      absl::StrCat(Quoted(identity),
                   " may do nothing here: ask who runs the server to add a line for it to the "
                   "--allow file"));
}

}  // namespace gradclip
