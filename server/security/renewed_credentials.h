// gRPC credentials that follow the files of a certificate: whoever connects after a file has been
// replaced meets the new one, and connections from before go on. Files that can't be used are
// reported and change nothing.
//
// Context: gRPC 1.51 can follow files itself, but takes what it finds: a certificate that was
// written before its key ends all handshakes until both fit.
//
// Decision: a thread of ours reads the files, and only what LoadCertificates() accepts gets into
// files in memory of our own, which gRPC follows.
//
// Consequences: a new certificate is in use after at most two looks, 2 s; the key is in no file
// but the operator's. gRPC reads key and certificate from one file in two steps. Where that file is
// replaced between them, handshakes fail until its next look, a second later.
//
// Thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_RENEWED_CREDENTIALS_H_
#define GRADCLIP_SERVER_SECURITY_RENEWED_CREDENTIALS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/observe/log.h"
#include "server/security/certificates.h"
#include "server/security/followed_files.h"

namespace gradclip {

class RenewedCredentials {
 public:
  // Reads the files for the first time. `log` must outlive this. Errors as LoadCertificates();
  // RESOURCE_EXHAUSTED where the system has no memory or descriptors left.
  static absl::StatusOr<std::unique_ptr<RenewedCredentials>> Make(const TlsFiles& files, Log& log);

  // REQUIRES: servers that are made with them are gone before this is.
  const std::shared_ptr<grpc::ServerCredentials>& credentials() const { return credentials_; }

 private:
  // A file in memory, replaced as a whole.
  class Published {
   public:
    Published() = default;
    ~Published();
    absl::Status Replace(const std::string& contents);
    std::string path() const;

   private:
    int file_ = -1;
  };

  RenewedCredentials(TlsFiles files, Log& log);

  absl::StatusOr<absl::Time> Take();  // reads the files, and publishes what is in them
  const TlsFiles files_;
  Log& log_;
  Published key_and_chain_;
  Published client_ca_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;
  std::unique_ptr<FollowedFiles> followed_;  // last: calls Take()
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_RENEWED_CREDENTIALS_H_
