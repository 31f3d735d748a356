#include "client/command/flags.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = std::numeric_limits<double>::max();

}  // namespace

void ServerFlags::AddTo(CLI::App& verb) {
  verb.add_option("--server", server, "Where the server listens: HOST:PORT or unix:PATH")
      ->type_name("ADDRESS")
      ->envname("GRADCLIP_SERVER")
      ->capture_default_str();
  verb.add_option("--timeout", timeout,
                  "How long a call may take over all tries: 500ms, 30s, 2m, inf")
      ->type_name("DURATION")
      ->capture_default_str()
      ->check([](const std::string& text) {
        absl::Duration duration;
        if (absl::ParseDuration(text, &duration) && duration > absl::ZeroDuration()) {
          return std::string();
        }
        return absl::StrCat("must be a time over 0 with its unit, as in 30s or 2m, not ", text);
      });
  verb.add_flag("--json", json, "Print one JSON object");
}

CallOptions ServerFlags::call() const {
  CallOptions options;
  // AddTo() has checked it.
  absl::ParseDuration(timeout, &options.timeout);
  return options;
}

absl::Status ServerFlags::Advise(const absl::Status& status) const {
  std::string advice;
  if (absl::IsUnavailable(status)) {
    advice = "; --server names another one";
  } else if (absl::IsDeadlineExceeded(status) && call().timeout < absl::InfiniteDuration() &&
             !absl::StrContains(status.message(), "--idle-timeout")) {  // the server's own
    advice = absl::StrCat("; --timeout gives it more than ", timeout);
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
  verb.add_option("--norm-type", options.norm_type,
                  "p of the p-norm: a number over 0, or inf for the largest magnitude")
      ->type_name("P")
      ->capture_default_str()
      ->check(NumberCheck("a number over 0, or inf", 0, kInfinity, /*over=*/true));
  verb.add_option("--pre-scale", options.pre_scale,
                  "What every element is multiplied by first, such as a loss scaler's 1/scale")
      ->type_name("NUMBER")
      ->capture_default_str()
      ->check(NumberCheck("a finite number over 0", 0, kLargest, /*over=*/true));
  verb.add_flag("--per-tensor", options.per_tensor, "Also print the norm of each tensor");
}

void AddReply(CLI::App& verb, std::string& reply) {
  verb.add_option(
          "--reply", reply,
          "What the server sends back: coefficient (the command multiplies itself: half the "
          "traffic; default), gradient, or if-changed; the bits are the same")
      ->type_name("MODE")
      ->check(WordCheck({"coefficient", "gradient", "if-changed"}));
}

ReplyMode ParseReply(absl::string_view reply) {
  if (reply == "gradient") return ReplyMode::kGradient;
  if (reply == "if-changed") return ReplyMode::kGradientIfChanged;
  return ReplyMode::kCoefficient;
}

CLI::Validator NumberCheck(const std::string& rule, double least, double most, bool over) {
  return CLI::Validator(
      [=](std::string& text) {
        double number = 0;
        if (absl::SimpleAtod(text, &number) && number >= least && number <= most &&
            !(over && number == least)) {
          return std::string();
        }
        return absl::StrCat("must be ", rule, ", not ", text);
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
