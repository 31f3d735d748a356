// What the command can do, one file per verb.
#ifndef GRADCLIP_CLIENT_COMMAND_VERBS_H_
#define GRADCLIP_CLIENT_COMMAND_VERBS_H_

#include <functional>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace gradclip {

// Does what the parsed flags ask for and prints to standard output. An error's message says what
// to do; nothing has been printed then.
using Action = std::function<absl::Status()>;

// Each adds its verb and flags to the application; parsing that verb sets `chosen`.
void AddNormVerb(CLI::App& app, Action& chosen);
void AddClipVerb(CLI::App& app, Action& chosen);
void AddInfoVerb(CLI::App& app, Action& chosen);
void AddHealthVerb(CLI::App& app, Action& chosen);
void AddBenchVerb(CLI::App& app, Action& chosen);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_VERBS_H_
