#include "client/command/flags.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/command/output.h"
#include "server/options/bytes.h"
#include "server/wire/trace_context.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = std::numeric_limits<double>::max();

}  // namespace

void ServerFlags::AddTo(CLI::App& verb) {
  verb.add_option(
          "--server", server,
          "Where the server listens: HOST:PORT or unix:PATH; several, with commas between, are "
          "tried in order")
      ->type_name("ADDRESS")
      ->envname("GRADCLIP_SERVER")
      ->capture_default_str();
  verb.add_option("--timeout", timeout,
                  "How long a call may take over all tries: 500ms, 30s, 2m, inf")
      ->type_name("DURATION")
      ->capture_default_str()
      ->check(DurationCheck());
  verb.add_flag(
      "--tls", uses_tls,
      "Use TLS, over TCP; trust the system's authorities. The other --tls flags imply it");
  const auto add_text = [&verb](const char* name, std::string& value, const char* type,
                                const char* meaning) {
    verb.add_option(name, value, meaning)->type_name(type)->check(NotEmptyCheck());
  };
  add_text("--tls-ca", tls.ca_file, "FILE", "Trust the authorities in this PEM file instead");
  add_text("--tls-cert", tls.cert_file, "FILE",
           "The command's own certificate in PEM, for servers that want one; with --tls-key");
  add_text("--tls-key", tls.key_file, "FILE", "Its key in PEM, without a passphrase");
  add_text("--tls-server-name", tls.server_name, "NAME",
           "The host name or IP address that the server's certificate must have; by default "
           "--server's");
  add_text(
      "--token-file", token_file, "FILE",
      "Show the bearer token in this file, for servers that want one; over TLS or on this host");
  verb.add_flag("--json", json, "Print one JSON object");
}

void ServerFlags::AddMessageBytesTo(CLI::App& verb) {
  verb.add_option("--message-bytes", message_bytes,
                  "How much of the gradient goes into one message; servers have a limit")
      ->type_name("SIZE")
      ->capture_default_str()
      ->check(BytesCheck());
}

ClientOptions ServerFlags::client() const {
  ClientOptions options;
  // AddMessageBytesTo() has checked it; what is out of range is for the client to say.
  options.message_bytes = ParseBytes(message_bytes).value_or(0);
  const bool given = !tls.ca_file.empty() || !tls.cert_file.empty() || !tls.key_file.empty() ||
                     !tls.server_name.empty();
  if (uses_tls || given) options.tls = tls;
  options.token_file = token_file;
  return options;
}

CallOptions ServerFlags::call() const {
  CallOptions options;
  // AddTo() has checked it.
  absl::ParseDuration(timeout, &options.timeout);
  // What starts a process within a trace says so in this variable; the standard has what is not
  // sound ignored.
  const char* const trace = std::getenv("TRACEPARENT");
  if (trace != nullptr && ParseTraceparent(trace).has_value()) options.traceparent = trace;
  return options;
}

absl::Status ServerFlags::Advise(const absl::Status& status) const {
  std::string advice;
  if (absl::IsUnavailable(status)) {
    advice = "; --server names another one";
  } else if (absl::IsDeadlineExceeded(status) && call().timeout < absl::InfiniteDuration() &&
             !absl::StrContains(status.message(), "--idle-timeout")) {  // the server's own
    advice = absl::StrCat("; --timeout gives it more than ", timeout);
  } else if (absl::IsResourceExhausted(status) &&
             absl::StrContains(status.message(), "--max-message-bytes")) {
    advice = "; --message-bytes makes them smaller";
  } else if (absl::IsUnknown(status) || absl::IsUnimplemented(status)) {
    // What gRPC makes of an answer that no GradClip server gives.
    advice = "; check that it is a gradclip-server that listens there";
  } else if (absl::IsDataLoss(status)) {
    advice = "; nothing was written, so it can be run again";
  } else {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat(status.message(), advice));
}

void AddQuiet(CLI::App& verb, bool& quiet, const std::string& meaning) {
  verb.add_flag("-q,--quiet", quiet, meaning);
}

void AddFiles(CLI::App& verb, std::vector<std::string>& files) {
  verb.add_option("FILE", files, "A .safetensors or .npy file; several files are one gradient")
      ->type_name("");
}

void AddNormFlags(CLI::App& verb, NormOptions& options) {
  AddNumber(
      verb, "--norm-type", {"a number over 0, or inf", 0, kInfinity, /*open=*/true},
      [&options](double number) { options.norm_type = number; },
      "p of the p-norm: a number over 0, or inf for the largest magnitude")
      ->type_name("P")
      ->default_str(NumberText(options.norm_type));
  AddNumber(
      verb, "--pre-scale", {"a finite number over 0", 0, kLargest, /*open=*/true},
      [&options](double number) { options.pre_scale = number; },
      "What every element is multiplied by first, such as a loss scaler's 1/scale")
      ->default_str(NumberText(options.pre_scale));
  verb.add_flag("--per-tensor", options.per_tensor, "Also print the norm of each tensor");
}

