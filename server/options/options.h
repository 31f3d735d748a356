// What the server can be told: one plain struct, filled from flags and environment variables,
// validated before anything starts. Plain data; the functions are pure but for reading the
// machine's memory limit.
#ifndef GRADCLIP_SERVER_OPTIONS_OPTIONS_H_
#define GRADCLIP_SERVER_OPTIONS_OPTIONS_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/observe/log.h"

namespace gradclip {

// Users of unix sockets that a server tells apart while it runs.
constexpr size_t kMaxUnixUsers = 64;

// What stands in for a device that fails, or has no memory left, amid a call.
enum class OnGpuError : uint8_t { kCpu, kFail };

// Memory of a device: bytes, or a share of what is free there at the start, which only the device
// knows.
struct DeviceMemoryBudget {
  uint64_t bytes = 0;     // > 0 unless percent is
  uint64_t percent = 80;  // 1 .. 100; 0 where bytes are given
};

// Every field is the flag of the same name: --max-call-bytes is max_call_bytes. Meanings, units and
// defaults for people are what --help prints.
struct Options {
  // HOST:PORT, [IPV6]:PORT or unix:PATH; at least one. Port 0: any free one.
  std::vector<std::string> listen = {"127.0.0.1:50051"};

  // PEM files: with the first two TCP listeners serve TLS, with the third only to clients with a
  // certificate of these authorities. Both of the first two, or none of the three.
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;

  // File of the tokens with which clients may call; empty: no token is needed.
  std::string auth_token_file;

  // Users that may call over unix sockets, at most kMaxUnixUsers; empty: all that can connect.
  std::vector<uid_t> unix_socket_uids;

  // File of what each caller may do; empty: everything.
  std::string allow;

  // Whether the health service answers callers without a token or certificate.
  bool open_health = true;

  // Whether the reflection service is there. Default: where there is no TLS.
  bool reflection = true;
  // Whether the channelz service is there.
  bool channelz = false;

  // Whether to listen beyond this machine without TLS.
  bool insecure = false;

  // Name of the backend, or "auto". Whether it exists is for the one who makes it to say.
  std::string backend = "auto";

  // What goes on with a call whose device fails: the host with the same bits, or nothing.
  OnGpuError on_gpu_error = OnGpuError::kCpu;

  // Numbers of the CUDA devices to use, each once; empty: all. Whether they exist is for the one
  // who opens them to say.
  std::vector<uint32_t> cuda_devices;

  // Memory that all calls together may take of each device.
  DeviceMemoryBudget cuda_memory_budget;

  // Bytes that all calls together may keep; > 0. Default: half of SystemMemoryLimit().
  uint64_t memory_budget = 0;

  // Bytes that one call may keep; 1 .. memory_budget. Default: memory_budget.
  uint64_t max_call_bytes = 0;

  // Bytes that one caller's calls together may keep; 1 .. memory_budget. Default: memory_budget, or
  // half of it where callers are told apart: by token, certificate or unix_socket_uids.
  uint64_t max_bytes_per_caller = 0;

  // Calls in progress, and those of them that wait for memory; > 0. Default for one caller: half.
  uint64_t max_calls = 4096;
  uint64_t max_calls_per_caller = 2048;
  uint64_t max_waiting_calls = 1024;
  uint64_t max_waiting_calls_per_caller = 512;

  // Open connections, in all and of one host or user of a unix socket; > 0. Default of the latter:
  // a quarter.
  uint64_t max_connections = 1024;
  uint64_t max_connections_per_peer = 256;

  // Calls in progress on one TCP connection, which HTTP/2 calls streams; > 0.
  uint64_t max_streams_per_connection = 512;

  // Calls that one TCP connection may cancel in a second, within a second of making them; > 0.
  uint64_t max_resets = 100;

  // Bytes of one call's metadata (HTTP/2 headers); 1 KiB .. 1 MiB.
  uint64_t max_metadata_bytes = uint64_t{16} << 10;

  // Bytes that gRPC may hold of what connections receive and send; >= 16 MiB. Default: an eighth of
  // memory_budget, at least 256 MiB.
  uint64_t max_transport_bytes = 0;

  // Bytes of one received message; 64 KiB .. 1 GiB.
  uint64_t max_message_bytes = uint64_t{8} << 20;

  // Tensors of one call; 1 .. 2^24.
  uint64_t max_tensors = 131072;

  // Dimensions of one tensor; 1 .. 1024.
  uint64_t max_dimensions = 64;

  // Path of the unix socket for registering memory; empty: none.
  std::string memory_socket;

