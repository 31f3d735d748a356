// gradclip info
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/command/flags.h"
#include "client/command/huge_pages.h"
#include "client/command/output.h"
#include "client/command/verbs.h"

namespace gradclip {
namespace {

std::string BackendText(const BackendInfo& backend, bool first) {
  const char* state = !backend.usable ? "not usable" : first ? "in use" : "usable";
  return absl::StrCat(backend.name, ", ", state, backend.detail.empty() ? "" : ": ",
                      backend.detail);
}

absl::Status Info(const ServerFlags& flags) {
  Client client(flags.server, flags.client());
  const absl::StatusOr<ServerInfo> info = client.GetServerInfo(flags.call());
  if (!info.ok()) return flags.Advise(info.status());
  if (flags.json) {
    std::cout << JsonLine(ToJson(*info));
    return absl::OkStatus();
  }
  std::vector<std::pair<std::string, std::string>> fields = {
      {"server", flags.server}, {"version", info->version}, {"instance", info->instance}};
  for (size_t i = 0; i < info->backends.size(); ++i) {
    fields.emplace_back(i == 0 ? "backends" : "", BackendText(info->backends[i], i == 0));
  }
  fields.insert(
      fields.end(),
      {{"one message", absl::StrCat("at most ", BytesText(info->max_message_bytes))},
       {"one call", absl::StrCat("at most ", BytesText(info->max_call_bytes), " kept, ",
                                 CountText(info->max_tensors), " tensors")},
       {"all calls", absl::StrCat("at most ", BytesText(info->memory_budget_bytes), " kept")},
       {"shared memory", info->memory_socket.empty() ? "off" : info->memory_socket}});
  if (IsSocketHere(info->memory_socket)) {
    const std::string huge_pages = HugePagesText(ReadHugePagesSetting());
    if (!huge_pages.empty()) fields.emplace_back("huge pages", huge_pages);
  }
  std::cout << Fields(fields);
  return absl::OkStatus();
}

}  // namespace

void AddInfoVerb(CLI::App& app, Action& chosen) {
  CLI::App& verb = *app.add_subcommand("info", "Print what a server is, can do and allows");
  const auto flags = std::make_shared<ServerFlags>();
  flags->timeout = "30s";
  flags->AddTo(verb);
  verb.callback([flags, &chosen] { chosen = [flags] { return Info(*flags); }; });
}

}  // namespace gradclip
