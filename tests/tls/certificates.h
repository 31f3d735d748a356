// Certificates for tests of TLS, made at run time: an authority, and what it issues. Keys are EC
// P-256, signatures SHA-256; files are PEM. Whatever OpenSSL or the system refuses is thrown as
// std::runtime_error.
//
// Not thread-safe.
#ifndef GRADCLIP_TESTS_TLS_CERTIFICATES_H_
#define GRADCLIP_TESTS_TLS_CERTIFICATES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace gradclip {

// Paths. A key of another certificate is one that does not match.
struct CertificateFiles {
  std::string cert;  // where an intermediate signed it, that one's certificate follows
  std::string key;
};

struct CertificateRequest {
  std::string common_name = "gradclip test";
  std::vector<std::string> dns_names = {};     // subject alternative names, as are
  std::vector<std::string> ip_addresses = {};  // these, in text
  // From now; certificates have whole seconds. Not yet valid: valid_from > 0; expired:
  // valid_until < 0.
  absl::Duration valid_from = -absl::Hours(1);
  absl::Duration valid_until = absl::Hours(1);
  bool through_intermediate = false;
  bool is_client = false;  // for authenticating a client, else a server
  std::string file_stem =
      {};  // of both files, written anew where they exist; empty: one of its own
};

class TestAuthority {
 public:
  // Its files go into `folder`, which is made where there is none; `name` is in its own name and in
  // those of its files.
  TestAuthority(std::string folder, std::string name);
  ~TestAuthority();
  TestAuthority(const TestAuthority&) = delete;
  TestAuthority& operator=(const TestAuthority&) = delete;

  // The path of its own certificate, which whoever trusts it is given.
  const std::string& ca_file() const { return ca_file_; }

  CertificateFiles Issue(const CertificateRequest& request);

 private:
  struct Signer;

  const std::string folder_;
  const std::string name_;
  const std::string ca_file_;
  std::unique_ptr<Signer> root_;
  std::unique_ptr<Signer> intermediate_;  // signed by the root
  int issued_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_TLS_CERTIFICATES_H_
