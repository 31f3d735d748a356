#include "server/group/redis/steps.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/group/clock.h"
#include "server/group/refusals.h"

namespace gradclip {
namespace {

// Jobs of which it is remembered how far they are, in case Redis forgets it.
constexpr size_t kMostKnownJobs = 4096;

absl::Status OutcomeUnknown(const StepId& id, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat(
      id.Describe(), ": ", why, ". What becomes of the attempt is unknown: ask again"));
}

}  // namespace

Store::OnOutcome RedisCall::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(on_outcome_, nullptr);
}

RedisSteps::RedisSteps(RedisLink& link, const GroupTimes& times, uint32_t max_open_steps)
    : link_(link), times_(times), max_open_steps_(max_open_steps) {
  link_.Handle({.message = [this](std::string_view text) { OnMessage(text); },
                .ready = [this](bool anew) { OnReady(anew); },
                .away = [this](const absl::Status& why) { OnAway(why); }});
}

RedisSteps::~RedisSteps() {
  // Calls and steps know each other.
  for (const auto& [name, step] : steps_) step->calls.clear();
}

StepCommands RedisSteps::CommandsOf(const RedisCall& call) const {
  return {call.participant, call.token, times_, link_.lease()};
}

// REQUIRES: a call has come.
StepCommands RedisSteps::CommandsOf(const LocalStep& step) const {
  return {step.asker->participant, step.asker->token, times_, link_.lease()};
}

std::optional<KnownJob> RedisSteps::Known(const StepId& id) const {
  const auto known = known_.find(id.job);
  if (known == known_.end()) return std::nullopt;
  return known->second;
}

// That the step was committed.
void RedisSteps::Remember(const StepId& id) {
  const auto [known, is_new] = known_.try_emplace(id.job, KnownJob{id.generation, id.step});
  if (is_new) {
    known_order_.push_back(id.job);
    if (known_order_.size() <= kMostKnownJobs) return;
    known_.erase(known_order_.front());
    known_order_.pop_front();
    return;
  }
  KnownJob& job = known->second;
  job = std::max(job, KnownJob{id.generation, id.step}, [](const KnownJob& a, const KnownJob& b) {
    return std::pair(a.generation, a.over) < std::pair(b.generation, b.over);
  });
}

void RedisSteps::Join(const CallPointer& call, absl::Time came) {
  const std::string name = StepName(call->participant.step);
  StepPointer& step = steps_[name];
  if (step == nullptr) {
    step = std::make_shared<LocalStep>();
    step->name = name;
  }
  call->step_ = step;
  step->calls.insert(call);
  if (!link_.reachable().ok()) {
    return Tell(call, OutcomeUnknown(call->participant.step, link_.reachable().message()));
  }
  call->under_way_ = true;
  joining_.push_back({call, came + kJoinWait});
}

void RedisSteps::SendJoins(absl::Time now) {
  std::erase_if(joining_, [&](const Joining& joining) {
    const CallPointer& call = joining.call;
    if (call->over_) return true;
    if (now < joining.due && !call->contribution_.has_value() && !call->going_.has_value()) {
      return false;
    }
    SendJoin(call);
    return true;
  });
}

void RedisSteps::SendJoin(const CallPointer& call) {
  call->brought_ = call->contribution_.has_value();
  RedisCommand command = CommandsOf(*call).Join(
      may_open_, max_open_steps_, Known(call->participant.step), call->contribution_.value_or(""));
  command.on_reply = [this, call](absl::StatusOr<const redisReply*> reply) {
    OnJoined(call, reply.ok() ? StepReply::Parse(**reply, call->participant) : reply.status());
  };
  call->under_way_ = true;
  link_.Run(std::move(command));
}

