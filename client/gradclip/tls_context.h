// What a TLS connection is set up with, read from the files that TlsOptions names.
//
// Functions; thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TLS_CONTEXT_H_
#define GRADCLIP_CLIENT_GRADCLIP_TLS_CONTEXT_H_

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "gradclip/client.h"

namespace gradclip {

struct FreeTls {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* session) const { SSL_free(session); }
};
using TlsContext = std::unique_ptr<SSL_CTX, FreeTls>;

// For a client that speaks HTTP/2 over TLS 1.2 or newer and verifies whom it speaks to.
// INVALID_ARGUMENT, with the option, the file and the reason, where a file can't be read or parsed,
// where the key is not the certificate's, or where only one of the two is given.
absl::StatusOr<TlsContext> MakeTlsContext(const TlsOptions& options);

// OpenSSL's words for the first error of this thread's queue, which is cleared.
std::string TakeOpenSslReason();

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TLS_CONTEXT_H_