  // User ids that may register memory; empty: the server's own alone.
  std::vector<uid_t> memory_socket_uids;

  // CUDA memory may be registered there, too.
  bool allow_cuda_ipc = false;

  // Regions of registered memory, their bytes, and both of one user; > 0. Default of the bytes:
  // memory_budget, which those of the host are charged to.
  uint64_t max_regions = 1024;
  uint64_t max_regions_per_peer = 256;
  uint64_t max_shared_bytes = 0;
  uint64_t max_shared_bytes_per_peer = 0;

  // Connections to the memory socket that have registered nothing yet; > 0.
  uint64_t max_pending_registrations = 64;

  // Ranges of shared memory of one call; 1 .. 2^24.
  uint64_t max_ranges = 131072;

  // Threads that measure and scale shared memory; 0: one for each processor.
  uint64_t compute_threads = 0;

  // How long a call waits for memory of the budget; 0: not at all.
  absl::Duration admission_timeout = absl::Seconds(30);

  // How long a client may keep a call waiting for its next read or write; > 0.
  absl::Duration idle_timeout = absl::Seconds(60);

  // How long a new connection may take to be ready for calls; > 0.
  absl::Duration handshake_timeout = absl::Seconds(10);

  // How long a connection may be without a call, and how long it may live before it is closed once
  // its calls have ended; 0: for ever. Default of the latter: 0, or an hour with tls_client_ca.
  absl::Duration connection_idle_timeout = absl::Minutes(10);
  absl::Duration max_connection_age = absl::ZeroDuration();

  // With calls in progress, how long a peer may be silent before it is asked whether it is there,
  // and how long it may take to answer; > 0.
  absl::Duration keepalive_time = absl::Minutes(1);
  absl::Duration keepalive_timeout = absl::Seconds(20);

  // How long running calls may take to end after a signal to stop; 0: no time at all.
  absl::Duration drain_timeout = absl::Seconds(30);

  // Where groups' steps are kept: "memory", or URLs redis://[USER@]HOST[:PORT][/DB] with commas
  // between; whether these are well formed is for the one who makes the store to say. The password
  // comes from the file, or else from the variable GRADCLIP_GROUP_STORE_PASSWORD; empty: none.
  std::string group_store = "memory";
  std::string group_store_password_file;
  std::string group_store_password;

  // Longest a step of a group may take from its first rank's arrival; > 0. Ranks may ask for less.
  absl::Duration group_timeout = absl::Minutes(10);

  // How long a rank whose connection was lost may take to come back; 0: none may.
  absl::Duration group_reconnect_grace = absl::Seconds(10);

  // How long the ranks of a step, once all have come, wait for memory of the budget; 0: not at all.
  absl::Duration group_admission_timeout = absl::Minutes(1);

  // How long a step that has ended is kept for ranks that ask again, and a job for the steps that
  // are not to be opened again; > 0.
  absl::Duration group_result_ttl = absl::Minutes(5);
  absl::Duration group_job_ttl = absl::Hours(24);

  // Bytes of steps and jobs that are kept; >= 64 KiB. One caller may have half.
  uint64_t max_group_bytes = uint64_t{256} << 20;

  // How often memory that no call used in the meantime is given back to the system; > 0.
  absl::Duration arena_trim_interval = absl::Seconds(60);

  // HOST:PORT or [IPV6]:PORT where metrics are served over HTTP; empty: nowhere. Port 0: any free
  // one.
  std::string metrics_listen;

  // Whether there are metrics of each job.
  bool metrics_per_job = false;

  LogFormat log_format = LogFormat::kText;
  LogLevel log_level = LogLevel::kInfo;

  // What was strange but does not stop the start; one line each, to be logged once a log exists.
  std::vector<std::string> warnings;

  // Set by --help and --version: print this (it ends with a newline) to standard output, exit with
  // status 0. The other fields then mean nothing.
  std::optional<std::string> print_and_exit;
};

// Reads flags, then, for flags that are not given, environment variables (GRADCLIP_MAX_CALL_BYTES
// for --max-call-bytes; an empty one counts as unset), then defaults. argv[0] is skipped.
// INVALID_ARGUMENT: one line that names the flag or variable, the value and what is allowed.
absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv);

// The same with everything given: `environment` is a null-terminated list of NAME=value,
// `system_memory` what SystemMemoryLimit() would return, in bytes.
absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv,
                                     const char* const* environment, uint64_t system_memory);

// The server's version, "1.2.3".
std::string_view ServerVersion();

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OPTIONS_OPTIONS_H_
