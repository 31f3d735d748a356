#include "server/options/options.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/memory/limits.h"
#include "server/options/bytes.h"
#include "server/options/flags.h"
#include "server/options/suggest.h"

namespace gradclip {
namespace {

constexpr absl::string_view kVariablePrefix = "GRADCLIP_";

// Variables that the client and the command read; a shell may well hold them beside the server's.
constexpr absl::string_view kClientVariables[] = {"GRADCLIP_SERVER"};

// A secret, and so no flag, which every user of the machine could see.
constexpr absl::string_view kPasswordVariable = "GRADCLIP_GROUP_STORE_PASSWORD";

// What was given for a flag, and where: "--max-tensors" or "GRADCLIP_MAX_TENSORS".
struct Given {
  std::string source;
  std::vector<std::string> values;
};
using GivenByFlag = std::map<absl::string_view, Given>;

std::string VariableName(absl::string_view flag) {
  return absl::StrCat(kVariablePrefix,
                      absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

std::string Dashed(absl::string_view flag) {
  return absl::StrCat("--", flag);
}

// "; did you mean --listen?" for the flag (or, as `spell` writes it, variable) closest to `name`;
// empty where none is close.
template <typename Spell>
std::string Suggestion(absl::string_view name, Spell spell) {
  std::vector<std::string> known;
  for (const Flag& flag : AllFlags()) known.push_back(spell(flag.name));
  const std::optional<std::string> closest = Closest(name, known);
  return closest.has_value() ? absl::StrCat("; did you mean ", *closest, "?") : "";
}

absl::Status Refused(const Given& given, absl::string_view value, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(given.source, "=", absl::Utf8SafeCEscape(value), ": expected ", expected));
}

// Reads argv. What --help and --version print goes to `print`.
absl::Status ReadArguments(int argc, const char* const* argv, GivenByFlag& given,
                           std::optional<std::string>& print) {
  CLI::App app("GradClip's server: measures and clips the gradients of training jobs.",
               "gradclip-server");
  app.get_formatter()->column_width(6);  // descriptions stand below their flags
  app.footer("Flags win over variables.\nBYTES is " + std::string(kBytesSyntax) +
             ".\nDURATION is like 500ms, 30s, 5m or 1h30m, at most 24h.");
  app.set_help_flag("-h,--help", "Print this text and exit.");
  app.set_version_flag("--version", absl::StrCat("gradclip-server ", GRADCLIP_VERSION),
                       "Print the version and exit.");
  app.allow_extras();  // unknown flags are reported here, with a suggestion
  std::map<absl::string_view, std::vector<std::string>> values;
  for (const Flag& flag : AllFlags()) {
    const std::string help = absl::StrCat(
        flag.meaning, "\nDefault: ", flag.default_text, ". Variable: ", VariableName(flag.name),
        flag.repeatable ? " (several with commas between)." : ".");
    if (flag.value.empty()) {
      app.add_flag(Dashed(flag.name), values[flag.name], help);
      continue;
    }
    app.add_option(Dashed(flag.name), values[flag.name], help)
        ->option_text(std::string(flag.value))  // in --help
        ->type_name(std::string(flag.value))    // in errors
        ->allow_extra_args(false);              // one value after each occurrence
  }

  try {
    std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
    std::reverse(arguments.begin(), arguments.end());  // as this overload takes them
    app.parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    print = app.help();
    return absl::OkStatus();
  } catch (const CLI::CallForVersion& version) {
    print = absl::StrCat(version.what(), "\n");
    return absl::OkStatus();
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(absl::Utf8SafeCEscape(error.what()), "; see --help"));
  }

  for (const std::string& extra : app.remaining()) {
    if (!absl::StartsWith(extra, "-")) {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected argument ", absl::Utf8SafeCEscape(extra),
                       ": expected flags only, like --listen=127.0.0.1:50051; see --help"));
    }
    const std::string name = extra.substr(0, extra.find('='));
    return absl::InvalidArgumentError(absl::StrCat("unknown flag ", absl::Utf8SafeCEscape(name),
                                                   Suggestion(name, Dashed), "; see --help"));
  }
  for (const Flag& flag : AllFlags()) {
    std::vector<std::string>& found = values[flag.name];
    if (found.empty()) continue;
    if (found.size() > 1 && !flag.repeatable) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag.name, ": given ", found.size(), " times, last as ",
                       absl::Utf8SafeCEscape(found.back()), ": expected once"));
    }
    given[flag.name] = {Dashed(flag.name), std::move(found)};
  }
  return absl::OkStatus();
}

