#include "server/rpc/server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/group/memory_store.h"
#include "server/group/redis/redis_store.h"
#include "server/memory/heap.h"
#include "server/net/listener.h"

namespace gradclip {
namespace {

// A message over --max-message-bytes is refused in our words. One that is over this many times as
// much is refused by gRPC in its own, before it is held in memory.
constexpr uint64_t kTransportMessageFactor = 4;

// How long peers have to read what their kernels hold, and to say so to gRPC, before they are cut
// off. Only a peer that runs out of processor time needs more than milliseconds.
constexpr absl::Duration kTimeToHear = absl::Seconds(1);

// Of gRPC's own services: reflection, which keeps one for every stream, and channelz. All else
// needs none of these.
constexpr int kMaxPluginThreads = 8;

// Tasks that wait for one device at once. It takes one after the other, so a few are enough. Where
// it does not answer they wait for half a minute, and then for it no more.
constexpr int kThreadsPerDevice = 4;

// Clients that ask more often whether the server is there are sent away (ENHANCE_YOUR_CALM).
constexpr absl::Duration kLeastBetweenPings = absl::Seconds(10);

// What parsed start messages of all calls may hold: beside the gradients, never waiting for them.
uint64_t DeclarationBudget(uint64_t memory_budget) {
  return std::max<uint64_t>(uint64_t{64} << 20, memory_budget / 16);
}

BudgetLimits LimitsOf(const Options& options) {
  BudgetLimits limits = {.max_waiting = options.max_waiting_calls,
                         .max_waiting_per_caller = options.max_waiting_calls_per_caller};
  if (options.max_bytes_per_caller > 0) limits.max_bytes_per_caller = options.max_bytes_per_caller;
  return limits;
}

// Often enough that a wait ends at most an eighth late.
absl::Duration WatchInterval(const Options& options) {
  const absl::Duration shortest =
      std::min({options.idle_timeout, options.admission_timeout, options.group_admission_timeout});
  return std::clamp(shortest / 8, absl::Milliseconds(5), absl::Milliseconds(250));
}

std::string RandomInstance() {
  std::random_device device;
  return absl::StrFormat("%08x%08x", device(), device());
}

absl::StatusOr<std::unique_ptr<Compute>> MakeCompute(const Options& options, Log& log) {
  const DeviceMemoryBudget& memory = options.cuda_memory_budget;
  CudaOptions cuda;
  cuda.devices.assign(options.cuda_devices.begin(), options.cuda_devices.end());
  if (memory.bytes > 0) cuda.memory_bytes = memory.bytes;
  cuda.memory_share = static_cast<double>(memory.percent) / 100;
  cuda.on_failure = [&log](const std::string& device, const absl::Status& why) {
    log.Error("a device has failed and is used no more until the server is started again",
              {{"device", device}, {"why", why.message()}});
  };
  return Compute::Make(options.backend, std::move(cuda));
}

absl::StatusOr<std::unique_ptr<Store>> MakeStore(const Options& options, Log& log) {
  const GroupTimes times = {.reconnect_grace = options.group_reconnect_grace,
                            .result_ttl = options.group_result_ttl,
                            .job_ttl = options.group_job_ttl};
  if (options.group_store == "memory") {
    return std::make_unique<MemoryStore>(times, options.max_group_bytes, RandomInstance());
  }
  absl::StatusOr<std::vector<RedisAddress>> endpoints = ParseRedisUrls(options.group_store);
  if (!endpoints.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--group-store: ", endpoints.status().message()));
  }
  RedisOptions redis;
  redis.endpoints = *std::move(endpoints);
  redis.password_file = options.group_store_password_file;
  redis.password = options.group_store_password;
  return RedisStore::Make(redis, times, &log);
}

void ListBackendsIn(v1::GetServerInfoResponse& info, const Compute& compute) {
  for (BackendChoice& choice : compute.Choices()) {
    v1::Backend& listed = *info.add_backends();
    listed.set_name(std::move(choice.name));
    listed.set_usable(choice.usable);
    listed.set_detail(std::move(choice.detail));
  }
}

v1::GetServerInfoResponse DescribeServer(const Options& options) {
  v1::GetServerInfoResponse info;
  info.set_version(std::string(ServerVersion()));
  info.set_max_message_bytes(options.max_message_bytes);
  info.set_max_call_bytes(std::min(options.max_call_bytes, LimitsOf(options).max_bytes_per_caller));
  info.set_memory_budget_bytes(options.memory_budget);
  info.set_max_tensors(options.max_tensors);
  info.set_memory_socket(options.memory_socket);
  return info;
}

// Which of gRPC's own services a server has. Every server of a program would have reflection, once
// that is linked, and channelz, once one has had it.
class PluginServices : public grpc::ServerBuilderOption {
 public:
  // REQUIRES: where channelz is wanted, grpc::channelz::experimental::InitChannelzService() was
  // called before the builder was made.
  PluginServices(bool reflection, bool channelz) : reflection_(reflection), channelz_(channelz) {}

