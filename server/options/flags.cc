#include "server/options/flags.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/options/bytes.h"

namespace gradclip {
namespace {

using Setter = std::function<absl::Status(absl::string_view, Options&)>;

constexpr uint64_t kNoMaximum = std::numeric_limits<uint64_t>::max();
constexpr absl::Duration kLongestDuration = absl::Hours(24);

Setter BytesBetween(uint64_t Options::*field, uint64_t least, uint64_t most) {
  return [=](absl::string_view text, Options& options) {
    const absl::StatusOr<uint64_t> bytes = ParseBytes({text.data(), text.size()});
    if (!bytes.ok()) return bytes.status();
    if (*bytes < least || *bytes > most) {
      return absl::InvalidArgumentError(
          most == kNoMaximum ? absl::StrCat("at least ", FormatBytes(least))
                             : absl::StrCat(FormatBytes(least), " to ", FormatBytes(most)));
    }
    options.*field = *bytes;
    return absl::OkStatus();
  };
}

Setter CountBetween(uint64_t Options::*field, uint64_t least, uint64_t most) {
  return [=](absl::string_view text, Options& options) {
    uint64_t count;
    if (!absl::SimpleAtoi(text, &count) || count < least || count > most) {
      return absl::InvalidArgumentError(absl::StrCat("a whole number, ", least, " to ", most));
    }
    options.*field = count;
    return absl::OkStatus();
  };
}

Setter DurationFrom(absl::Duration Options::*field, absl::Duration least) {
  return [=](absl::string_view text, Options& options) {
    absl::Duration duration;
    if (!absl::ParseDuration(text, &duration) || duration < least || duration > kLongestDuration) {
      return absl::InvalidArgumentError(absl::StrCat("a duration such as 500ms, 30s or 5m, ",
                                                     absl::FormatDuration(least), " to ",
                                                     absl::FormatDuration(kLongestDuration)));
    }
    options.*field = duration;
    return absl::OkStatus();
  };
}

template <typename Value>
Setter OneOf(Value Options::*field, std::vector<std::pair<absl::string_view, Value>> choices) {
  return [=](absl::string_view text, Options& options) {
    for (const auto& [name, value] : choices) {
      if (name != text) continue;
      options.*field = value;
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrJoin(
        choices, ", ",
        [](std::string* out, const auto& choice) { absl::StrAppend(out, choice.first); }));
  };
}

Setter File(std::string Options::*field) {
  return [=](absl::string_view text, Options& options) {
    if (text.empty()) return absl::InvalidArgumentError("a file's path");
    options.*field = std::string(text);
    return absl::OkStatus();
  };
}

Setter Switch(bool Options::*field) {
  return OneOf<bool>(field, {{"true", true}, {"false", false}, {"1", true}, {"0", false}});
}

absl::Status SetBackend(absl::string_view text, Options& options) {
  if (text.empty()) return absl::InvalidArgumentError("a backend's name, or auto");
  options.backend = std::string(text);
  return absl::OkStatus();
}

constexpr uint32_t kHighestCudaDevice = 1023;

absl::Status SetCudaDevices(absl::string_view text, Options& options) {
  options.cuda_devices.clear();
  if (text == "all") return absl::OkStatus();
  for (const absl::string_view number : absl::StrSplit(text, ',')) {
    uint32_t device;
    std::vector<uint32_t>& devices = options.cuda_devices;
    if (!absl::SimpleAtoi(number, &device) || device > kHighestCudaDevice ||
        std::find(devices.begin(), devices.end(), device) != devices.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("all, or the numbers of devices, each once, with commas between: 0 to ",
                       kHighestCudaDevice));
    }
    devices.push_back(device);
  }
  return absl::OkStatus();
}

absl::Status SetCudaMemoryBudget(absl::string_view text, Options& options) {
  DeviceMemoryBudget& budget = options.cuda_memory_budget;
  absl::string_view number = text;
  if (absl::ConsumeSuffix(&number, "%")) {
    budget.bytes = 0;
    if (absl::SimpleAtoi(number, &budget.percent) && budget.percent >= 1 && budget.percent <= 100) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("1% to 100%");
  }
  const absl::StatusOr<uint64_t> bytes = ParseBytes({text.data(), text.size()});
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("1% to 100% of what is free, or ", bytes.status().message()));
  }
  if (*bytes == 0) return absl::InvalidArgumentError("1% to 100%, or at least 1 B");
  budget = {.bytes = *bytes, .percent = 0};
  return absl::OkStatus();
}