void AddReply(CLI::App& verb, std::string& reply) {
  verb.add_option(
          "--reply", reply,
          "What the server sends back: coefficient (the command multiplies itself: half the "
          "traffic; default), gradient, or if-changed (with --shared these two have the server "
          "multiply in place); the bits are the same")
      ->type_name("MODE")
      ->check(WordCheck({"coefficient", "gradient", "if-changed"}));
}

ReplyMode ParseReply(absl::string_view reply) {
  if (reply == "gradient") return ReplyMode::kGradient;
  if (reply == "if-changed") return ReplyMode::kGradientIfChanged;
  return reply.empty() ? ReplyMode::kFastest : ReplyMode::kCoefficient;
}

absl::StatusOr<double> ParseNumber(absl::string_view text, const NumberRange& range) {
  double number = 0;
  const bool reads = absl::SimpleAtod(text, &number);
  if (reads && number == kInfinity && text.find_first_of("0123456789") != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("must be ", range.rule, ", and ", text,
                                                   " is over the largest number, ",
                                                   NumberText(kLargest)));
  }
  const bool within = std::isnan(number) ? range.takes_nan
                                         : number >= range.least && number <= range.most &&
                                               !(range.open && number == range.least);
  if (reads && within) return number;
  return absl::InvalidArgumentError(absl::StrCat("must be ", range.rule, ", not ", text));
}

CLI::Option* AddNumber(CLI::App& verb, const std::string& name, const NumberRange& range,
                       std::function<void(double number)> set, const std::string& meaning) {
  const auto check = [range](const std::string& text) {
    return std::string(ParseNumber(text, range).status().message());
  };
  const auto parse = [range, set = std::move(set)](const std::string& text) {
    const absl::StatusOr<double> number = ParseNumber(text, range);
    if (number.ok()) set(*number);
  };
  return verb.add_option_function<std::string>(name, parse, meaning)
      ->type_name("NUMBER")
      ->check(check);
}

CLI::Option* AddWhole(CLI::App& verb, const std::string& name, uint64_t least, uint64_t most,
                      std::function<void(uint64_t number)> set, const std::string& meaning) {
  const auto check = [least, most](const std::string& text) {
    uint64_t number = 0;
    if (absl::SimpleAtoi(text, &number) && number >= least && number <= most) return std::string();
    return absl::StrCat("must be a whole number from ", least, " to ", most, ", not ", text);
  };
  const auto parse = [set = std::move(set)](const std::string& text) {
    uint64_t number = 0;
    if (absl::SimpleAtoi(text, &number)) set(number);
  };
  return verb.add_option_function<std::string>(name, parse, meaning)
      ->type_name("NUMBER")
      ->check(check);
}

void AddCount(CLI::App& verb, const std::string& name, uint64_t& count,
              const std::string& meaning) {
  AddWhole(
      verb, name, 1, 10'000'000, [&count](uint64_t number) { count = number; }, meaning)
      ->type_name("COUNT")
      ->default_str(absl::StrCat(count));
}

CLI::Validator NotEmptyCheck() {
  return CLI::Validator(
      [](std::string& text) { return std::string(text.empty() ? "must not be empty" : ""); }, "");
}

CLI::Validator DurationCheck() {
  return CLI::Validator(
      [](std::string& text) {
        absl::Duration duration;
        return absl::ParseDuration(text, &duration) && duration > absl::ZeroDuration()
                   ? std::string()
                   : absl::StrCat("must be a time over 0 with its unit, as in 30s or 2m, not ",
                                  text);
      },
      "");
}

CLI::Validator BytesCheck() {
  return CLI::Validator(
      [](std::string& text) {
        return ParseBytes(text).ok()
                   ? std::string()
                   : absl::StrCat("must be a size such as 65536, 64MiB or 1GiB, not ", text);
      },
      "");
}

CLI::Validator WordCheck(std::vector<std::string> words) {
  return CLI::Validator(
      [words = std::move(words)](std::string& text) {
        for (const std::string& word : words) {
          if (text == word) return std::string();
        }
        return absl::StrCat("must be one of ", absl::StrJoin(words, ", "), ", not ", text);
      },
      "");
}

absl::Status UsageError(absl::string_view verb, absl::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat(message, "; see gradclip ", verb, verb.empty() ? "" : " ", "--help"));
}

}  // namespace gradclip
