#include "server/rpc/connections.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"

namespace gradclip {
namespace {

constexpr char kUserProperty[] = "gradclip_unix_user";

// In place of a number.
constexpr char kNotAllowed[] = "not allowed";

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
  std::string user_ = kNotAllowed;
};

std::optional<UnixUser> UnixUserOf(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr) return std::nullopt;
  const std::vector<grpc::string_ref> users = peer->FindPropertyValues(kUserProperty);
  if (users.empty()) return std::nullopt;
  UnixUser user;
  user.allowed =
      absl::SimpleAtoi(absl::string_view(users.front().data(), users.front().size()), &user.uid);
  return user;
}

Connections::Connections(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> tcp,
                         bool unix_sockets, AllowedUids allowed_uids)
    : allowed_uids_(std::move(allowed_uids)), tcp_(AddEntrance(builder, std::move(tcp))) {
  for (size_t i = 0; unix_sockets && i <= kMaxUnixUsers; ++i) {
    const auto name = std::make_shared<NameUser>();
    const auto credentials = grpc::experimental::LocalServerCredentials(UDS);
    credentials->SetAuthMetadataProcessor(name);
    user_entrances_.push_back({AddEntrance(builder, credentials), name});
  }
}

bool Connections::Take(FileDescriptor connection, const Peer& peer) {
  auto* const entrance = peer.uid.has_value() ? EntranceOf(*peer.uid) : tcp_.get();
  if (entrance == nullptr) return false;
  HandOver(*entrance, std::move(connection));
  return true;
}

grpc::experimental::ExternalConnectionAcceptor* Connections::EntranceOf(uid_t uid) {
  if (allowed_uids_.has_value() &&
      std::find(allowed_uids_->begin(), allowed_uids_->end(), uid) == allowed_uids_->end()) {
    return user_entrances_.front().acceptor.get();
  }
  const size_t next = entrance_of_.size() + 1;
  const auto found = entrance_of_.find(uid);
  if (found != entrance_of_.end()) return user_entrances_[found->second].acceptor.get();
  if (next == user_entrances_.size()) return nullptr;
  entrance_of_[uid] = next;
  user_entrances_[next].name->set_user(std::to_string(uid));
  return user_entrances_[next].acceptor.get();
}

}  // namespace gradclip
