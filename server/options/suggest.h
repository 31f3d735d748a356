// "Did you mean": the known word that a mistyped one comes closest to. Pure functions.
#ifndef GRADCLIP_SERVER_OPTIONS_SUGGEST_H_
#define GRADCLIP_SERVER_OPTIONS_SUGGEST_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace gradclip {

// The candidate that takes the fewest changes (a letter added, dropped or replaced, or two
// neighbours swapped), the first of equals; nullopt where that is over a third of the word's
// letters.
std::optional<std::string> Closest(absl::string_view word,
                                   const std::vector<std::string>& candidates);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OPTIONS_SUGGEST_H_
