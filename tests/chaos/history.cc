#include "tests/chaos/history.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

constexpr absl::string_view kCommittedBy = ": the step was committed by attempt ";

absl::string_view NameOf(Call::Kind kind) {
  switch (kind) {
    case Call::Kind::kOwn:
      return "";
    case Call::Kind::kUsurping:
      return " (usurping)";
    case Call::Kind::kMistaken:
      return " (mistaken)";
  }
  return " (unknown)";
}

}  // namespace

Told WhatIsTold(const Call& call) {
  if (!call.end.has_value()) return Told::kUnknown;
  const absl::Status& status = call.end->status;
  if (status.ok()) return Told::kCommitted;
  const absl::string_view message = status.message();
  // The library's own word after a server was restarted.
  if (absl::StrContains(message, "whether the step was committed is not known")) {
    return Told::kUnknown;
  }
  if (absl::StrContains(message, " is aborted: ")) {
    const bool fits = absl::IsAborted(status) || absl::IsDeadlineExceeded(status) ||
                      absl::IsFailedPrecondition(status);
    return fits ? Told::kAborted : Told::kUnexpected;
  }
  if (absl::IsFailedPrecondition(status)) {
    if (absl::StrContains(message, ": that attempt is over, ") ||
        absl::StrContains(message, kCommittedBy)) {
      return Told::kOver;
    }
    if (absl::StrContains(message, " is committed, and was with other options: ")) {
      return Told::kOtherTerms;
    }
    return Told::kUnexpected;
  }
  if (absl::IsAlreadyExists(status)) return Told::kTaken;
  // UNAVAILABLE, and a deadline of the caller's own.
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) return Told::kUnknown;
  return Told::kUnexpected;
}

std::optional<uint32_t> CommittedBy(const Call& call) {
  if (!call.end.has_value()) return std::nullopt;
  const absl::string_view message = call.end->status.message();
  const size_t at = message.find(kCommittedBy);
  if (at == absl::string_view::npos) return std::nullopt;
  const absl::string_view rest = message.substr(at + kCommittedBy.size());
  uint32_t attempt = 0;
  if (!absl::SimpleAtoi(rest.substr(0, rest.find(';')), &attempt)) return std::nullopt;
  return attempt;
}

std::string Describe(const Call& call) {
  const std::string begun = absl::StrFormat("rank %d%s, step %d, attempt %d, begun at %.6f",
                                            call.rank, NameOf(call.kind), call.step, call.attempt,
                                            absl::ToDoubleSeconds(call.begun - absl::UnixEpoch()));
  if (!call.end.has_value()) return absl::StrCat(begun, ", never ended");
  const Call::End& end = *call.end;
  return absl::StrFormat(
      "%s, ended at %.6f: %s", begun, absl::ToDoubleSeconds(end.at - absl::UnixEpoch()),
      end.status.ok()
          ? absl::StrFormat("OK, norm %a, coefficient %a", end.total_norm, end.coefficient)
          : end.status.ToString());
}

HistoryWriter::HistoryWriter(const std::string& path)
    : file_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {
  if (file_ >= 0) return;
  std::perror(path.c_str());
  std::exit(1);
}

HistoryWriter::~HistoryWriter() {
  close(file_);
}

void HistoryWriter::Write(const std::string& line) const {
  // In one piece: who is killed has written it or not.
  if (write(file_, line.data(), line.size()) == static_cast<ssize_t>(line.size())) return;
  std::perror("the history can't be written");
  std::exit(1);
}

void HistoryWriter::Begin(const Call& call) {
  const nlohmann::json line = {{"rank", call.rank},
                               {"step", call.step},
                               {"attempt", call.attempt},
                               {"kind", static_cast<int>(call.kind)},
                               {"sum_of_squares", call.sum_of_squares},
                               {"begun", absl::ToUnixNanos(call.begun)}};
  Write(line.dump() + "\n");
}

void HistoryWriter::End(const Call::End& end) {
  // JSON's numbers have no NaN, and hexadecimal ones say every bit.
  const nlohmann::json line = {{"ended", absl::ToUnixNanos(end.at)},
                               {"code", static_cast<int>(end.status.code())},
                               {"message", std::string(end.status.message())},
                               {"total_norm", absl::StrFormat("%a", end.total_norm)},
                               {"coefficient", absl::StrFormat("%a", end.coefficient)}};
  Write(line.dump() + "\n");
}

std::vector<Call> ReadHistory(const std::string& path) {
  std::vector<Call> calls;
  std::ifstream file(path);
  for (std::string text; std::getline(file, text) && !file.eof();) {  // whole lines
    const nlohmann::json line = nlohmann::json::parse(text);
    if (line.contains("begun")) {
      calls.push_back({.rank = line.at("rank"),
                       .step = line.at("step"),
                       .attempt = line.at("attempt"),
                       .kind = static_cast<Call::Kind>(line.at("kind").get<int>()),
                       .sum_of_squares = line.at("sum_of_squares"),
                       .begun = absl::FromUnixNanos(line.at("begun"))});
      continue;
    }
    calls.back().end = Call::End{
        .at = absl::FromUnixNanos(line.at("ended")),
        .status = absl::Status(static_cast<absl::StatusCode>(line.at("code").get<int>()),
                               line.at("message").get<std::string>()),
        .total_norm = std::strtod(line.at("total_norm").get<std::string>().c_str(), nullptr),
        .coefficient = std::strtod(line.at("coefficient").get<std::string>().c_str(), nullptr)};
  }
  return calls;
}

}  // namespace gradclip
