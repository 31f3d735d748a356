#include "client/command/huge_pages.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace gradclip {

std::string HugePagesText(absl::string_view setting) {
  const size_t open = setting.find('[');
  const size_t close = setting.find(']');
  if (open == absl::string_view::npos || close == absl::string_view::npos || close < open) {
    return "";
  }
  const absl::string_view chosen = setting.substr(open + 1, close - open - 1);
  if (chosen == "never" || chosen == "deny") {
    return absl::StrCat("no: ", kShmemEnabled, " is ", chosen,
                        "; shared memory is faster where it is advise");
  }
  return absl::StrCat("yes: ", kShmemEnabled, " is ", chosen);
}

std::string ReadHugePagesSetting() {
  std::ifstream file(kShmemEnabled);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

bool IsSocketHere(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_socket(path, ignored);
}

}  // namespace gradclip
