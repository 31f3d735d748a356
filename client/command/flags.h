// Flags that several verbs share, and the checks of their values. Pure but for the registration.
#ifndef GRADCLIP_CLIENT_COMMAND_FLAGS_H_
#define GRADCLIP_CLIENT_COMMAND_FLAGS_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gradclip/client.h"

namespace gradclip {

// --server, --timeout, --json.
struct ServerFlags {
  std::string server = "127.0.0.1:50051";
  std::string timeout = "inf";  // how long a gradient takes depends on its size and the network
  bool json = false;

  void AddTo(CLI::App& verb);
  CallOptions call() const;

  // The client's status with what to do about it.
  absl::Status Advise(const absl::Status& status) const;
};

// --quiet.
void AddQuiet(CLI::App& verb, bool& quiet, const std::string& meaning);

// FILE...
void AddFiles(CLI::App& verb, std::vector<std::string>& files);

// --norm-type, --pre-scale, --per-tensor.
void AddNormFlags(CLI::App& verb, NormOptions& options);

// --reply; empty until given.
void AddReply(CLI::App& verb, std::string& reply);
ReplyMode ParseReply(absl::string_view reply);

// For option->check(): a number within [least, most], of which `least` itself is refused where
// `over` says so. NaN is refused. `rule` says the range in words: "a number >= 0, or inf".
CLI::Validator NumberCheck(const std::string& rule, double least, double most, bool over = false);

// For option->check(): one of the words.
CLI::Validator WordCheck(std::vector<std::string> words);

// A mistake in how `verb` was called.
absl::Status UsageError(absl::string_view verb, absl::string_view message);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_FLAGS_H_
