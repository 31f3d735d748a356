// The server's flags as a table: what each is called, what people are told about it, and how its
// text becomes a field of Options. For options.cc alone. The table is constant.
#ifndef GRADCLIP_SERVER_OPTIONS_FLAGS_H_
#define GRADCLIP_SERVER_OPTIONS_FLAGS_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/options/options.h"

namespace gradclip {

struct Flag {
  absl::string_view name;          // "max-call-bytes"
  absl::string_view value;         // "BYTES"; empty: a switch, whose text is "true" or "false"
  absl::string_view meaning;       // for --help, lines of at most 90 characters
  absl::string_view default_text;  // either the flag's own syntax, or a description in words
  bool repeatable;                 // the variable then takes several values, between commas

  // Sets the field, or appends to it if repeatable. INVALID_ARGUMENT: the message completes
  // "expected ...".
  std::function<absl::Status(absl::string_view text, Options& options)> set;
};

const std::vector<Flag>& AllFlags();

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OPTIONS_FLAGS_H_
