// Flags that several verbs share, and the checks of their values. Pure but for the registration.
#ifndef GRADCLIP_CLIENT_COMMAND_FLAGS_H_
#define GRADCLIP_CLIENT_COMMAND_FLAGS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gradclip/client.h"

namespace gradclip {

// --server, --timeout, --tls..., --token-file, --json and, for verbs that send gradients,
// --message-bytes.
struct ServerFlags {
  std::string server = "127.0.0.1:50051";
  std::string timeout = "inf";  // how long a gradient takes depends on its size and the network
  bool uses_tls = false;
  TlsOptions tls;  // whatever of it is set means TLS too
  std::string token_file;
  bool json = false;
  std::string message_bytes = "1MiB";

  void AddTo(CLI::App& verb);
  void AddMessageBytesTo(CLI::App& verb);
  CallOptions call() const;
  ClientOptions client() const;

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

// The numbers that a flag takes, from `least` to `most`.
struct NumberRange {
  std::string rule;  // in words: "a number >= 0, or inf"
  double least = 0;
  double most = 0;
  bool open = false;  // `least` itself is refused
  bool takes_nan = false;
};

// The number, or what it must be: "must be a number >= 0, or inf, not -1". Infinity has to be
// spelled inf or infinity: a number that is too large for a double is refused.
absl::StatusOr<double> ParseNumber(absl::string_view text, const NumberRange& range);

// Adds a flag that takes a number. What is set is what ParseNumber() made of the text: the flag
// library's own conversion rounds twice, by way of long double, and makes infinity of 1e400.
CLI::Option* AddNumber(CLI::App& verb, const std::string& name, const NumberRange& range,
                       std::function<void(double number)> set, const std::string& meaning);

// Adds a flag that takes a whole number from `least` to `most`. (The flag library would read 010 as
// 8.)
CLI::Option* AddWhole(CLI::App& verb, const std::string& name, uint64_t least, uint64_t most,
                      std::function<void(uint64_t number)> set, const std::string& meaning);

// Adds a flag that takes a whole number from 1 to 10,000,000.
void AddCount(CLI::App& verb, const std::string& name, uint64_t& count, const std::string& meaning);

// For option->check(): anything but nothing.
CLI::Validator NotEmptyCheck();

// For option->check(): a time over 0, as absl::ParseDuration() reads it.
CLI::Validator DurationCheck();

// For option->check(): bytes, as ParseBytes() reads them.
CLI::Validator BytesCheck();

// For option->check(): one of the words.
CLI::Validator WordCheck(std::vector<std::string> words);

// A mistake in how `verb` was called.
absl::Status UsageError(absl::string_view verb, absl::string_view message);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_FLAGS_H_
