#include "client/command/command_line.h"

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/command/flags.h"
#include "client/command/output.h"
#include "client/command/verbs.h"
#include "server/options/suggest.h"

namespace gradclip {
namespace {

std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates) {
  std::optional<std::string> closest = Closest(word, candidates);
  // --output is far from --out, and --max from --max-norm, by the letters that differ.
  constexpr size_t kShortest = 5;
  for (const std::string& candidate : candidates) {
    if (closest.has_value() || word.size() < kShortest) break;
    if (absl::StartsWith(word, candidate) || absl::StartsWith(candidate, word)) closest = candidate;
  }
  return closest.has_value() ? absl::StrCat(" (did you mean ", *closest, "?)") : "";
}

std::vector<std::string> FlagNames(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(absl::StrCat("--", name));
  }
  return names;
}

std::vector<std::string> VerbNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(verb->get_name());
  }
  return names;
}

// What is wrong with arguments that nothing has taken; `verb` is the application itself where none
// was named before them.
absl::Status RefuseExtras(const CLI::App& app, const CLI::App& verb) {
  std::vector<std::string> extras = verb.remaining();
  const std::string name = &verb == &app ? "" : verb.get_name();
  // The -- that ends a verb's flags is left here beside what nothing has taken.
  const auto mark = std::find(extras.begin(), extras.end(), "--");
  if (!name.empty() && mark != extras.end()) extras.erase(mark);
  if (extras.empty()) return absl::OkStatus();
  const std::string word = extras[0].substr(0, extras[0].find('='));
  if (absl::StartsWith(word, "-")) {
    return UsageError(name, absl::StrCat("unknown flag ", word, DidYouMean(word, FlagNames(verb)),
                                         name.empty() ? "; flags go after the command" : ""));
  }
  if (!name.empty()) return UsageError(name, absl::StrCat("unexpected argument ", extras[0]));
  const std::string hint = word == "help" || word == "version"
                               ? absl::StrCat(" (did you mean --", word, "?)")
                               : DidYouMean(word, VerbNames(app));
  return UsageError(name, absl::StrCat("unknown command ", extras[0], hint));
}

// The library's own texts of wrong usage, in one line and our words.
absl::Status RefuseParse(const CLI::App& verb, const CLI::ParseError& error) {
  std::string message = error.what();
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ArgumentMismatch) &&
      absl::StrContains(message, "required")) {
    message = absl::StrCat(message.substr(0, message.find(':')), " needs a value");
  }
  return UsageError(verb.get_parent() == nullptr ? "" : verb.get_name(), message);
}

absl::Status Run(int argc, const char* const* argv) {
  CLI::App app("Measures and clips gradients by their norm, on a GradClip server.", "gradclip");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", "gradclip " GRADCLIP_VERSION);
  app.require_subcommand(0, 1);
  app.allow_extras();  // refused below, in words of our own
  Action action;
  for (const auto add : {AddNormVerb, AddClipVerb, AddInfoVerb, AddHealthVerb, AddBenchVerb}) {
    add(app, action);
  }
  const auto chosen = [&app]() -> const CLI::App& {
    const auto verbs = app.get_subcommands();
    return verbs.empty() ? app : *verbs[0];
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help or --version, which the library prints
      app.exit(error);
      return absl::OkStatus();
    }
    return RefuseParse(chosen(), error);
  }
  // Flags before the verb first: they are why the rest may be misread.
  if (absl::Status status = RefuseExtras(app, app); !status.ok()) return status;
  if (absl::Status status = RefuseExtras(app, chosen()); !status.ok()) return status;
  if (action == nullptr) {
    return UsageError("", "no command given; there are norm, clip, info, health and bench");
  }
  return action();
}

}  // namespace

int RunCommandLine(int argc, const char* const* argv) {
  absl::Status status = Run(argc, argv);
  if (status.ok() && !std::cout.flush()) {
    status = absl::UnknownError("can't write to standard output; is it closed or full?");
  }
  if (status.ok()) return 0;
  std::cerr << "gradclip: " << Printable(status.message()) << "\n";
  return 1;
}

}  // namespace gradclip