  void UpdateArguments(grpc::ChannelArguments* arguments) override {
    if (channelz_) arguments->SetInt(GRPC_ARG_ENABLE_CHANNELZ, 1);  // as is gRPC's default
  }
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins, [this](const std::unique_ptr<grpc::ServerBuilderPlugin>& plugin) {
      return plugin->name() == "channelz_service" ? !channelz_ : true;
    });
    if (!reflection_) return;
    plugins->push_back(std::make_unique<grpc::reflection::ProtoServerReflectionPlugin>());
  }

 private:
  const bool reflection_;
  const bool channelz_;
};

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

// gRPC's own limits.
void SetLimits(const Options& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(
      std::min<uint64_t>(options.max_message_bytes * kTransportMessageFactor, INT32_MAX)));
  builder.SetMaxSendMessageSize(-1);
  // gRPC would inflate a message whole before it looks at its size: 32 MiB become 32 GiB.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  grpc::ResourceQuota quota("connections");
  if (options.max_transport_bytes > 0) quota.Resize(options.max_transport_bytes);
  quota.SetMaxThreads(kMaxPluginThreads);
  builder.SetResourceQuota(quota);
  const auto set = [&](const char* argument, uint64_t value) {
    builder.AddChannelArgument(argument, static_cast<int>(std::min<uint64_t>(value, INT32_MAX)));
  };
  const auto set_time = [&](const char* argument, absl::Duration time) {
    if (time > absl::ZeroDuration()) builder.AddChannelArgument(argument, Milliseconds(time));
  };
  set(GRPC_ARG_MAX_CONCURRENT_STREAMS,
      ConnectionGuard::TransportStreams(options.max_streams_per_connection));
  set(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  set_time(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, options.handshake_timeout);
  set_time(GRPC_ARG_MAX_CONNECTION_IDLE_MS, options.connection_idle_timeout);
  set_time(GRPC_ARG_MAX_CONNECTION_AGE_MS, options.max_connection_age);
  set_time(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_time);
  set_time(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout);
  set_time(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kLeastBetweenPings);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options, Log& log) {
  absl::StatusOr<std::unique_ptr<Compute>> compute = MakeCompute(options, log);
  if (!compute.ok()) return compute.status();
  absl::StatusOr<std::unique_ptr<Store>> groups = MakeStore(options, log);
  if (!groups.ok()) return groups.status();
  std::unique_ptr<Server> server(new Server(options, *std::move(compute), *std::move(groups), log));
  if (absl::Status followed = server->Follow(options); !followed.ok()) return followed;
  if (absl::Status listening = server->Listen(options); !listening.ok()) return listening;
  // A machine without a GPU is the usual one; who expects one finds out why it is not used.
  if (const std::string& why = server->compute_->why_no_devices(); !why.empty()) {
    log.Info("no GPU is used", {{"why", why}, {"backend", server->compute_->name()}});
  }
  if (options.allow_cuda_ipc && server->compute_->devices() == nullptr) {
    log.Warning("no CUDA memory can be registered (--allow-cuda-ipc): no GPU is used");
  }
  for (const auto& [device, why] : server->compute_->left_out()) {
    log.Warning("a GPU is not used", {{"device", device}, {"why", why}});
  }
  return server;
}