// Sends what is next for the call to send: what it brought before it went comes first.
void RedisSteps::Next(const CallPointer& call) {
  if (call->under_way_ || call->over_ || call->step_->holding) return;
  if (!call->came_) {
    if (call->going_.has_value()) Drop(call);
    return;
  }
  const bool contributes = call->contribution_.has_value();
  if (!contributes && !call->going_.has_value()) return;
  RedisCommand command = contributes ? CommandsOf(*call).Contribute(call->id_, *call->contribution_)
                                     : CommandsOf(*call).Leave(call->id_, *call->going_);
  const auto answered = contributes ? &RedisSteps::OnContributed : &RedisSteps::OnLeft;
  command.on_reply = [this, call, answered](absl::StatusOr<const redisReply*> reply) {
    (this->*answered)(call,
                      reply.ok() ? StepReply::Parse(**reply, call->participant) : reply.status());
  };
  call->under_way_ = true;
  link_.Run(std::move(command));
}

void RedisSteps::Contribute(const CallPointer& call, std::string contribution) {
  if (call->over_ || call->going_.has_value()) return;
  call->contribution_ = std::move(contribution);
  Next(call);
}

void RedisSteps::Leave(const CallPointer& call, Going going) {
  if (call->over_) return;
  call->going_ = std::move(going);
  Next(call);
}

void RedisSteps::OnJoined(const CallPointer& call, absl::StatusOr<StepReply> reply) {
  call->under_way_ = false;
  if (!reply.ok()) {
    Abandon(call);
    return Tell(call, reply.status());
  }
  const StepPointer step = call->step_;
  switch (reply->kind) {
    case StepReply::Kind::kOpen:
    case StepReply::Kind::kCommitted:
      break;
    case StepReply::Kind::kAborted:
      Tell(call, reply->status);
      return NoteAborted(step, reply->status);
    case StepReply::Kind::kRefused:
      return Tell(call, reply->status);
    case StepReply::Kind::kGone:
      return Tell(call, absl::InternalError("Redis has forgotten a step while it was joined"));
  }
  call->came_ = true;
  call->id_ = reply->id;
  if (call->brought_) {
    call->taken_ = true;
    call->contribution_.reset();
  }
  if (step->id != reply->id) {
    // Those who came to another opening of the same attempt are told by their own contributions.
    step->id = reply->id;
    step->asker = LocalStep::Asker{call->participant, call->token};
    step->outcome = nullptr;
  }
  Note(step, *reply);
  Next(call);
}

void RedisSteps::OnContributed(const CallPointer& call, absl::StatusOr<StepReply> reply) {
  call->under_way_ = false;
  if (!reply.ok()) {
    Abandon(call);
    return Tell(call, reply.status());
  }
  if (reply->kind == StepReply::Kind::kRefused) return Tell(call, reply->status);
  if (reply->kind == StepReply::Kind::kOpen || reply->kind == StepReply::Kind::kCommitted) {
    call->taken_ = true;
    call->contribution_.reset();
  }
  Note(call->step_, *reply);
  Next(call);  // where it goes meanwhile
}

void RedisSteps::OnLeft(const CallPointer& call, absl::StatusOr<StepReply> reply) {
  call->under_way_ = false;
  const StepPointer step = call->step_;
  Drop(call);
  // (A step that is gone is found out by the calls that are still in it.)
  if (reply.ok() && reply->kind != StepReply::Kind::kGone) Note(step, *reply);
}

void RedisSteps::Check(const StepPointer& step, bool bury) {
  if (step->checking || !step->asker.has_value()) return;
  step->checking = true;
  step->recheck = false;
  RedisCommand command =
      CommandsOf(*step).Check(step->id, bury, Known(step->asker->participant.step));
  command.on_reply = [this, step](absl::StatusOr<const redisReply*> reply) {
    step->checking = false;
    OnChecked(step,
              reply.ok() ? StepReply::Parse(**reply, step->asker->participant) : reply.status());
  };
  link_.Run(std::move(command));
}

void RedisSteps::OnChecked(const StepPointer& step, absl::StatusOr<StepReply> reply) {
  const bool held = std::exchange(step->holding, false);
  if (!reply.ok()) {
    LookBy(step, SteadyNow() + absl::Seconds(1));
  } else {
    Note(step, *reply);
  }
  if (!held) return;
  for (const CallPointer& call : std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
    Next(call);
  }
}

