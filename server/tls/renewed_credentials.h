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
#ifndef GRADCLIP_SERVER_TLS_RENEWED_CREDENTIALS_H_
#define GRADCLIP_SERVER_TLS_RENEWED_CREDENTIALS_H_

#include <grpcpp/security/server_credentials.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/observe/log.h"
#include "server/tls/certificates.h"

namespace gradclip {

class RenewedCredentials {
 public:
  // Reads the files for the first time. `log` must outlive this. Errors as LoadCertificates();
  // RESOURCE_EXHAUSTED where the system has no memory or descriptors left.
  static absl::StatusOr<std::unique_ptr<RenewedCredentials>> Make(const TlsFiles& files, Log& log);
  // What was made of credentials() goes on with the last certificate.
  ~RenewedCredentials();

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

  absl::Status Publish(const Certificates& certificates);
  void Watch();
  void LookAgain();
  // Changes whenever one of the files does: which they are, when they changed, how long they are.
  std::string Stamp() const;

  const TlsFiles files_;
  Log& log_;
  Published key_and_chain_;
  Published client_ca_;
  std::string seen_;       // Stamp() at the last look; the thread's, once it runs
  std::string complaint_;  // what the last look was logged with; the same
  std::shared_ptr<grpc::ServerCredentials> credentials_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_TLS_RENEWED_CREDENTIALS_H_
