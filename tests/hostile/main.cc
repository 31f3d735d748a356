// gradclip-hostile: what the cheapest hostile requests cost a server. Attacks a gradclip-server
// that it starts on loopback, or one that it is told of.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/bench/servers.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/trial.h"

namespace {

using gradclip::hostile::Attack;

struct Arguments {
  std::vector<std::string> attacks;  // empty: all
  std::vector<std::string> flags;    // of the server
  std::string address;               // empty: a server of its own
  pid_t server_pid = 0;              // of the one at `address`
  bool over_unix_socket = false;
};

std::vector<Attack> AllAttacks() {
  std::vector<Attack> all = {
      {"nothing", "the calls of the probe alone, for comparison", [](auto& attacker) {
         attacker.Settle();
         return absl::OkStatus();
       }}};
  for (const std::vector<Attack>& group :
       {gradclip::hostile::AttacksOnStreams(), gradclip::hostile::AttacksOnFrames(),
        gradclip::hostile::AttacksOnHeaders(), gradclip::hostile::AttacksOnMemory(),
        gradclip::hostile::AttacksOnConnections()}) {
    all.insert(all.end(), group.begin(), group.end());
  }
  return all;
}

absl::Status RunAgainstOurs(const Attack& attack, const Arguments& arguments,
                            const gradclip::bench::ScratchFolder& folder) {
  std::vector<std::string> flags = attack.flags;
  // What is given on the command line counts last.
  for (const std::string& flag : arguments.flags) {
    const std::string name = flag.substr(0, flag.find('='));
    std::erase_if(flags, [&](const std::string& other) { return other.starts_with(name + "="); });
    flags.push_back(flag);
  }
  const absl::StatusOr<gradclip::bench::RunningServer> server =
      gradclip::bench::StartOursWith(folder, flags);
  if (!server.ok()) return server.status();
  const pid_t pid = server->process->pid();
  if (attack.open_files > 0) {
    const rlimit limit = {.rlim_cur = attack.open_files, .rlim_max = attack.open_files};
    if (prlimit(pid, RLIMIT_NOFILE, &limit, nullptr) != 0) {
      return absl::ErrnoToStatus(errno, "prlimit");
    }
  }
  gradclip::hostile::Figures figures = gradclip::hostile::RunTrial(
      attack, arguments.over_unix_socket ? server->unix_socket : server->tcp, pid);
  std::error_code error;
  const uintmax_t log = std::filesystem::file_size(folder.path() + "/ours.log", error);
  if (!error && log > 1'000'000) {
    absl::StrAppendFormat(&figures.remarks, "%s%.1f MB logged", figures.remarks.empty() ? "" : "; ",
                          static_cast<double>(log) / 1e6);
  }
  std::cout << gradclip::hostile::TableRow(attack, figures) << std::flush;
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments) {
  const absl::StatusOr<std::unique_ptr<gradclip::bench::ScratchFolder>> folder =
      gradclip::bench::ScratchFolder::Make();
  if (!folder.ok()) return folder.status();
  std::cout << gradclip::hostile::TableHead() << std::flush;
  for (const Attack& attack : AllAttacks()) {
    if (!arguments.attacks.empty() && std::find(arguments.attacks.begin(), arguments.attacks.end(),
                                                attack.name) == arguments.attacks.end()) {
      continue;
    }
    if (arguments.address.empty()) {
      if (absl::Status ran = RunAgainstOurs(attack, arguments, **folder); !ran.ok()) return ran;
    } else {
      std::cout << gradclip::hostile::TableRow(
                       attack,
                       gradclip::hostile::RunTrial(attack, arguments.address, arguments.server_pid))
                << std::flush;
    }
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  Arguments arguments;
  std::vector<std::string> names;
  for (const Attack& attack : AllAttacks()) names.push_back(attack.name);
  bool list = false;

  CLI::App app("Measures what hostile requests cost a gradclip-server on this machine.",
               "gradclip-hostile");
  app.add_option("--attack", arguments.attacks, "Attacks to run; default: all")
      ->check(CLI::IsMember(names));
  app.add_flag("--list", list, "Print the attacks, and run none");
  app.add_flag("--unix", arguments.over_unix_socket, "Attack over a unix socket, and not over TCP");
  CLI::Option* address =
      app.add_option("--address", arguments.address,
                     "Attack this server, IPV4:PORT or unix:PATH in plaintext, and start none")
          ->option_text("ADDRESS");
  app.add_option("--server-pid", arguments.server_pid,
                 "The process to measure of the server at --address")
      ->option_text("PID")
      ->needs(address);
  app.add_option("--server-flag", arguments.flags,
                 "A flag for the server that is started; may be repeated: "
                 "--server-flag=--idle-timeout=1s")
      ->option_text("FLAG");
  app.footer(
      "Each attack is bounded: about 20 s, and 3 GB of the server's. Attack nothing that is not "
      "yours. Figures "
      "are rough: they say which requests cost a server most, not how much to the digit.");
  CLI11_PARSE(app, argc, argv);

  if (list) {
    for (const Attack& attack : AllAttacks()) {
      std::cout << absl::StreamFormat("%-22s %s\n", attack.name, attack.about);
    }
    return 0;
  }
  if (!arguments.address.empty() && arguments.server_pid == 0) {
    std::cerr << "gradclip-hostile: --address wants --server-pid beside it" << std::endl;
    return 1;
  }
  if (absl::Status ran = Run(arguments); !ran.ok()) {
    std::cerr << "gradclip-hostile: " << ran.message() << std::endl;
    return 1;
  }
  return 0;
}