// Reads the variables of flags that are not given yet, and warns of names that mean nothing.
void ReadEnvironment(const char* const* environment, GivenByFlag& given, Options& options) {
  for (; *environment != nullptr; ++environment) {
    const std::pair<absl::string_view, absl::string_view> variable =
        absl::StrSplit(*environment, absl::MaxSplits('=', 1));
    const absl::string_view name = variable.first;
    const absl::string_view value = variable.second;
    if (!absl::StartsWith(name, kVariablePrefix)) continue;
    if (name == kPasswordVariable) {
      options.group_store_password = std::string(value);
      continue;
    }
    const auto flag = std::find_if(AllFlags().begin(), AllFlags().end(), [&](const Flag& flag) {
      return VariableName(flag.name) == name;
    });
    if (flag == AllFlags().end()) {
      if (std::find(std::begin(kClientVariables), std::end(kClientVariables), name) ==
          std::end(kClientVariables)) {
        options.warnings.push_back(
            absl::StrCat("environment variable ", absl::Utf8SafeCEscape(name),
                         " is not known and has no effect", Suggestion(name, VariableName)));
      }
      continue;
    }
    // Without a value there would be no protection where some was meant to be.
    const bool counts = !value.empty() || flag->value == "FILE" || flag->name == "unix-socket-uids";
    if (!counts || given.contains(flag->name)) continue;
    Given& found = given[flag->name];
    found.source = std::string(name);
    if (flag->repeatable) {
      found.values = absl::StrSplit(value, ',');
    } else {
      found.values = {std::string(value)};
    }
  }
}

// Whether strangers can reach a TCP address. A host name may mean any of this machine's addresses.
bool IsBeyondThisMachine(absl::string_view listen) {
  if (absl::StartsWith(listen, "unix:")) return false;
  std::string host(listen.substr(0, listen.rfind(':')));
  if (host == "localhost") return false;
  in_addr ipv4 = {};
  if (inet_pton(AF_INET, host.c_str(), &ipv4) == 1) return (ntohl(ipv4.s_addr) >> 24) != 127;
  in6_addr ipv6 = {};
  if (absl::StartsWith(host, "[")) host = host.substr(1, host.size() - 2);
  return inet_pton(AF_INET6, host.c_str(), &ipv6) != 1 || !IN6_IS_ADDR_LOOPBACK(&ipv6);
}

absl::Status CheckTls(const Options& options, const GivenByFlag& given) {
  // What is set but needs the other two, or the second.
  const std::pair<absl::string_view, absl::string_view> needs[] = {
      {"tls-cert", "tls-key"}, {"tls-key", "tls-cert"}, {"tls-client-ca", "tls-cert"}};
  for (const auto& [flag, other] : needs) {
    const auto found = given.find(flag);
    if (found == given.end() || given.contains(other)) continue;
    return Refused(found->second, found->second.values.front(),
                   absl::StrCat("--", other, " beside it"));
  }
  if (!options.tls_cert.empty() || options.insecure) return absl::OkStatus();
  for (const std::string& listen : options.listen) {
    if (!IsBeyondThisMachine(listen)) continue;
    return Refused(given.at("listen"), listen,
                   "TLS (--tls-cert and --tls-key) for an address that other machines can reach, "
                   "or --insecure where the network between is trusted");
  }
  return absl::OkStatus();
}

absl::Status CheckUnixUsers(Options& options, const GivenByFlag& given) {
  const auto found = given.find("unix-socket-uids");
  if (found == given.end()) return absl::OkStatus();
  if (options.unix_socket_uids.size() > kMaxUnixUsers) {
    return Refused(found->second, found->second.values.back(),
                   absl::StrCat("at most ", kMaxUnixUsers, " users"));
  }
  if (std::none_of(options.listen.begin(), options.listen.end(),
                   [](const std::string& listen) { return absl::StartsWith(listen, "unix:"); })) {
    options.warnings.push_back(absl::StrCat(
        found->second.source, " has no effect: there is no unix socket (--listen=unix:PATH)"));
  }
  return absl::OkStatus();
}

