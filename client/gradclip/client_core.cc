#include "client/gradclip/client_core.h"

#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/gradclip/answer.h"
#include "client/gradclip/backoff.h"
#include "client/gradclip/call.h"
#include "client/gradclip/token_file.h"

namespace gradclip {
namespace {

// By how much the end of a call that gRPC or a server saw may lie before ours.
constexpr absl::Duration kClocksDiffer = absl::Milliseconds(50);

}  // namespace

ClientCore::ClientCore(std::string address, ClientOptions options)
    : connections_(std::move(address), options.tls),
      options_(std::move(options)),
      backend_(MakeBackend("auto")) {}

absl::Status ClientCore::TryOnce(absl::Time deadline, Attempt attempt, bool& changed,
                                 std::string& server) {
  // gRPC would still send the call, and might even bring an answer.
  if (absl::Now() >= deadline) return absl::DeadlineExceededError("the call's timeout is over");
  std::string token;
  if (!options_.token_file.empty()) {
    absl::StatusOr<std::string> read = ReadToken(options_.token_file);
    if (!read.ok()) return read.status();
    token = *std::move(read);
  }
  absl::StatusOr<std::unique_ptr<Connection>> connection = connections_.Take(deadline);
  if (!connection.ok()) return connection.status();
  server = (*connection)->address();
  if (!token.empty() && !(*connection)->IsPrivate()) {
    return absl::InvalidArgumentError(
        "token_file is set, and the token would cross the network unencrypted; set tls as well");
  }
  (*connection)->set_token(std::move(token));
  const absl::Status status = (*connection)->Explain(attempt(**connection, changed));
  // Of a call that failed, something may still be on its way.
  if (status.ok()) connections_.GiveBack(*std::move(connection));
  return status;
}

absl::Status ClientCore::Try(absl::Time deadline, int retries, Attempt attempt) {
  absl::BitGen random;
  for (int tries = 1;; ++tries) {
    bool changed = false;
    std::string server = connections_.address();
    const absl::Status status = TryOnce(deadline, attempt, changed, server);
    if (status.ok()) return status;
    const bool is_late = absl::IsDeadlineExceeded(status) && deadline - absl::Now() < kClocksDiffer;
    const bool had_its_chance = tries > 1 || retries == 0;
    if (is_late || (absl::IsUnavailable(status) && had_its_chance)) {
      connections_.PassOver(server);
    } else if (absl::IsUnavailable(status)) {
      connections_.Lose(server);
    } else if (absl::IsAborted(status) || absl::IsDeadlineExceeded(status)) {
      connections_.StartOver();  // a step of a group has ended
    }
    const absl::Duration wait = Backoff(tries, options_.initial_backoff, options_.max_backoff,
                                        absl::Uniform(random, 0.0, 1.0));
    if (!absl::IsUnavailable(status) || changed || tries > retries ||
        absl::Now() + wait >= deadline) {
      return absl::Status(
          status.code(), absl::StrCat("server ", server, ": ", status.message(),
                                      tries > 1 ? absl::StrCat(" (tried ", tries, " times)") : ""));
    }
    absl::SleepFor(wait);
  }
}

absl::Time DeadlineOf(const CallOptions& call) {
  return absl::Now() + call.timeout;
}

absl::StatusOr<ServerInfo> AskServerInfo(Connection& connection, const CallTerms& terms) {
  const grpc::Slice nothing;
  grpc::ByteBuffer answer;
  const absl::Status ended =
      RunUnary(connection, kGetServerInfo, grpc::ByteBuffer(&nothing, 1), terms, answer);
  if (!ended.ok()) return ended;
  v1::GetServerInfoResponse response;
  if (absl::Status parsed = Parse(answer, response); !parsed.ok()) return parsed;
  return AnswerOf(response);
}

}  // namespace gradclip