void RedisSteps::Note(const StepPointer& step, const StepReply& reply) {
  switch (reply.kind) {
    case StepReply::Kind::kOpen:
      return NoteOpen(step, reply);
    case StepReply::Kind::kCommitted:
      return NoteCommitted(step, reply.sums);
    case StepReply::Kind::kAborted:
      return NoteAborted(step, reply.status);
    case StepReply::Kind::kRefused:  // joins and contributions are, and those tell their calls
    case StepReply::Kind::kGone:
      return NoteGone(step);
  }
}

void RedisSteps::NoteOpen(const StepPointer& step, const StepReply& reply) {
  // Another server may die without a word.
  const absl::Duration longest = link_.lease() + times_.reconnect_grace;
  LookBy(step, SteadyNow() + std::min(reply.due, longest));
  // A message that came meanwhile may be of what happened after this reply.
  if (step->recheck) Check(step, /*bury=*/false);
}

void RedisSteps::NoteCommitted(const StepPointer& step, std::string_view sums) {
  if (step->asker.has_value()) Remember(step->asker->participant.step);
  LookBy(step, absl::InfiniteFuture());
  if (step->outcome == nullptr && !sums.empty() && step->asker.has_value()) {
    const Answer outcome = ParseSums(sums, step->id, step->asker->participant.world_size);
    if (!outcome.ok()) return OnFetched(step, outcome);
    step->outcome = *outcome;  // null where they are of another opening
  }
  if (step->outcome == nullptr) return Fetch(step);
  // Another call of a rank whose contribution was taken still has to show that its own is the same.
  for (const CallPointer& call : std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
    if (call->taken_ && call->id_ == step->id) Tell(call, step->outcome);
  }
}

void RedisSteps::Fetch(const StepPointer& step) {
  const bool is_waited_for =
      std::any_of(step->calls.begin(), step->calls.end(), [&](const CallPointer& call) {
        return call->taken_ && call->id_ == step->id && !call->going_.has_value();
      });
  if (step->fetching || !is_waited_for) return;
  step->fetching = true;
  RedisCommand command = CommandsOf(*step).Fetch();
  command.on_reply = [this, step, id = step->id](absl::StatusOr<const redisReply*> reply) {
    step->fetching = false;
    if (step->id != id) return;
    OnFetched(step, reply.ok() ? ParseFetched(**reply, id, step->asker->participant.world_size)
                               : reply.status());
  };
  link_.Run(std::move(command));
}

void RedisSteps::OnFetched(const StepPointer& step, Answer outcome) {
  if (outcome.ok() && *outcome != nullptr) {
    step->outcome = *outcome;
    return NoteCommitted(step, {});
  }
  if (outcome.ok()) return NoteGone(step);
  for (const CallPointer& call : std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
    if (call->taken_) Tell(call, outcome.status());
  }
}

void RedisSteps::NoteAborted(const StepPointer& step, const absl::Status& why) {
  LookBy(step, absl::InfiniteFuture());
  for (const CallPointer& call : std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
    // Those who have not come yet get an answer of their own.
    if (call->came_) Tell(call, why);
  }
}

// Redis does not know the step any more: it was kept no longer, or Redis has lost what it knew.
void RedisSteps::NoteGone(const StepPointer& step) {
  LookBy(step, absl::InfiniteFuture());
  for (const CallPointer& call : std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
    if (!call->came_) continue;
    Tell(call, OutcomeUnknown(call->participant.step,
                              "Redis knows nothing of the attempt any more, as it was restarted or "
                              "replaced, or the server did not run for long"));
  }
}

// The call ends here, whatever Redis has of it: its rank is to have one call less.
void RedisSteps::Abandon(const CallPointer& call) {
  RedisCommand leave = CommandsOf(*call).Leave(call->id_, {.kind = Going::Kind::kLost});
  leave.persists = true;
  link_.Run(std::move(leave));
}

void RedisSteps::Tell(const CallPointer& call, Answer answer) {
  if (call->over_) return;
  // A leave that is under way comes back to nobody.
  Store::OnOutcome on_outcome = call->Take();
  Drop(call);
  if (on_outcome != nullptr) on_outcome(std::move(answer));
}

