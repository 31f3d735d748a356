// The server's certificate, its key and the authorities of its clients, read from PEM files and
// checked as a whole, so that a mistake is named before any handshake fails of it. Values and
// functions that read files; thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_CERTIFICATES_H_
#define GRADCLIP_SERVER_SECURITY_CERTIFICATES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradclip {

// Paths, each the flag of the same name: --tls-cert is tls_cert.
struct TlsFiles {
  std::string tls_cert;       // the server's certificate, then those between it and its authority
  std::string tls_key;        // the key of the first, without a passphrase
  std::string tls_client_ca;  // authorities whose clients may connect; empty: anybody may
};

struct Certificates {
  std::string key_and_chain;  // PEM; a secret
  std::string client_ca;      // PEM; empty: anybody may connect
  std::string subject;        // of the server's certificate: "CN=gradclip.example.org"
  absl::Time expires;         // the same's last moment
};

// INVALID_ARGUMENT, naming flag, file and reason, for what can't be read, is no PEM, or does not
// belong together, and for a certificate that is not valid now. No message holds the key.
absl::StatusOr<Certificates> LoadCertificates(const TlsFiles& files);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_CERTIFICATES_H_
