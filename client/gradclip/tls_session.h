// A TLS session with a server over a socket: the handshake, which verifies the server, and then
// reading and writing without waiting.
//
// Not thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TLS_SESSION_H_
#define GRADCLIP_CLIENT_GRADCLIP_TLS_SESSION_H_

#include <openssl/ssl.h>

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/tls_context.h"
#include "client/gradclip/tls_failure.h"
#include "client/gradclip/tls_socket.h"
#include "gradclip/client.h"

namespace gradclip {

class TlsSession {
 public:
  // Shakes hands over `socket`, connected and non-blocking, which it takes. `host` is the server's
  // where `options` name no other. Errors as TlsFailure(); DEADLINE_EXCEEDED at the deadline,
  // UNAVAILABLE where the server takes longer than anyone waits.
  static absl::StatusOr<std::unique_ptr<TlsSession>> Open(int socket, const std::string& host,
                                                          const TlsOptions& options,
                                                          TlsContext context, absl::Time deadline);

  int socket() const { return socket_.descriptor(); }

  enum class State {
    kMoved,       // some bytes
    kWantsRead,   // nothing, until the socket can be read
    kWantsWrite,  // nothing, until it can be written
    kOver,        // nothing ever again; Failure() says why
  };
  struct Step {
    State state;
    size_t bytes;
  };
  Step Read(std::span<char> bytes);
  Step Write(std::span<const char> bytes);

  // Tells the server that no more comes, where that takes no waiting.
  void SayGoodbye();

  // Why it is over; OK where the server closed it as anyone may.
  absl::Status Failure() const { return TlsFailure(facts_); }

 private:
  TlsSession(int socket, const std::string& host, const TlsOptions& options, TlsContext context);

  absl::Status SetUp();
  absl::Status ShakeHands(absl::Time deadline);
  // After an operation that gave `result`.
  State After(int result);

  static int Verified(int preverified, X509_STORE_CTX* store);
  static int CertificateAsked(SSL* session, void* self);

  TlsSocket socket_;  // outlives the session over it
  const TlsContext context_;
  std::unique_ptr<SSL, FreeTls> session_;
  TlsFacts facts_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TLS_SESSION_H_