void RedisSteps::Drop(const CallPointer& call) {
  if (std::exchange(call->over_, true)) return;
  const StepPointer step = call->step_;
  step->calls.erase(call);
  if (!step->calls.empty()) return;
  LookBy(step, absl::InfiniteFuture());
  const auto known = steps_.find(step->name);
  if (known != steps_.end() && known->second == step) steps_.erase(known);
}

void RedisSteps::LookBy(const StepPointer& step, absl::Time when) {
  if (step->calls.empty()) when = absl::InfiniteFuture();
  if (step->planned == when) return;
  planned_.erase({step->planned, step.get()});
  step->planned = when;
  if (when != absl::InfiniteFuture()) planned_.emplace(when, step.get());
}

absl::Time RedisSteps::wake() const {
  const absl::Time look = planned_.empty() ? absl::InfiniteFuture() : planned_.begin()->first;
  return joining_.empty() ? look : std::min(look, joining_.front().due);
}

void RedisSteps::Look(absl::Time now) {
  while (!planned_.empty() && planned_.begin()->first <= now) {
    const StepPointer step = planned_.begin()->second->shared_from_this();
    LookBy(step, absl::InfiniteFuture());
    Check(step, /*bury=*/false);
  }
}

void RedisSteps::OnMessage(std::string_view text) {
  const std::optional<StepMessage> message = StepMessage::Parse(text);
  if (!message.has_value()) return;
  const auto known = steps_.find(message->step);
  // Calls of this server have been in it; now none is.
  if (known == steps_.end()) return;
  const StepPointer step = known->second;
  // Replies come on another connection: those under way may be older than the message.
  step->recheck |=
      step->checking || std::any_of(step->calls.begin(), step->calls.end(),
                                    [](const CallPointer& call) { return call->under_way_; });
  if (!step->asker.has_value()) return;
  switch (message->kind) {
    case StepMessage::Kind::kCommitted:
      return NoteCommitted(step, message->sums);
    case StepMessage::Kind::kAborted:
      return NoteAborted(
          step, AttemptAborted(step->asker->participant.step, message->code, message->why));
    case StepMessage::Kind::kLook:
      return LookBy(step, std::min(step->planned, SteadyNow() + message->look_in));
  }
}

void RedisSteps::OnReady(bool anew) {
  std::vector<StepPointer> steps;
  steps.reserve(steps_.size());
  for (const auto& [name, step] : steps_) steps.push_back(step);
  if (!anew) {
    // Messages may have been missed.
    for (const StepPointer& step : steps) Check(step, /*bury=*/false);
    return;
  }
  // No command is under way any more, and all joins are sent here.
  joining_.clear();
  for (const StepPointer& step : steps) {
    step->checking = step->fetching = false;
    step->outcome = nullptr;
    // What went with a join may have committed the step, though its answer is lost.
    const auto has_brought = [](const CallPointer& call) { return !call->came_ && call->brought_; };
    const auto brought = std::find_if(step->calls.begin(), step->calls.end(), has_brought);
    if (!step->asker.has_value() && brought != step->calls.end()) {
      step->asker = LocalStep::Asker{(*brought)->participant, (*brought)->token};
    }
    step->holding = step->asker.has_value();
    if (step->holding) Check(step, /*bury=*/true);
    for (const CallPointer& call :
         std::vector<CallPointer>(step->calls.begin(), step->calls.end())) {
      call->under_way_ = false;
      if (call->going_.has_value()) {
        // What it left is over.
        Drop(call);
      } else if (has_brought(call)) {
        Tell(call, OutcomeUnknown(call->participant.step,
                                  "Redis was restarted or replaced before it had answered"));
      } else if (!call->came_) {
        SendJoin(call);
      }
    }
  }
}

void RedisSteps::OnAway(const absl::Status& why) {
  std::vector<CallPointer> calls;
  for (const auto& [name, step] : steps_) {
    calls.insert(calls.end(), step->calls.begin(), step->calls.end());
  }
  for (const CallPointer& call : calls) {
    Abandon(call);
    call->under_way_ = false;
    Tell(call, OutcomeUnknown(call->participant.step, why.message()));
  }
}

}  // namespace gradclip
