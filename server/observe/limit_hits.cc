#include "server/observe/limit_hits.h"

#include <algorithm>
#include <string>

namespace gradclip {
namespace {

constexpr absl::string_view kBeforeName = "(--";

// kLimits.size() where there is none of that name.
size_t IndexOf(absl::string_view limit) {
  return static_cast<size_t>(
      std::find(LimitHits::kLimits.begin(), LimitHits::kLimits.end(), limit) -
      LimitHits::kLimits.begin());
}

// Quoted text is escaped: a quote in it has a backslash before it.
std::string WithoutQuotes(absl::string_view message) {
  std::string rest;
  bool quoted = false;
  for (size_t i = 0; i < message.size(); ++i) {
    if (quoted && message[i] == '\\') {
      ++i;
    } else if (message[i] == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      rest += message[i];
    }
  }
  return rest;
}

}  // namespace

void LimitHits::Count(const absl::Status& status) {
  if (status.ok()) return;
  const std::string message = WithoutQuotes(status.message());
  absl::string_view rest = message;
  while (true) {
    const size_t at = rest.find(kBeforeName);
    if (at == absl::string_view::npos) return;
    rest.remove_prefix(at + kBeforeName.size());
    const size_t index =
        IndexOf(rest.substr(0, rest.find_first_not_of("abcdefghijklmnopqrstuvwxyz-")));
    if (index == kLimits.size()) continue;
    ++hits_[index];
    return;
  }
}

void LimitHits::Count(absl::string_view limit) {
  const size_t index = IndexOf(limit);
  if (index < kLimits.size()) ++hits_[index];
}

uint64_t LimitHits::of(absl::string_view limit) const {
  const size_t index = IndexOf(limit);
  return index < kLimits.size() ? hits_[index].load() : 0;
}

}  // namespace gradclip