absl::Status SetGroupStore(absl::string_view text, Options& options) {
  if (text != "memory" && !absl::StartsWith(text, "redis://")) {
    return absl::InvalidArgumentError("memory, or redis://HOST:PORT/DB");
  }
  options.group_store = std::string(text);
  return absl::OkStatus();
}

// sockaddr_un has room for this many bytes of path.
constexpr size_t kLongestSocketPath = 107;

absl::Status SetMemorySocket(absl::string_view text, Options& options) {
  if (!absl::StartsWith(text, "/") || text.size() > kLongestSocketPath) {
    return absl::InvalidArgumentError(
        absl::StrCat("an absolute path of at most ", kLongestSocketPath,
                     " bytes, as clients in other folders are told it"));
  }
  options.memory_socket = std::string(text);
  return absl::OkStatus();
}

Setter AddUid(std::vector<uid_t> Options::*field) {
  return [=](absl::string_view text, Options& options) {
    uint32_t uid;
    if (!absl::SimpleAtoi(text, &uid) || uid == std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError("a user's number, as id -u prints it");
    }
    (options.*field).push_back(uid);
    return absl::OkStatus();
  };
}

bool IsPort(absl::string_view text) {
  uint32_t port;
  return text.find_first_not_of("0123456789") == absl::string_view::npos &&
         absl::SimpleAtoi(text, &port) && port <= 65535;
}

// "HOST:PORT" or "[IPV6]:PORT".
bool IsTcpAddress(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || !IsPort(text.substr(colon + 1))) return false;
  const absl::string_view host = text.substr(0, colon);
  const bool bracketed = absl::StartsWith(host, "[") && absl::EndsWith(host, "]");
  return bracketed ? host.size() >= 4
                   : !host.empty() && host.find_first_of(":[],/ ") == absl::string_view::npos;
}

absl::Status SetMetricsListen(absl::string_view text, Options& options) {
  if (!IsTcpAddress(text)) {
    return absl::InvalidArgumentError("HOST:PORT or [IPV6]:PORT, with a port of 0 to 65535");
  }
  options.metrics_listen = std::string(text);
  return absl::OkStatus();
}

absl::Status AddListen(absl::string_view text, Options& options) {
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    absl::ConsumePrefix(&rest, "//");  // unix:///PATH is the same as unix:/PATH
    if (rest.empty() || rest.size() > kLongestSocketPath) {
      return absl::InvalidArgumentError(
          absl::StrCat("unix:PATH with a path of 1 to ", kLongestSocketPath, " bytes"));
    }
  } else if (!IsTcpAddress(text)) {
    return absl::InvalidArgumentError(
        "HOST:PORT, [IPV6]:PORT or unix:PATH, with a port of 0 to 65535");
  }
  if (std::find(options.listen.begin(), options.listen.end(), text) != options.listen.end() &&
      !absl::EndsWith(text, ":0")) {
    return absl::InvalidArgumentError("every address once");
  }
  options.listen.emplace_back(text);
  return absl::OkStatus();
}

}  // namespace

