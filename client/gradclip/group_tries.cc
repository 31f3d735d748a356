#include "client/gradclip/group_tries.h"

#include <algorithm>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/gradclip/backoff.h"
#include "client/gradclip/utf8.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

constexpr size_t kLongestJob = 256;

// All ranks of a step that was aborted are told so within moments.
constexpr absl::Duration kFirstWait = absl::Milliseconds(10);
constexpr absl::Duration kLongestWait = absl::Seconds(1);

grpc::Slice Serialise(const Group& group) {
  v1::ComputeNormStart start;
  v1::Group& field = *start.mutable_group();
  field.set_job(group.job);
  field.set_generation(group.generation);
  field.set_step(group.step);
  field.set_rank(group.rank);
  field.set_world_size(group.world_size);
  field.set_attempt(group.attempt);
  field.set_job_secret(group.job_secret);
  if (group.timeout < absl::InfiniteDuration()) {
    absl::Duration rest = group.timeout;
    field.mutable_timeout()->set_seconds(absl::IDivDuration(rest, absl::Seconds(1), &rest));
    field.mutable_timeout()->set_nanos(
        static_cast<int32_t>(std::max<int64_t>(absl::ToInt64Nanoseconds(rest), 0)));
  }
  return grpc::Slice(start.SerializeAsString());
}

// Whether the next attempt may be tried: the step was aborted, or this rank comes so late that
// others have gone on already, which a server says in these words.
bool MayGoOn(const absl::Status& status) {
  return absl::IsAborted(status) ||
         (absl::IsFailedPrecondition(status) &&
          absl::StrContains(status.message(), ": that attempt is over, "));
}

}  // namespace

absl::Status CheckGroup(const Group& group) {
  if (group.job.empty() || group.job.size() > kLongestJob || !IsUtf8(group.job)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "group.job has %d bytes; it must be UTF-8 of 1 to %d", group.job.size(), kLongestJob));
  }
  if (group.world_size == 0) {
    return absl::InvalidArgumentError("group.world_size is 0; it must be at least 1");
  }
  if (group.rank >= group.world_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("group.rank is %d, and group.world_size %d; ranks are 0 .. world_size - 1",
                        group.rank, group.world_size));
  }
  if (group.timeout < absl::Nanoseconds(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("group.timeout is ", absl::FormatDuration(group.timeout), "; it must be > 0"));
  }
  if (group.max_attempts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("group.max_attempts is ", group.max_attempts, "; it must be at least 1"));
  }
  return absl::OkStatus();
}

absl::Status GroupTries::Try(absl::Time deadline, Run run) {
  if (group_.has_value()) {
    if (absl::Status checked = CheckGroup(*group_); !checked.ok()) return checked;
  }
  absl::BitGen random;
  for (int attempts = 1;; ++attempts) {
    bool changed = false;
    const absl::Status status = TryAttempt(deadline, run, changed);
    if (!group_.has_value() || !MayGoOn(status) || changed || attempts >= group_->max_attempts) {
      return status;
    }
    const absl::Duration wait =
        Backoff(attempts, kFirstWait, kLongestWait, absl::Uniform(random, 0.0, 1.0));
    if (absl::Now() + wait >= deadline) return status;
    absl::SleepFor(wait);
    ++group_->attempt;
  }
}

absl::Status GroupTries::TryAttempt(absl::Time deadline, Run run, bool& changed) {
  const grpc::Slice group = group_.has_value() ? Serialise(*group_) : grpc::Slice();
  std::string instance;
  return core_.Try(deadline, core_.options().max_retries,
                   [&](Connection& connection, bool& changed_now) {
                     if (group_.has_value()) {
                       absl::Status same = CheckInstance(connection, deadline, instance);
                       if (!same.ok()) return same;
                     }
                     absl::Status ended = run(connection, group, changed_now);
                     changed = changed_now;
                     return ended;
                   });
}

absl::Status GroupTries::CheckInstance(Connection& connection, absl::Time deadline,
                                       std::string& first) const {
  if (!connection.instance().has_value()) {
    const absl::StatusOr<ServerInfo> info = AskServerInfo(connection, {deadline});
    if (!info.ok()) return info.status();
    connection.set_instance(info->instance);
  }
  const std::string& instance = *connection.instance();
  if (first.empty()) first = instance;
  if (instance.empty() || instance == first) return absl::OkStatus();
  return absl::AbortedError(absl::StrFormat(
      "the server was restarted amid step %d of the job, attempt %d, and has forgotten it "
      "(instance %s, before %s): whether the step was committed is not known. All ranks may go on "
      "with the next attempt",
      group_->step, group_->attempt, instance, first));
}

}  // namespace gradclip
