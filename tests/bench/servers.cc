#include "tests/bench/servers.h"

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace gradclip::bench {
namespace {

// Reads the line "listening on ADDRESS".
absl::StatusOr<std::string> ReadAddress(Child& process) {
  absl::StatusOr<std::string> line = process.ReadLine();
  if (!line.ok()) return line.status();
  absl::string_view address = *line;
  if (!absl::ConsumePrefix(&address, "listening on ")) {
    return absl::InternalError(absl::StrCat("expected \"listening on ADDRESS\", got ", *line));
  }
  return std::string(address);
}

absl::StatusOr<RunningServer> Start(const std::string& program,
                                    const std::vector<std::string>& arguments,
                                    const std::string& errors) {
  absl::StatusOr<std::unique_ptr<Child>> process = Child::Start(program, arguments, errors);
  if (!process.ok()) return process.status();
  absl::StatusOr<std::string> tcp = ReadAddress(**process);
  if (!tcp.ok()) return tcp.status();
  absl::StatusOr<std::string> unix_socket = ReadAddress(**process);
  if (!unix_socket.ok()) return unix_socket.status();
  return RunningServer{*std::move(process), *std::move(tcp), *std::move(unix_socket)};
}

absl::StatusOr<std::filesystem::path> ThisProgram() {
  std::error_code error;
  std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError("/proc/self/exe: " + error.message());
  return path;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ScratchFolder>> ScratchFolder::Make() {
  std::error_code error;
  std::string path =
      (std::filesystem::temp_directory_path(error) / "gradclip-bench-XXXXXX").string();
  if (error) return absl::UnavailableError("no folder for temporary files: " + error.message());
  if (mkdtemp(path.data()) == nullptr) return absl::ErrnoToStatus(errno, path);
  return std::unique_ptr<ScratchFolder>(new ScratchFolder(std::move(path)));
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<RunningServer> StartOurs(const ScratchFolder& folder, bool shares_memory) {
  std::vector<std::string> flags;
  if (shares_memory) flags.push_back("--memory-socket=" + folder.path() + "/memory");
  return StartOursWith(folder, flags);
}

absl::StatusOr<RunningServer> StartOursWith(const ScratchFolder& folder,
                                            const std::vector<std::string>& flags) {
  const absl::StatusOr<std::filesystem::path> self = ThisProgram();
  if (!self.ok()) return self.status();
  const std::string socket = folder.path() + "/ours";
  std::filesystem::remove(socket);
  std::vector<std::string> arguments = {"--listen=127.0.0.1:0", "--listen=unix:" + socket};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return Start((self->parent_path() / "gradclip-server").string(), arguments,
               folder.path() + "/ours.log");
}

absl::StatusOr<RunningServer> StartRaw(const ScratchFolder& folder) {
  const absl::StatusOr<std::filesystem::path> self = ThisProgram();
  if (!self.ok()) return self.status();
  const std::string socket = folder.path() + "/raw";
  std::filesystem::remove(socket);
  return Start(self->string(), {"--serve-raw", "127.0.0.1:0", "unix:" + socket},
               folder.path() + "/raw.log");
}

absl::StatusOr<ServerPair> StartBoth(const ScratchFolder& folder, bool shares_memory) {
  absl::StatusOr<RunningServer> ours = StartOurs(folder, shares_memory);
  if (!ours.ok()) return ours.status();
  absl::StatusOr<RunningServer> raw = StartRaw(folder);
  if (!raw.ok()) return raw.status();
  return ServerPair{*std::move(ours), *std::move(raw)};
}

}  // namespace gradclip::bench
