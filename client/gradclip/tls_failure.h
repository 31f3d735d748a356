// Why TLS to a server failed, in words that say what to do. Pure.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TLS_FAILURE_H_
#define GRADCLIP_CLIENT_GRADCLIP_TLS_FAILURE_H_

#include <openssl/x509.h>

#include <string>

#include "absl/status/status.h"

namespace gradclip {

// What is known of a connection when it fails.
struct TlsFacts {
  std::string server_name;  // which the certificate has to have
  std::string ca_file;      // empty: the system's roots
  std::string cert_file;    // empty: none was sent
  std::string refusal;      // why the server's certificate was refused; empty: it was not
  bool asked_for_certificate = false;
  bool handshake_done = false;
  bool received = false;   // anything after the handshake
  bool speaks_tls = true;  // what came first is a TLS record
  bool ended = false;      // the server closed the connection
  int system_error = 0;
  unsigned long error = 0;  // OpenSSL's
};

// FAILED_PRECONDITION where the server's certificate was refused, UNAUTHENTICATED where the server
// refused the client's, or the lack of one; else UNAVAILABLE. OK where the server just closed a
// connection that had been in use, of which gRPC knows more.
absl::Status TlsFailure(const TlsFacts& facts);

// What verifying the server's certificate gave, such as `it has expired`; for TlsFacts::refusal.
std::string RefusalText(int verify_error, const X509* certificate, const TlsFacts& facts);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TLS_FAILURE_H_