Server::Server(const Options& options, std::unique_ptr<Compute> compute,
               std::unique_ptr<Store> groups, Log& log)
    : compute_(std::move(compute)),
      groups_(std::move(groups)),
      log_(log),
      memory_(std::make_shared<Memory>(options.memory_budget, LimitsOf(options),
                                       DeclarationBudget(options.memory_budget))),
      regions_({.max_regions = options.max_regions,
                .max_regions_per_peer = options.max_regions_per_peer,
                .max_shared_bytes = options.max_shared_bytes,
                .max_shared_bytes_per_peer = options.max_shared_bytes_per_peer},
               memory_->gradients, options.allow_cuda_ipc ? compute_->devices() : nullptr),
      pool_(static_cast<int>(options.compute_threads)),
      watchdog_(WatchInterval(options), options.arena_trim_interval,
                [memory = memory_] {
                  memory->arenas.Trim();
                  TrimHeap();
                }),
      call_limits_(options.max_calls, options.max_calls_per_caller),
      connection_guard_(
          {.streams = options.max_streams_per_connection, .resets_per_second = options.max_resets},
          [this](const std::string& peer) { acceptor_->Cut(peer); }, log, limit_hits_),
      group_admission_(memory_->gradients),
      metrics_(options.metrics_listen.empty() ? nullptr
                                              : std::make_unique<Metrics>(Metrics::Means{
                                                    .version = std::string(ServerVersion()),
                                                    .backends = compute_->names(),
                                                    .per_job = options.metrics_per_job,
                                                    .limit_hits = limit_hits_,
                                                    .state = [this] { return State(); }})),
      environment_{.backend = compute_->host(),
                   .memory = memory_,
                   .log = log_,
                   .watchdog = watchdog_,
                   .pool = pool_,
                   .device_pools = device_pools_,
                   .regions = options.memory_socket.empty() ? nullptr : &regions_,
                   .devices = compute_->devices(),
                   .host_on_device_error = options.on_gpu_error == OnGpuError::kCpu,
                   .unix_users_need_no_token = !options.unix_socket_uids.empty(),
                   .call_limits = call_limits_,
                   .connection_guard = connection_guard_,
                   .limit_hits = limit_hits_,
                   .groups = *groups_,
                   .group_admission = group_admission_,
                   .connection_lost =
                       [this](const std::string& peer, const std::string& host) {
                         return acceptor_->IsLost(peer, host);
                       },
                   .max_message_bytes = options.max_message_bytes,
                   .max_call_bytes = options.max_call_bytes,
                   .declaration_limits = {.max_tensors = options.max_tensors,
                                          .max_dimensions = options.max_dimensions,
                                          .max_ranges = options.max_ranges},
                   .admission_timeout = options.admission_timeout,
                   .idle_timeout = options.idle_timeout,
                   .group_timeout = options.group_timeout,
                   .group_admission_timeout = options.group_admission_timeout,
                   .metrics = metrics_.get()},
      service_(environment_, DescribeServer(options),
               [this](v1::GetServerInfoResponse& info) { ListBackendsIn(info, *compute_); }),
      health_(environment_, options.open_health),
      unknown_methods_(environment_) {
  if (!options.allow_cuda_ipc || compute_->devices() == nullptr) return;
  for (const Devices::State& device : compute_->devices()->states()) {
    device_pools_.try_emplace(device.name, kThreadsPerDevice, WorkerPool::For::kWaiting);
  }
}

absl::Status Server::Follow(const Options& options) {
  if (!options.tls_cert.empty()) {
    absl::StatusOr<std::unique_ptr<RenewedCredentials>> tls =
        RenewedCredentials::Make({.tls_cert = options.tls_cert,
                                  .tls_key = options.tls_key,
                                  .tls_client_ca = options.tls_client_ca},
                                 log_);
    if (!tls.ok()) return tls.status();
    tls_ = *std::move(tls);
  }
  if (!options.auth_token_file.empty()) {
    absl::StatusOr<std::unique_ptr<Callers>> callers = Callers::Make(options.auth_token_file, log_);
    if (!callers.ok()) return callers.status();
    callers_ = *std::move(callers);
    environment_.callers = callers_.get();
  }
  if (!options.allow.empty()) {
    absl::StatusOr<std::unique_ptr<Permissions>> permissions =
        Permissions::Make(options.allow, log_);
    if (!permissions.ok()) return permissions.status();
    permissions_ = *std::move(permissions);
    environment_.permissions = permissions_.get();
  }
  return absl::OkStatus();
}

absl::Status Server::ServeMetrics(const Options& options) {
  if (options.metrics_listen.empty()) return absl::OkStatus();
  absl::StatusOr<Listener> listener =
      Listener::Open(options.metrics_listen, std::nullopt, "--metrics-listen");
  if (!listener.ok()) return listener.status();
  metrics_address_ = listener->address();
  metrics_page_ =
      std::make_unique<HttpPage>(*std::move(listener), "/metrics", Metrics::kContentType,
                                 [this] { return metrics_->Expose(); });
  return absl::OkStatus();
}

// Looks, and waits for nothing: each of these is a number, perhaps under a lock that nobody holds
// for longer than it takes to change it.
ServerState Server::State() const {
  ServerState state;
  state.budget_bytes = memory_->gradients.total_bytes();
  state.budget_used_bytes = reserved_bytes();
  state.declarations_bytes = memory_->declarations.total_bytes();
  state.declarations_used_bytes = declarations_bytes();
  state.arena_used_bytes = memory_->arenas.used_bytes();
  state.arena_free_bytes = memory_->arenas.free_bytes();
  state.waiting_calls = waiting_calls();  // before calls(): a call is one before it waits
  state.calls = calls();
  state.group_calls = group_calls();
  for (Store::Endpoint& endpoint : groups_->endpoints()) {
    state.group_stores.emplace_back(std::move(endpoint.name), endpoint.up);
  }
  if (compute_->devices() != nullptr) {
    for (Devices::State& device : compute_->devices()->states()) {
      state.devices.push_back({.name = std::move(device.name),
                               .up = device.usable,
                               .memory_budget_bytes = device.memory_bytes,
                               .memory_used_bytes = device.used_bytes,
                               .calls = device.queues});
    }
  }
  state.regions = regions_.regions();
  state.region_bytes = regions_.bytes();
  state.connections = connections();
  state.lost_log_lines = log_.lost_lines();
  state.draining = watchdog_.closed();
  return state;
}

