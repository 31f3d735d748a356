// The tables of the README's operator's page against what they are about: the flags against the
// server's
// --help, what to do about each alert against the alert rules.
#include <gmock/gmock.h>

#include <regex>
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
  Process server("gradclip-server", {"--help"});
  ASSERT_EQ(server.Wait(), 0);
  std::string rows;
  std::string flag;
  std::string text;
  const auto end_flag = [&] {
    std::smatch parts;
    // --help and --version have neither default nor variable.
    if (std::regex_match(text, parts,
                         std::regex(" (.*) Default: (.*)\\. Variable: (GRADCLIP_\\w+)(.*)\\."))) {
      rows += "| `" + flag + "` | " + parts.str(1) + " | " + parts.str(2) + " | `" + parts.str(3) +
              "`" + parts.str(4) + " |\n";
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
  std::string rows;
  bool in_runbook = false;
  for (const std::string& line : Lines(ReadFile(kSource + "/docker/prometheus/alerts.yml"))) {
    const size_t indentation = line.find_first_not_of(' ');
    std::smatch parts;
    if (std::regex_match(line, parts, std::regex(" *- alert: (.*)"))) {
      rows += (rows.empty() ? "| `" : " |\n| `") + parts.str(1) + "` |";
    } else if (std::regex_match(line, std::regex(" *runbook: >-"))) {
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