// Fills in and checks the limits of one caller, or peer, of those of all.
absl::Status CheckPerCaller(Options& options, const GivenByFlag& given) {
  const bool told_apart = !options.auth_token_file.empty() || !options.tls_client_ca.empty() ||
                          !options.unix_socket_uids.empty();
  struct Limit {
    uint64_t Options::*one;
    absl::string_view flag;
    uint64_t Options::*all;
    absl::string_view flag_of_all;
    uint64_t share;  // the default: all, divided by this
  };
  const Limit limits[] = {
      {&Options::max_bytes_per_caller, "max-bytes-per-caller", &Options::memory_budget,
       "memory-budget", uint64_t{told_apart ? 2U : 1U}},
      {&Options::max_calls_per_caller, "max-calls-per-caller", &Options::max_calls, "max-calls", 2},
      {&Options::max_waiting_calls_per_caller, "max-waiting-calls-per-caller",
       &Options::max_waiting_calls, "max-waiting-calls", 2},
      {&Options::max_connections_per_peer, "max-connections-per-peer", &Options::max_connections,
       "max-connections", 4}};
  for (const Limit& limit : limits) {
    const auto found = given.find(limit.flag);
    if (found == given.end()) {
      options.*limit.one = std::max<uint64_t>(1, options.*limit.all / limit.share);
    } else if (options.*limit.one > options.*limit.all) {
      return Refused(found->second, found->second.values.front(),
                     absl::StrCat("at most the limit of all, ", options.*limit.all, " (--",
                                  limit.flag_of_all, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view ServerVersion() {
  return GRADCLIP_VERSION;
}

absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv) {
  return ParseOptions(argc, argv, environ, SystemMemoryLimit());
}

absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv,
                                     const char* const* environment, uint64_t system_memory) {
  Options options;
  GivenByFlag given;
  const absl::Status read = ReadArguments(argc, argv, given, options.print_and_exit);
  if (!read.ok()) return read;
  if (options.print_and_exit.has_value()) return options;
  ReadEnvironment(environment, given, options);

  if (given.contains("listen")) options.listen.clear();
  for (const Flag& flag : AllFlags()) {
    const auto found = given.find(flag.name);
    if (found == given.end()) continue;
    for (const std::string& value : found->second.values) {
      const absl::Status set = flag.set(value, options);
      if (!set.ok()) return Refused(found->second, value, set.message());
    }
  }

  if (!given.contains("memory-budget")) {
    options.memory_budget = std::max<uint64_t>(1, system_memory / 2);
  } else if (options.memory_budget > system_memory) {
    options.warnings.push_back(
        absl::StrCat("the memory budget of ", FormatBytes(options.memory_budget), " (",
                     given["memory-budget"].source, ") is more than the ",
                     FormatBytes(system_memory), " that this machine or container has"));
  }
  if (!given.contains("max-call-bytes")) {
    options.max_call_bytes = options.memory_budget;
  } else if (options.max_call_bytes > options.memory_budget) {
    const Given& call = given["max-call-bytes"];
    return Refused(call, call.values.front(),
                   absl::StrCat("at most the memory budget, ", FormatBytes(options.memory_budget),
                                " (--memory-budget)"));
  }
  if (absl::Status tls = CheckTls(options, given); !tls.ok()) return tls;
  if (absl::Status users = CheckUnixUsers(options, given); !users.ok()) return users;
  if (absl::Status limits = CheckPerCaller(options, given); !limits.ok()) return limits;
  const bool beyond =
      std::any_of(options.listen.begin(), options.listen.end(), IsBeyondThisMachine);
  if (beyond && options.tls_cert.empty() && !options.auth_token_file.empty()) {
    options.warnings.push_back(
        "tokens (--auth-token-file) will cross the network unencrypted, for whoever listens there "
        "to "
        "use: there is no TLS (--tls-cert and --tls-key)");
  }
  if (options.metrics_per_job && options.metrics_listen.empty()) {
    options.warnings.push_back(absl::StrCat(given["metrics-per-job"].source,
                                            " has no effect: there are no metrics "
                                            "(--metrics-listen=HOST:PORT)"));
  }
  if (options.allow_cuda_ipc && options.memory_socket.empty()) {
    options.warnings.push_back(absl::StrCat(given["allow-cuda-ipc"].source,
                                            " has no effect: there is no memory socket "
                                            "(--memory-socket=PATH)"));
  }
  if (!given.contains("reflection")) options.reflection = options.tls_cert.empty();
  if (!given.contains("max-connection-age") && !options.tls_client_ca.empty()) {
    options.max_connection_age = absl::Hours(1);
  }
  if (options.max_transport_bytes == 0) {
    options.max_transport_bytes = std::max(uint64_t{256} << 20, options.memory_budget / 8);
  }
  if (options.max_shared_bytes == 0) options.max_shared_bytes = options.memory_budget;
  if (options.max_shared_bytes_per_peer == 0) {
    options.max_shared_bytes_per_peer = options.max_shared_bytes;
  }
  return options;
}

}  // namespace gradclip
