// gradclip health
#include <iostream>
#include <memory>

#include "client/command/flags.h"
#include "client/command/output.h"
#include "client/command/verbs.h"

namespace gradclip {
namespace {

struct HealthFlags {
  ServerFlags server;
  bool quiet = false;
};

absl::Status Health(const HealthFlags& flags) {
  Client client(flags.server.server, flags.server.client());
  if (absl::Status status = client.CheckHealth(flags.server.call()); !status.ok()) {
    return flags.server.Advise(status);
  }
  if (flags.server.json) {
    std::cout << JsonLine({{"status", "SERVING"}});
  } else if (!flags.quiet) {
    std::cout << "SERVING\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddHealthVerb(CLI::App& app, Action& chosen) {
  CLI::App& verb =
      *app.add_subcommand("health", "Exit with 0 while a server is serving, with 1 otherwise");
  const auto flags = std::make_shared<HealthFlags>();
  flags->server.timeout = "30s";
  flags->server.AddTo(verb);
  AddQuiet(verb, flags->quiet, "Print nothing but errors");
  verb.callback([flags, &chosen] { chosen = [flags] { return Health(*flags); }; });
}

}  // namespace gradclip
