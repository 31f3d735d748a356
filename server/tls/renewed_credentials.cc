#include "server/tls/renewed_credentials.h"

#include <fcntl.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
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
  made->seen_ = made->Stamp();
  const absl::StatusOr<Certificates> certificates = LoadCertificates(files);
  if (!certificates.ok()) return certificates.status();
  if (absl::Status published = made->Publish(*certificates); !published.ok()) return published;

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
  made->thread_ = std::thread([server = made.get()] { server->Watch(); });
  return made;
}

RenewedCredentials::RenewedCredentials(TlsFiles files, Log& log)
    : files_(std::move(files)), log_(log) {}

RenewedCredentials::~RenewedCredentials() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::Status RenewedCredentials::Publish(const Certificates& certificates) {
  if (!certificates.client_ca.empty()) {
    absl::Status replaced = client_ca_.Replace(certificates.client_ca);
    if (!replaced.ok()) return replaced;
  }
  if (absl::Status replaced = key_and_chain_.Replace(certificates.key_and_chain); !replaced.ok()) {
    return replaced;
  }
  log_.Info("TLS certificate in use",
            {{"subject", certificates.subject},
             {"expires", absl::FormatTime(certificates.expires, absl::UTCTimeZone())}});
  return absl::OkStatus();
}

void RenewedCredentials::Watch() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, std::chrono::seconds(kLookSeconds), [this] { return stop_; })) {
    lock.unlock();
    LookAgain();
    lock.lock();
  }
}

// Files that could not be used are read again even where they have not changed: what was missing
// may be a right, or a certificate's first day.
void RenewedCredentials::LookAgain() {
  std::string stamp = Stamp();
  if (stamp == seen_ && complaint_.empty()) return;
  seen_ = std::move(stamp);
  const absl::StatusOr<Certificates> certificates = LoadCertificates(files_);
  const absl::Status used = certificates.ok() ? Publish(*certificates) : certificates.status();
  const std::string complaint(used.message());
  if (!used.ok() && complaint != complaint_) {
    log_.Warning("TLS certificate not renewed; the one in use stays", {{"reason", complaint}});
  }
  complaint_ = complaint;
}

std::string RenewedCredentials::Stamp() const {
  std::string stamp;
  for (const std::string* path : {&files_.tls_cert, &files_.tls_key, &files_.tls_client_ca}) {
    struct stat file {};
    if (path->empty() || stat(path->c_str(), &file) != 0) file = {};
    absl::StrAppend(&stamp, file.st_dev, " ", file.st_ino, " ", file.st_size, " ",
                    file.st_mtim.tv_sec, ".", file.st_mtim.tv_nsec, " ", file.st_ctim.tv_sec, ".",
                    file.st_ctim.tv_nsec, "\n");
  }
  return stamp;
}

}  // namespace gradclip