absl::Status Server::Listen(const Options& options) {
  if (absl::Status served = ServeMetrics(options); !served.ok()) return served;
  if (!options.memory_socket.empty()) {
    absl::StatusOr<std::unique_ptr<MemorySocket>> socket = MemorySocket::Listen(
        {.path = options.memory_socket,
         .uids = options.memory_socket_uids.empty() ? std::vector<uid_t>{geteuid()}
                                                    : options.memory_socket_uids,
         .max_pending_registrations = options.max_pending_registrations,
         .idle_timeout = options.idle_timeout},
        regions_, log_);
    if (!socket.ok()) return socket.status();
    memory_socket_ = *std::move(socket);
  }
  // Unix sockets where users are told apart by this server need no rights of the file's to do so.
  const std::optional<mode_t> unix_mode =
      options.unix_socket_uids.empty() ? std::nullopt : std::optional<mode_t>(0666);
  std::vector<Listener> listeners;
  for (const std::string& address : options.listen) {
    absl::StatusOr<Listener> listener = Listener::Open(address, unix_mode);
    if (!listener.ok()) return listener.status();
    addresses_.push_back(listener->address());
    listeners.push_back(*std::move(listener));
  }
  const bool unix_sockets = std::any_of(listeners.begin(), listeners.end(),
                                        [](const Listener& one) { return one.is_unix(); });

  if (options.channelz) grpc::channelz::experimental::InitChannelzService();
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  connections_ = std::make_unique<Connections>(
      builder, tls_ == nullptr ? grpc::InsecureServerCredentials() : tls_->credentials(),
      unix_sockets);
  builder.RegisterService(&service_);
  builder.RegisterService(&health_);
  builder.RegisterCallbackGenericService(&unknown_methods_);
  builder.SetOption(std::make_unique<PluginServices>(options.reflection, options.channelz));
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return absl::UnavailableError("gRPC could not start the server");
  acceptor_ = std::make_unique<Acceptor>(
      std::move(listeners),
      Acceptor::Limits{.connections = options.max_connections,
                       .connections_per_peer = options.max_connections_per_peer,
                       .listed_uids = options.unix_socket_uids},
      [this, told = false](FileDescriptor connection, const Peer& peer) mutable {
        if (connections_->Take(std::move(connection), peer) || std::exchange(told, true)) return;
        log_.Warning("connections of more users of unix sockets than can be told apart are refused",
                     {{"first", peer.host}, {"limit", kMaxUnixUsers}});
      },
      log_, limit_hits_);
  if (absl::Status started = acceptor_->Start(); !started.ok()) return started;
  return metrics_page_ == nullptr ? absl::OkStatus() : metrics_page_->Start();
}

// Context: once gRPC's shutdown has begun, it closes a connection with the last call on it, though
// the kernel still holds megabytes of that call's reply. The caller's next window update then meets
// a closed socket, which answers with a reset, and the rest of the reply is lost.
//
// Decision: the shutdown begins when the running calls have ended and what they wrote has been
// taken. It then sends GOAWAY and a PING, and closes a connection when the PING is answered, which
// a caller does after it has read all that came before.
//
// Consequences: until then we refuse new calls ourselves, and the listeners stay open. Clients that
// read nothing between their calls, as ours, do not answer the PING; they are cut off after a
// while.
void Server::Drain(absl::Duration timeout) {
  const SteadyTime deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  health_.StopServing();
  watchdog_.Close();
  groups_->StopOpening();
  watchdog_.AwaitNone(deadline);
  acceptor_->AwaitRead(deadline);
  acceptor_->Close();
  const absl::Duration left =
      std::max(absl::ZeroDuration(), absl::FromChrono(deadline - std::chrono::steady_clock::now()));
  absl::Notification gone;
  std::thread shutdown([&] {
    server_->Shutdown(absl::ToChronoTime(absl::Now() + left));
    gone.Notify();
  });
  // Watches of the health service have no end of their own, and idle callers may not answer.
  gone.WaitForNotificationWithTimeout(std::min(kTimeToHear, left));
  grpc_server_cancel_all_calls(server_->c_server());
  shutdown.join();
}

Server::~Server() {
  if (acceptor_ != nullptr) Drain(absl::ZeroDuration());
}

}  // namespace gradclip
