// The tables of the README's operator's page against what they are about: the flags against the
// server's
// --help, what to do about each alert against the alert rules.
#include <gmock/gmock.h>

#include <sstream>
#include <string>
#include <vector>

#include "tests/client/files/file_bytes.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

const std::string kSource = GRADCLIP_TEST_DATA "/../..";

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The rows of the README's table with this head, with their line ends.
std::string Table(const std::string& head) {
  std::string rows;
  bool inside = false;
  for (const std::string& line : Lines(ReadFile(kSource + "/README.md"))) {
    if (line == head) {
      inside = true;
    } else if (inside && line.rfind("| `", 0) == 0) {
      rows += line + "\n";
    } else if (inside && line.rfind("|---", 0) != 0) {
      break;
    }
  }
  return rows;
}

TEST(Readme, HasEveryFlagAsTheServersHelpHasIt) {
  const std::string kDefault = " Default: ";
  const std::string kVariable = ". Variable: ";
  Process server("gradclip-server", {"--help"});
  ASSERT_EQ(server.Wait(), 0);
  std::string rows;
  std::string flag;
  std::string text;
  const auto end_flag = [&] {
    // " WHAT Default: VALUE. Variable: NAME.", perhaps with words about the variable. --help and
    // --version have neither.
    const size_t at_default = text.rfind(kDefault);
    const size_t at_variable = text.rfind(kVariable);
    if (at_default != std::string::npos && at_variable != std::string::npos) {
      const std::string what = text.substr(1, at_default - 1);
      const size_t value = at_default + kDefault.size();
      const size_t name = at_variable + kVariable.size();
      const size_t name_end = text.find_first_of(" .", name);
      rows += "| `" + flag + "` | " + what + " | " + text.substr(value, at_variable - value) +
              " | `" + text.substr(name, name_end - name) + "`" +
              text.substr(name_end, text.size() - 1 - name_end) + " |\n";
    }
    flag.clear();
    text.clear();
  };
  for (const std::string& line : Lines(server.out())) {
    if (line.rfind("      ", 0) == 0) {
      text += " " + line.substr(6);
    } else {
      end_flag();
      if (line.rfind("  --", 0) == 0) flag = line.substr(2);
    }
  }
  EXPECT_THAT(rows, testing::HasSubstr("| `--listen ADDRESS` | Where to listen: "));
  EXPECT_EQ(Table("| flag | what it is | default | variable |"), rows);
}

TEST(Readme, SaysWhatToDoAboutEveryAlert) {
  const std::string kAlert = "- alert: ";
  std::string rows;
  bool in_runbook = false;
  for (const std::string& line : Lines(ReadFile(kSource + "/docker/prometheus/alerts.yml"))) {
    const size_t indentation = line.find_first_not_of(' ');
    if (const size_t at = line.find(kAlert); at != std::string::npos) {
      rows += (rows.empty() ? "| `" : " |\n| `") + line.substr(at + kAlert.size()) + "` |";
    } else if (line.find("runbook: >-") != std::string::npos) {
      in_runbook = true;
      continue;
    } else if (in_runbook && indentation != std::string::npos) {
      rows += " " + line.substr(indentation);
      continue;
    }
    in_runbook = false;
  }
  EXPECT_EQ(Table("| alert | what to do |"), rows + " |\n");
}

}  // namespace
}  // namespace gradclip
