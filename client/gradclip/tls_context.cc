#include "client/gradclip/tls_context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

constexpr absl::string_view kCaFile = "TlsOptions::ca_file (--tls-ca)";
constexpr absl::string_view kCertFile = "TlsOptions::cert_file (--tls-cert)";
constexpr absl::string_view kKeyFile = "TlsOptions::key_file (--tls-key)";

// How much is decrypted from one read of the socket: four records of the largest size.
constexpr size_t kReadAheadBytes = size_t{68} << 10;

constexpr unsigned char kHttp2[] = {2, 'h', '2'};

absl::Status Refuse(absl::string_view option, const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(option, " \"", path, "\": ", why));
}

// The system's reason, which OpenSSL would bury.
absl::Status CheckReadable(absl::string_view option, const std::string& path) {
  // A pipe would be waited for, and is empty once it was read.
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    return Refuse(option, path, "it is no regular file");
  }
  const std::unique_ptr<FILE, decltype(&fclose)> file(fopen(path.c_str(), "re"), &fclose);
  if (file == nullptr) return Refuse(option, path, std::strerror(errno));
  errno = 0;
  if (fgetc(file.get()) == EOF) {
    return Refuse(option, path, errno != 0 ? std::strerror(errno) : "the file is empty");
  }
  return absl::OkStatus();
}

// In place of OpenSSL's own, which would ask at the terminal.
int NotePassphrase(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

absl::Status UseAuthorities(SSL_CTX* context, const std::string& path) {
  if (path.empty()) {
    if (SSL_CTX_set_default_verify_paths(context) == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the system's certificate authorities can't be read: ", TakeOpenSslReason(),
                     "; name a file: ", kCaFile));
  }
  if (absl::Status status = CheckReadable(kCaFile, path); !status.ok()) return status;
  if (SSL_CTX_load_verify_file(context, path.c_str()) == 1) return absl::OkStatus();
  return Refuse(
      kCaFile, path,
      absl::StrCat("it holds no certificate in PEM that can be read: ", TakeOpenSslReason()));
}

absl::Status UseOwnCertificate(SSL_CTX* context, const TlsOptions& options) {
  if (options.cert_file.empty() && options.key_file.empty()) return absl::OkStatus();
  if (options.cert_file.empty() || options.key_file.empty()) {
    const bool has_cert = !options.cert_file.empty();
    return absl::InvalidArgumentError(
        absl::StrCat(has_cert ? kCertFile : kKeyFile, " is given without ",
                     has_cert ? kKeyFile : kCertFile, "; a client's certificate takes both"));
  }
  if (absl::Status status = CheckReadable(kCertFile, options.cert_file); !status.ok()) {
    return status;
  }
  if (SSL_CTX_use_certificate_chain_file(context, options.cert_file.c_str()) != 1) {
    return Refuse(
        kCertFile, options.cert_file,
        absl::StrCat("it holds no certificate in PEM that can be used: ", TakeOpenSslReason()));
  }

  if (absl::Status status = CheckReadable(kKeyFile, options.key_file); !status.ok()) return status;
  const std::unique_ptr<BIO, decltype(&BIO_free)> file(BIO_new_file(options.key_file.c_str(), "r"),
                                                       &BIO_free);
  bool encrypted = false;
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
      file == nullptr ? nullptr
                      : PEM_read_bio_PrivateKey(file.get(), nullptr, &NotePassphrase, &encrypted),
      &EVP_PKEY_free);
  if (encrypted) {
    ERR_clear_error();
    return Refuse(kKeyFile, options.key_file,
                  "the key is encrypted; it has to be without a passphrase");
  }
  if (key == nullptr) {
    return Refuse(
        kKeyFile, options.key_file,
        absl::StrCat("it holds no private key in PEM that can be read: ", TakeOpenSslReason()));
  }
  if (X509_check_private_key(SSL_CTX_get0_certificate(context), key.get()) != 1) {
    return Refuse(kKeyFile, options.key_file,
                  absl::StrCat("the key is not that of the certificate in ", kCertFile, " \"",
                               options.cert_file, "\": ", TakeOpenSslReason()));
  }
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1) {
    return Refuse(kKeyFile, options.key_file, TakeOpenSslReason());
  }
  return absl::OkStatus();
}

}  // namespace

std::string TakeOpenSslReason() {
  const unsigned long error = ERR_peek_error();
  const char* const reason = ERR_SYSTEM_ERROR(error) ? std::strerror(ERR_GET_REASON(error))
                                                     : ERR_reason_error_string(error);
  std::string text = reason != nullptr ? reason : absl::StrCat("OpenSSL's error ", error);
  ERR_clear_error();
  return text;
}

absl::StatusOr<TlsContext> MakeTlsContext(const TlsOptions& options) {
  ERR_clear_error();
  TlsContext context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr || SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1 ||
      SSL_CTX_set_alpn_protos(context.get(), kHttp2, sizeof(kHttp2)) != 0) {
    return absl::InternalError(absl::StrCat("can't set up TLS: ", TakeOpenSslReason()));
  }
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(context.get(), 1);
  SSL_CTX_set_default_read_buffer_len(context.get(), kReadAheadBytes);
  absl::Status status = UseAuthorities(context.get(), options.ca_file);
  if (status.ok()) status = UseOwnCertificate(context.get(), options);
  if (!status.ok()) return status;
  return context;
}

}  // namespace gradclip
