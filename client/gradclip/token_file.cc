#include "client/gradclip/token_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

constexpr size_t kMostBytes = 4096;

absl::Status Refused(const std::string& token_file, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("token_file ", token_file, " ", why));
}

}  // namespace

absl::StatusOr<std::string> ReadToken(const std::string& token_file) {
  // A pipe would be waited for, and could not be read for the next call.
  struct stat status {};
  if (stat(token_file.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    return Refused(token_file, "is no regular file");
  }
  errno = 0;
  std::ifstream file(token_file, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (file.is_open()) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return Refused(token_file, absl::StrCat("can't be read: ", std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMostBytes) return Refused(token_file, "has more than 4 KiB");
  absl::StripAsciiWhitespace(&text);
  if (text.empty()) return Refused(token_file, "holds no token");
  if (!std::all_of(text.begin(), text.end(), absl::ascii_isgraph)) {
    return Refused(token_file, "holds more than one word of printable ASCII, which no token is");
  }
  return text;
}

}  // namespace gradclip
