#include "server/security/renewed_credentials.h"

#include <fcntl.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

constexpr unsigned kLookSeconds = 1;

absl::Status NotGiven(int error) {
  return absl::ResourceExhaustedError(
      absl::StrCat("can't keep the TLS certificate in memory: ", std::strerror(error)));
}

}  // namespace

RenewedCredentials::Published::~Published() {
  if (file_ >= 0) close(file_);
}

absl::Status RenewedCredentials::Published::Replace(const std::string& contents) {
  const int file = memfd_create("gradclip-tls", MFD_CLOEXEC);
  if (file < 0) return NotGiven(errno);
  for (size_t at = 0; at < contents.size();) {
    const ssize_t written = write(file, contents.data() + at, contents.size() - at);
    if (written < 0) {
      const int error = errno;
      close(file);
      return NotGiven(error);
    }
    at += static_cast<size_t>(written);
  }
  if (file_ < 0) {
    file_ = file;
    return absl::OkStatus();
  }
  // The path stays; whoever has opened it before reads the file of then.
  const int replaced = dup3(file, file_, O_CLOEXEC);
  const int error = errno;
  close(file);
  return replaced < 0 ? NotGiven(error) : absl::OkStatus();
}

std::string RenewedCredentials::Published::path() const {
  return absl::StrCat("/proc/self/fd/", file_);
}

absl::StatusOr<std::unique_ptr<RenewedCredentials>> RenewedCredentials::Make(const TlsFiles& files,
                                                                             Log& log) {
  std::unique_ptr<RenewedCredentials> made(new RenewedCredentials(files, log));
  std::vector<std::string> paths = {files.tls_cert, files.tls_key};
  if (!files.tls_client_ca.empty()) paths.push_back(files.tls_client_ca);
  auto followed = FollowedFiles::Follow(
      "TLS certificate", std::move(paths), [server = made.get()] { return server->Take(); }, log);
  if (!followed.ok()) return followed.status();
  made->followed_ = *std::move(followed);

  using grpc::experimental::FileWatcherCertificateProvider;
  const std::string key_and_chain = made->key_and_chain_.path();
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<FileWatcherCertificateProvider>(
          key_and_chain, key_and_chain, files.tls_client_ca.empty() ? "" : made->client_ca_.path(),
          kLookSeconds));
  options.watch_identity_key_cert_pairs();
  if (!files.tls_client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  made->credentials_ = grpc::experimental::TlsServerCredentials(options);
  return made;
}

RenewedCredentials::RenewedCredentials(TlsFiles files, Log& log)
    : files_(std::move(files)), log_(log) {}

absl::StatusOr<absl::Time> RenewedCredentials::Take() {
  const absl::StatusOr<Certificates> certificates = LoadCertificates(files_);
  if (!certificates.ok()) return certificates.status();
  if (!certificates->client_ca.empty()) {
    absl::Status replaced = client_ca_.Replace(certificates->client_ca);
    if (!replaced.ok()) return replaced;
  }
  absl::Status replaced = key_and_chain_.Replace(certificates->key_and_chain);
  if (!replaced.ok()) return replaced;
  log_.Info("TLS certificate in use",
            {{"subject", certificates->subject},
             {"expires", absl::FormatTime(certificates->expires, absl::UTCTimeZone())}});
  return certificates->expires;
}

}  // namespace gradclip
