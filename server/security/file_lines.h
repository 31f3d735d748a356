// The form of an operator's files of lines: words with blanks between; empty lines and those that
// begin with # mean nothing. Pure functions.
#ifndef GRADCLIP_SERVER_SECURITY_FILE_LINES_H_
#define GRADCLIP_SERVER_SECURITY_FILE_LINES_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace gradclip {

struct FileLine {
  size_t number = 0;  // 1 for the first
  std::vector<absl::string_view> words = {};
};

// The lines of `text`, which they view, that mean something.
std::vector<FileLine> FileLines(absl::string_view text);

// INVALID_ARGUMENT: "line 3 " and why.
absl::Status Malformed(size_t line, absl::string_view why);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_FILE_LINES_H_