const std::vector<Flag>& AllFlags() {
  static const std::vector<Flag> flags = {
      {"listen", "ADDRESS",
       "Where to listen: HOST:PORT, [IPV6]:PORT or unix:PATH. Port 0 takes any free one.\n"
       "May be given several times.",
       "127.0.0.1:50051", true, AddListen},
      {"tls-cert", "FILE",
       "The server's certificate in PEM form, followed by those between it and its authority. TCP\n"
       "then is TLS alone; unix sockets stay as they are. Renewed files are taken over.",
       "none: no TLS", false, File(&Options::tls_cert)},
      {"tls-key", "FILE", "The private key of --tls-cert in PEM form, without a passphrase.",
       "none", false, File(&Options::tls_key)},
      {"tls-client-ca", "FILE",
       "Authorities in PEM form: over TCP, only clients with a certificate of theirs may connect.",
       "none: clients need no certificate", false, File(&Options::tls_client_ca)},
      {"auth-token-file", "FILE",
       "Who may call: lines of a name and the SHA-256 of its bearer token, in hexadecimal. "
       "Changes\n"
       "are taken over. A client certificate, under --tls-client-ca, takes a token's place.",
       "none: whoever can connect may call", false, File(&Options::auth_token_file)},
      {"unix-socket-uids", "UID",
       "Users who may call over the unix sockets of --listen without a token, by number; others\n"
       "need one, or may not call. Lets every user connect (mode 0666). Up to 64 times.",
       "whoever the socket's file and folder let connect", true,
       AddUid(&Options::unix_socket_uids)},
      {"allow", "FILE",
       "What each caller may do: lines of a token's name, a certificate's name, uid:NUMBER or *,\n"
       "then jobs=PREFIX,..., shared-memory=no or max-gradient-bytes=BYTES. Who has no line may "
       "do\n"
       "nothing. Changes are taken over.",
       "none: every caller may do everything", false, File(&Options::allow)},
      {"open-health", "",
       "Whether the health service answers callers without a token or certificate; it tells "
       "whether\n"
       "the server serves, and nothing else.",
       "true", false, Switch(&Options::open_health)},
      {"reflection", "",
       "Whether the reflection service tells tools such as grpcurl what can be called.",
       "true, or false with --tls-cert", false, Switch(&Options::reflection)},
      {"channelz", "",
       "Whether gRPC's channelz service tells whoever can connect, without a token, of the\n"
       "server's connections and how many calls and messages there were: to find faults with.",
       "false", false, Switch(&Options::channelz)},
      {"insecure", "",
       "Allow --listen beyond this machine without TLS: gradients and tokens can then be read, "
       "and\n"
       "changed, by whoever is on the network between.",
       "false", false, Switch(&Options::insecure)},
      {"backend", "NAME",
       "What computes: auto takes every GPU that can be used, or else the CPU; a name forces one:\n"
       "cuda, cuda/0, cpu, cpu/baseline, cpu/avx2, cpu/avx512.",
       "auto", false, SetBackend},
      {"on-gpu-error", "WHAT",
       "What becomes of a call whose GPU fails, or has no memory left: cpu has the CPU go on with\n"
       "it, with the same bits; fail ends it with the reason. What was kept on a GPU that fails "
       "is\n"
       "lost in either case, and its call has to be sent again.",
       "cpu", false,
       OneOf<OnGpuError>(&Options::on_gpu_error,
                         {{"cpu", OnGpuError::kCpu}, {"fail", OnGpuError::kFail}})},
      {"cuda-devices", "LIST",
       "CUDA devices to use: all that can be used, or the numbers of those that must be, as CUDA\n"
       "counts them, with commas between. A call goes to the one that has the least to do.",
       "all", false, SetCudaDevices},
      {"cuda-memory-budget", "BYTES",
       "Memory that all calls together may take of each CUDA device, or a percentage of what is\n"
       "free there at the start. What does not fit is for --on-gpu-error to say.",
       "80%", false, SetCudaMemoryBudget},
      {"memory-budget", "BYTES",
       "Gradient bytes that all calls together may have the server keep. A call that does not\n"
       "fit waits and is not read on. Parsed start messages have a smaller budget beside this one.",
       "half of the machine's or container's memory", false,
       BytesBetween(&Options::memory_budget, 1, kNoMaximum)},
      {"max-call-bytes", "BYTES", "The same for one call; one that needs more is refused at once.",
       "the memory budget", false, BytesBetween(&Options::max_call_bytes, 1, kNoMaximum)},
      {"max-bytes-per-caller", "BYTES",
       "The same for all calls of one caller: a token's or certificate's name, a user of a unix\n"
       "socket, or else a host. One at this limit waits, and others are served.",
       "the memory budget, or half of it with --auth-token-file, --tls-client-ca or "
       "--unix-socket-uids",
       false, BytesBetween(&Options::max_bytes_per_caller, 1, kNoMaximum)},
      {"max-calls", "COUNT", "Most calls in progress, 1 to 1000000.", "4096", false,
       CountBetween(&Options::max_calls, 1, 1000000)},
      {"max-calls-per-caller", "COUNT", "The same for one caller.", "half of --max-calls", false,
       CountBetween(&Options::max_calls_per_caller, 1, 1000000)},
      {"max-waiting-calls", "COUNT", "Most calls that wait for memory, 1 to 1000000.", "1024",
       false, CountBetween(&Options::max_waiting_calls, 1, 1000000)},
      {"max-waiting-calls-per-caller", "COUNT", "The same for one caller.",
       "half of --max-waiting-calls", false,
       CountBetween(&Options::max_waiting_calls_per_caller, 1, 1000000)},
      {"max-connections", "COUNT", "Most open connections, 1 to 1000000.", "1024", false,
       CountBetween(&Options::max_connections, 1, 1000000)},
      {"max-connections-per-peer", "COUNT",
       "The same for one host (an IPv4 address, an IPv6 /64) or one user of a unix socket.",
       "a quarter of --max-connections", false,
       CountBetween(&Options::max_connections_per_peer, 1, 1000000)},
      {"max-streams-per-connection", "COUNT",
       "Most calls in progress on one TCP connection, 1 to 1000000. One that has more than twice "
       "as\n"
       "many is cut.",
       "512", false, CountBetween(&Options::max_streams_per_connection, 1, 1000000)},
      {"max-resets", "COUNT",
       "Most calls in a second that one TCP connection may cancel within a second of making them;\n"
       "then it is cut (HTTP/2 rapid reset). A proxy that shares connections among clients needs "
       "more.",
       "100", false, CountBetween(&Options::max_resets, 1, 1000000)},
      {"max-metadata-bytes", "BYTES", "Largest metadata of a call, 1KiB to 1MiB.", "16KiB", false,
       BytesBetween(&Options::max_metadata_bytes, uint64_t{1} << 10, uint64_t{1} << 20)},
      {"max-transport-bytes", "BYTES",
       "What gRPC may hold of what is received and sent, at least 16MiB. Over it, connections are\n"
       "slowed down and then cut.",
       "an eighth of the memory budget, at least 256MiB", false,
       BytesBetween(&Options::max_transport_bytes, uint64_t{16} << 20, kNoMaximum)},
      {"max-message-bytes", "BYTES",
       "Largest message to receive, 64KiB to 1GiB. A call may have a few of them in memory.",
       "8MiB", false,
       BytesBetween(&Options::max_message_bytes, uint64_t{64} << 10, uint64_t{1} << 30)},
      {"max-tensors", "COUNT", "Most tensors of one call, 1 to 16777216.", "131072", false,
       CountBetween(&Options::max_tensors, 1, uint64_t{1} << 24)},
      {"max-dimensions", "COUNT", "Most dimensions of one tensor, 1 to 1024.", "64", false,
       CountBetween(&Options::max_dimensions, 1, 1024)},
      {"memory-socket", "PATH",
       "Unix socket where processes of this machine register memory, so that no gradient byte has\n"
       "to be sent; an absolute path. Registered memory of the host counts against the memory\n"
       "budget.",
       "none: no shared memory", false, SetMemorySocket},
      {"memory-socket-uids", "UID",
       "Users who may register memory, by number. May be given several times.",
       "the user that the server runs as", true, AddUid(&Options::memory_socket_uids)},
      {"allow-cuda-ipc", "",
       "Memory of the GPUs in use may be registered there, too, by its CUDA IPC handle, and is\n"
       "measured and clipped where it is. What a handle opens is for the driver to check: only "
       "for\n"
       "callers who are trusted with the GPU.",
       "false", false, Switch(&Options::allow_cuda_ipc)},
      {"max-regions", "COUNT", "Most regions of registered memory, 1 to 4096.", "1024", false,
       CountBetween(&Options::max_regions, 1, 4096)},
      {"max-regions-per-peer", "COUNT", "The same for one user, 1 to 4096.", "256", false,
       CountBetween(&Options::max_regions_per_peer, 1, 4096)},
      {"max-shared-bytes", "BYTES", "Most bytes of registered memory.", "the memory budget", false,
       BytesBetween(&Options::max_shared_bytes, 1, kNoMaximum)},
      {"max-shared-bytes-per-peer", "BYTES", "The same for one user.", "the memory budget", false,
       BytesBetween(&Options::max_shared_bytes_per_peer, 1, kNoMaximum)},
      {"max-pending-registrations", "COUNT",
       "Most connections to the memory socket that have registered nothing yet, 1 to 4096.", "64",
       false, CountBetween(&Options::max_pending_registrations, 1, 4096)},
      {"max-ranges", "COUNT", "Most ranges of registered memory in one call, 1 to 16777216.",
       "131072", false, CountBetween(&Options::max_ranges, 1, uint64_t{1} << 24)},
      {"compute-threads", "COUNT",
       "Threads that measure and scale registered memory of the host, 1 to 1024.",
       "one for each processor that the server may use", false,
       CountBetween(&Options::compute_threads, 1, 1024)},
      {"admission-timeout", "DURATION",
       "How long a call waits for memory of the budget before it is refused; 0 for not at all.",
       "30s", false, DurationFrom(&Options::admission_timeout, absl::ZeroDuration())},
      {"idle-timeout", "DURATION",
       "How long a client may neither send nor read before its call is ended. What counts is a\n"
       "whole message: a slow network wants small ones, or a longer time.",
       "60s", false, DurationFrom(&Options::idle_timeout, absl::Milliseconds(1))},
      {"group-store", "STORE",
       "Where the steps of groups are kept: memory, for one server that all ranks come to; or\n"
       "redis://[USER@]HOST[:PORT][/DB], for several behind one address. Of several URLs, with\n"
       "commas between and the same at all servers, each job has one.",
       "memory", false, SetGroupStore},
      {"group-store-password-file", "FILE",
       "File with Redis's password, read anew at each connection. Without it the variable\n"
       "GRADCLIP_GROUP_STORE_PASSWORD counts.",
       "none", false, File(&Options::group_store_password_file)},
      {"group-timeout", "DURATION",
       "Longest a step of a group may take, from its first rank's arrival; a rank may ask for\n"
       "less. Then it is aborted for all.",
       "10m", false, DurationFrom(&Options::group_timeout, absl::Milliseconds(1))},
      {"group-reconnect-grace", "DURATION",
       "How long a rank whose connection was lost may take to come back before its step is\n"
       "aborted; 0 for not at all.",
       "10s", false, DurationFrom(&Options::group_reconnect_grace, absl::ZeroDuration())},
      {"group-admission-timeout", "DURATION",
       "How long the ranks of a step wait for memory of the budget, once all have come, before\n"
       "the step is aborted; 0 for not at all.",
       "1m", false, DurationFrom(&Options::group_admission_timeout, absl::ZeroDuration())},
      {"group-result-ttl", "DURATION",
       "How long a step that has ended is kept for ranks that ask again.", "5m", false,
       DurationFrom(&Options::group_result_ttl, absl::Milliseconds(1))},
      {"group-job-ttl", "DURATION",
       "How long after its last step a job's secret and the numbers of its steps are kept, so\n"
       "that a late call cannot open a step again.",
       "24h", false, DurationFrom(&Options::group_job_ttl, absl::Milliseconds(1))},
      {"max-group-bytes", "BYTES",
       "Most memory for the steps and jobs of groups that are kept in memory, at least 64KiB;\n"
       "each rank of a step takes 1.25KiB of it. One caller may have half. Steps that have ended\n"
       "make room for new ones.",
       "256MiB", false, BytesBetween(&Options::max_group_bytes, uint64_t{64} << 10, kNoMaximum)},
      {"handshake-timeout", "DURATION",
       "How long a new connection may take until it is ready for calls.", "10s", false,
       DurationFrom(&Options::handshake_timeout, absl::Milliseconds(1))},
      {"connection-idle-timeout", "DURATION",
       "How long a connection may be without a call before it is closed; 0 for ever.", "10m", false,
       DurationFrom(&Options::connection_idle_timeout, absl::ZeroDuration())},
      {"max-connection-age", "DURATION",
       "How long a connection may live before it is closed, once its calls have ended; 0 for "
       "ever.\n"
       "Who was connected before a certificate was withdrawn is let in no longer than this.",
       "0, or 1h with --tls-client-ca", false,
       DurationFrom(&Options::max_connection_age, absl::ZeroDuration())},
      {"keepalive-time", "DURATION",
       "How long a peer with a call in progress may be silent before it is asked whether it is "
       "there.",
       "1m", false, DurationFrom(&Options::keepalive_time, absl::Milliseconds(1))},
      {"keepalive-timeout", "DURATION",
       "How long it may take to answer before its connection is cut.", "20s", false,
       DurationFrom(&Options::keepalive_timeout, absl::Milliseconds(1))},
      {"drain-timeout", "DURATION",
       "How long running calls may take to end after SIGTERM or SIGINT, and their callers to take\n"
       "the replies; 0 for no time at all.",
       "30s", false, DurationFrom(&Options::drain_timeout, absl::ZeroDuration())},
      {"arena-trim-interval", "DURATION",
       "How often memory that no call has used in the meantime is given back to the system.", "60s",
       false, DurationFrom(&Options::arena_trim_interval, absl::Milliseconds(1))},
      {"metrics-listen", "ADDRESS",
       "Where to serve metrics for Prometheus, at http://ADDRESS/metrics: HOST:PORT or\n"
       "[IPV6]:PORT. Port 0 takes any free one. Whoever can connect may read them.",
       "none: no metrics", false, SetMetricsListen},
      {"metrics-per-job", "",
       "Whether there are metrics of each job, too: of the first 100, and of all others together.\n"
       "Callers choose their jobs' names, which readers of the metrics then see.",
       "false", false, Switch(&Options::metrics_per_job)},
      {"log-format", "FORMAT",
       "Lines on standard error: text for people, json for one JSON object each.", "text", false,
       OneOf<LogFormat>(&Options::log_format,
                        {{"text", LogFormat::kText}, {"json", LogFormat::kJson}})},
      {"log-level", "LEVEL",
       "What to log: debug, info (one line per call), warning or error, and all above it.", "info",
       false,
       OneOf<LogLevel>(&Options::log_level, {{"debug", LogLevel::kDebug},
                                             {"info", LogLevel::kInfo},
                                             {"warning", LogLevel::kWarning},
                                             {"error", LogLevel::kError}})},
  };
  return flags;
}

}  // namespace gradclip
