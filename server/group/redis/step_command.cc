#include "server/group/redis/step_command.h"

#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "server/group/redis/milliseconds.h"
#include "server/group/refusals.h"
#include "server/group/sha256.h"

namespace gradclip {
namespace {

// Half of SHA-256: jobs are told apart, and nobody finds two that are not.
constexpr size_t kJobHashBytes = 16;

// Each field and value with a zero after it.
std::string Serialise(const Terms& terms) {
  std::string serialised;
  for (const Term& term : terms) {
    for (const std::string* text : {&term.field, &term.value}) {
      for (const char c : *text) serialised.push_back(c == '\0' ? ' ' : c);
      serialised.push_back('\0');
    }
  }
  return serialised;
}

std::string Milliseconds(absl::Duration duration) {
  return absl::StrCat(ToMilliseconds(duration));
}

// The code of an aborted attempt; ABORTED for what can't be one.
absl::StatusCode ParseCode(std::string_view text) {
  int code = 0;
  if (!absl::SimpleAtoi(Abseil(text), &code) || code <= 0 || code > 16) {
    return absl::StatusCode::kAborted;
  }
  return static_cast<absl::StatusCode>(code);
}

absl::Status Malformed(const redisReply& reply) {
  return absl::InternalError(absl::StrCat("Redis has given an answer of type ", reply.type,
                                          " with ", reply.elements,
                                          " elements that no version of this server knows"));
}

void AddKnown(const std::optional<KnownJob>& known, std::vector<std::string>& arguments) {
  arguments.push_back(known.has_value() ? absl::StrCat(known->generation) : "");
  arguments.push_back(known.has_value() ? absl::StrCat(known->over) : "");
}

absl::StatusOr<absl::Status> ParseRefusal(const std::vector<std::string_view>& texts,
                                          const StepId& id, const redisReply& reply) {
  const std::string_view what = texts[1];
  const absl::string_view value = Abseil(texts.size() > 2 ? texts[2] : "");
  if (what == "secret") return WrongSecret(id);
  if (what == "generation") return GenerationIsOver(id, value);
  if (what == "attempt") return AttemptIsOver(id, value);
  if (what == "committed") return CommittedByAttempt(id, value);
  if (what == "over") return StepIsForgotten(id, value);
  if (what == "aborted") return AttemptIsForgotten(id, value);
  if (what == "stopping") return OpensNoSteps(id);
  if (what == "terms") return CommittedWithOtherTerms(id, value);
  if (what == "full") {
    return absl::ResourceExhaustedError(absl::StrCat(
        id.Describe(), ": the job has ", value,
        " open steps, and may have no more at once. Finish or abort one of them first"));
  }
  return Malformed(reply);
}

// Of the fields and values of a step's contributions in Redis.
absl::StatusOr<std::shared_ptr<const Outcome>> MergeTexts(
    const std::vector<std::string_view>& texts, const std::string& id, uint32_t world_size) {
  if (texts.size() % 2 != 0) return absl::InternalError("Redis keeps a rank without contribution");
  bool is_committed = false;
  std::map<uint32_t, std::string> contributions;
  for (size_t i = 0; i < texts.size(); i += 2) {
    const std::string_view field = texts[i];
    const std::string_view value = texts[i + 1];
    if (field == "id") {
      is_committed = value == id;
      continue;
    }
    uint32_t rank = 0;
    const size_t blank = value.find(' ');
    if (!absl::SimpleAtoi(Abseil(field), &rank) || rank >= world_size ||
        blank == std::string_view::npos) {
      return absl::InternalError(absl::StrFormat(
          "Redis keeps something else than a contribution for rank \"%s\" of %d ranks",
          absl::Utf8SafeCEscape(Abseil(field)), world_size));
    }
    contributions.emplace(rank, value.substr(blank + 1));
  }
  if (!is_committed || contributions.size() != world_size) return nullptr;
  absl::StatusOr<Outcome> outcome = Merge(contributions);
  if (!outcome.ok()) return outcome.status();
  return std::make_shared<const Outcome>(*std::move(outcome));
}

// What the keys of a job begin with.
std::string KeyBase(std::string_view job) {
  return absl::StrCat("gradclip:{", JobHash(job), "}:");
}

}  // namespace

std::string JobHash(std::string_view job) {
  return absl::BytesToHexString(Sha256(job).substr(0, kJobHashBytes));
}

std::string StepName(const StepId& id) {
  return absl::StrCat(JobHash(id.job), ":", id.generation, ":", id.step, ":", id.attempt);
}

RedisCommand StepCommands::Make(std::string operation, const std::string& id) const {
  const StepId& step = participant.step;
  return {.operation = std::move(operation),
          .keys = {KeyBase(step.job)},
          .arguments = {Milliseconds(lease), Milliseconds(times.reconnect_grace),
                        absl::FormatDuration(times.reconnect_grace), Milliseconds(times.result_ttl),
                        Milliseconds(times.job_ttl), absl::StrCat(step.generation),
                        absl::StrCat(step.step), absl::StrCat(step.attempt), id,
                        absl::StrCat(participant.rank), token}};
}

RedisCommand StepCommands::Join(bool may_open, uint32_t max_open_steps,
                                const std::optional<KnownJob>& known,
                                std::string contribution) const {
  RedisCommand command = Make("join", "");
  for (std::string argument :
       {participant.secret_hash, absl::StrCat(participant.world_size), Serialise(participant.terms),
        Milliseconds(participant.timeout), absl::FormatDuration(participant.timeout),
        std::string(may_open ? "1" : "0"), absl::StrCat(max_open_steps)}) {
    command.arguments.push_back(std::move(argument));
  }
  AddKnown(known, command.arguments);
  command.arguments.push_back(std::move(contribution));
  return command;
}

RedisCommand StepCommands::Contribute(const std::string& id, std::string contribution) const {
  RedisCommand command = Make("contribute", id);
  command.arguments.push_back(std::move(contribution));
  return command;
}

RedisCommand StepCommands::Leave(const std::string& id, const Going& going) const {
  constexpr const char* kKinds[] = {"lost", "cancelled", "ended"};
  RedisCommand command = Make("leave", id);
  command.arguments.emplace_back(kKinds[static_cast<int>(going.kind)]);
  command.arguments.push_back(absl::StrCat(static_cast<int>(going.why.code())));
  command.arguments.emplace_back(going.why.message());
  return command;
}

RedisCommand StepCommands::Check(const std::string& id, bool bury,
                                 const std::optional<KnownJob>& known) const {
  RedisCommand command = Make("check", id);
  command.arguments.emplace_back(bury ? "1" : "0");
  command.arguments.push_back(participant.secret_hash);
  AddKnown(known, command.arguments);
  return command;
}

RedisCommand StepCommands::Fetch() const {
  const StepId& step = participant.step;
  return {.arguments = {"HGETALL",
                        absl::StrCat(KeyBase(step.job), step.generation, ":", step.step, ":sums")}};
}

absl::StatusOr<StepReply> StepReply::Parse(const redisReply& reply,
                                           const Participant& participant) {
  const std::optional<std::vector<std::string_view>> texts = TextsOf(reply);
  if (!texts.has_value() || texts->empty()) return Malformed(reply);
  const std::string_view kind = texts->front();
  const StepId& id = participant.step;
  if (kind == "open" && texts->size() == 3) {
    int64_t due = 0;
    if (!absl::SimpleAtoi(Abseil((*texts)[2]), &due) || due < 0) return Malformed(reply);
    return StepReply{
        .kind = Kind::kOpen, .id = std::string((*texts)[1]), .due = absl::Milliseconds(due)};
  }
  if (kind == "committed" && texts->size() == 3) {
    return StepReply{
        .kind = Kind::kCommitted, .id = std::string((*texts)[1]), .sums = std::string((*texts)[2])};
  }
  if (kind == "aborted" && texts->size() == 3) {
    return StepReply{.kind = Kind::kAborted,
                     .status = AttemptAborted(id, ParseCode((*texts)[1]), Abseil((*texts)[2]))};
  }
  if (kind == "refused" && texts->size() >= 2) {
    absl::StatusOr<absl::Status> refusal = ParseRefusal(*texts, id, reply);
    if (!refusal.ok()) return refusal.status();
    return StepReply{.kind = Kind::kRefused, .status = *std::move(refusal)};
  }
  if (kind == "taken" && texts->size() == 1) {
    return StepReply{.kind = Kind::kRefused, .status = ContributionTaken(id, participant.rank)};
  }
  if (kind == "gone" && texts->size() == 1) return StepReply{.kind = Kind::kGone};
  return Malformed(reply);
}

absl::StatusOr<std::shared_ptr<const Outcome>> ParseFetched(const redisReply& reply,
                                                            const std::string& id,
                                                            uint32_t world_size) {
  const std::optional<std::vector<std::string_view>> texts = TextsOf(reply);
  if (!texts.has_value()) return Malformed(reply);
  return MergeTexts(*texts, id, world_size);
}

absl::StatusOr<std::shared_ptr<const Outcome>> ParseSums(std::string_view sums,
                                                         const std::string& id,
                                                         uint32_t world_size) {
  std::vector<std::string_view> texts;
  while (!sums.empty()) {
    const size_t colon = sums.find(':');
    size_t length = 0;
    if (colon == std::string_view::npos ||
        !absl::SimpleAtoi(Abseil(sums.substr(0, colon)), &length) ||
        length > sums.size() - colon - 1) {
      return absl::InternalError("Redis sends contributions in a form that no server knows");
    }
    texts.push_back(sums.substr(colon + 1, length));
    sums.remove_prefix(colon + 1 + length);
  }
  return MergeTexts(texts, id, world_size);
}

std::optional<StepMessage> StepMessage::Parse(std::string_view text) {
  // KIND STEP REST
  if (text.size() < 3 || text[1] != ' ') return std::nullopt;
  StepMessage message;
  const char kind = text[0];
  text.remove_prefix(2);
  const size_t blank = text.find(' ');
  message.step = std::string(text.substr(0, blank));
  text = blank == std::string_view::npos ? std::string_view() : text.substr(blank + 1);
  switch (kind) {
    case 'C':
      message.kind = Kind::kCommitted;
      message.sums = std::string(text);
      return message;
    case 'A': {
      const size_t end = text.find(' ');
      if (end == std::string_view::npos) return std::nullopt;
      message.kind = Kind::kAborted;
      message.code = ParseCode(text.substr(0, end));
      message.why = std::string(text.substr(end + 1));
      return message;
    }
    case 'T': {
      int64_t milliseconds = 0;
      if (!absl::SimpleAtoi(Abseil(text), &milliseconds) || milliseconds < 0) return std::nullopt;
      message.kind = Kind::kLook;
      message.look_in = absl::Milliseconds(milliseconds);
      return message;
    }
    default:
      return std::nullopt;
  }
}

}  // namespace gradclip
