// A folder with an authority of its own, and files that a server may follow.
#ifndef GRADCLIP_TESTS_SERVER_SECURITY_TLS_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_SECURITY_TLS_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "server/observe/log.h"
#include "server/security/certificates.h"
#include "tests/client/files/file_bytes.h"
#include "tests/tls/certificates.h"

namespace gradclip {

// A log whose text can be read while it grows.
class LogFile {
 public:
  explicit LogFile(const std::string& path)
      : path_(path),
        file_(open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600)),
        log_(std::in_place, LogFormat::kText, LogLevel::kDebug, file_) {}
  ~LogFile() {
    log_.reset();
    close(file_);
  }

  Log& log() { return *log_; }
  std::string text() const { return ReadFile(path_); }
  // Nobody logs any more: all of it.
  std::string End() {
    log_.reset();
    return text();
  }

 private:
  const std::string path_;
  const int file_;
  std::optional<Log> log_;
};

class TlsFolder {
 public:
  std::string path(const std::string& name) const { return folder_ / name; }

  // A server's certificate for this host.
  CertificateFiles Server(CertificateRequest request = {}) {
    request.dns_names = {"localhost"};
    request.ip_addresses = {"127.0.0.1"};
    return authority.Issue(request);
  }

  static TlsFiles Files(const CertificateFiles& files, const std::string& client_ca = "") {
    return {.tls_cert = files.cert, .tls_key = files.key, .tls_client_ca = client_ca};
  }

 private:
  const Folder folder_;

 public:
  TestAuthority authority{folder_ / "ours", "ours"};
  TestAuthority other{folder_ / "other", "other"};
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SECURITY_TLS_FIXTURE_H_
