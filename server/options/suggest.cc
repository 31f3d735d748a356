#include "server/options/suggest.h"

#include <algorithm>

namespace gradclip {
namespace {

// The optimal string alignment distance.
size_t Distance(absl::string_view a, absl::string_view b) {
  // rows[i][j]: changes from the first i letters of a to the first j of b.
  std::vector<std::vector<size_t>> rows(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        rows[i][j] = i + j;
        continue;
      }
      const size_t replaced = rows[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      rows[i][j] = std::min({replaced, rows[i - 1][j] + 1, rows[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        rows[i][j] = std::min(rows[i][j], rows[i - 2][j - 2] + 1);
      }
    }
  }
  return rows[a.size()][b.size()];
}

}  // namespace

std::optional<std::string> Closest(absl::string_view word,
                                   const std::vector<std::string>& candidates) {
  constexpr size_t kLongestWord = 64;  // nothing known is longer, and the distance takes a square
  if (word.size() > kLongestWord) return std::nullopt;
  size_t fewest = std::max<size_t>(1, word.size() / 3) + 1;
  std::optional<std::string> closest;
  for (const std::string& candidate : candidates) {
    const size_t distance = Distance(word, candidate);
    if (distance < fewest) {
      fewest = distance;
      closest = candidate;
    }
  }
  return closest;
}

}  // namespace gradclip
