#include "server/rpc/connections.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>

#include <mutex>
#include <string>
#include <utility>

namespace gradclip {
namespace {

constexpr char kUserProperty[] = "gradclip_unix_user";

std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> AddEntrance(
    grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials) {
  return builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      std::move(credentials));
}

void HandOver(grpc::experimental::ExternalConnectionAcceptor& entrance, FileDescriptor connection) {
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
  parameters.fd = connection.Release();
  entrance.HandleNewConnection(&parameters);
}

}  // namespace

// Writes one user into the authentication context of each connection, before its first call.
class Connections::NameUser : public grpc::AuthMetadataProcessor {
 public:
  // Before the entrance's first connection.
  void set_user(std::string user) {
    const std::lock_guard lock(mutex_);
    user_ = std::move(user);
  }

  bool IsBlocking() const override { return false; }

  // The context belongs to the connection, whose calls may come here at the same time; what reads
  // it in a call comes after this.
  grpc::Status Process(const InputMetadata& /*metadata*/, grpc::AuthContext* context,
                       OutputMetadata* /*consumed*/, OutputMetadata* /*response*/) override {
    const std::lock_guard lock(mutex_);
    if (context->FindPropertyValues(kUserProperty).empty()) {
      context->AddProperty(kUserProperty, user_);
    }
    return grpc::Status::OK;
  }

 private:
  std::mutex mutex_;
  std::string user_;
};

std::optional<std::string> UnixUserOf(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr) return std::nullopt;
  const std::vector<grpc::string_ref> users = peer->FindPropertyValues(kUserProperty);
  if (users.empty()) return std::nullopt;
  return std::string(users.front().data(), users.front().size());
}

Connections::Connections(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> tcp,
                         bool unix_sockets)
    : tcp_(AddEntrance(builder, std::move(tcp))) {
  for (size_t i = 0; unix_sockets && i <= kMaxUnixUsers; ++i) {
    const auto name = std::make_shared<NameUser>();
    name->set_user(std::string(kUnlistedUsers));
    const auto credentials = grpc::experimental::LocalServerCredentials(UDS);
    credentials->SetAuthMetadataProcessor(name);
    user_entrances_.push_back({AddEntrance(builder, credentials), name});
  }
}

bool Connections::Take(FileDescriptor connection, const Peer& peer) {
  auto* const entrance = peer.uid.has_value() ? EntranceOf(peer.host) : tcp_.get();
  if (entrance == nullptr) return false;
  HandOver(*entrance, std::move(connection));
  return true;
}

grpc::experimental::ExternalConnectionAcceptor* Connections::EntranceOf(const std::string& user) {
  if (user == kUnlistedUsers) return user_entrances_.front().acceptor.get();
  const auto [found, is_new] = entrance_of_.try_emplace(user, entrance_of_.size() + 1);
  if (found->second == user_entrances_.size()) {
    entrance_of_.erase(found);
    return nullptr;
  }
  UserEntrance& entrance = user_entrances_[found->second];
  if (is_new) entrance.name->set_user(user);
  return entrance.acceptor.get();
}

}  // namespace gradclip
