#include "server/security/certificates.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "server/security/followed_files.h"

namespace gradclip {
namespace {

using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free)>;
using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using CertificatePtr = std::unique_ptr<X509, decltype(&X509_free)>;

BioPtr Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free};
}

// Never asks at a terminal.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writes*/, void* /*user_data*/) {
  return -1;
}

absl::StatusOr<std::vector<CertificatePtr>> ParseChain(absl::string_view flag,
                                                       const std::string& path,
                                                       const std::string& pem) {
  const BioPtr bio = Open(pem);
  std::vector<CertificatePtr> chain;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr)) {
    chain.emplace_back(next, &X509_free);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) {
    return RefuseFlagFile(
        flag, path, absl::StrCat("certificate ", chain.size() + 1, " of the file is damaged"));
  }
  if (chain.empty()) {
    return RefuseFlagFile(flag, path,
                          "has no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
  }
  return chain;
}

absl::StatusOr<KeyPtr> ParseKey(const std::string& path, const std::string& pem) {
  const BioPtr bio = Open(pem);
  KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr), &EVP_PKEY_free);
  ERR_clear_error();
  if (key == nullptr) {
    return RefuseFlagFile(
        "tls-key", path,
        "has no private key in PEM form (-----BEGIN PRIVATE KEY-----), or one with a "
        "passphrase, which the server can't ask for");
  }
  return key;
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm fields = {};
  ASN1_TIME_to_tm(time, &fields);
  return absl::FromTM(fields, absl::UTCTimeZone());
}

std::string SubjectOf(X509* certificate) {
  const BioPtr text(BIO_new(BIO_s_mem()), &BIO_free);
  X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0,
                     XN_FLAG_ONELINE & ~XN_FLAG_SPC_EQ);
  const char* data = nullptr;
  const long size = BIO_get_mem_data(text.get(), &data);
  return {data, static_cast<size_t>(size)};
}

absl::Status CheckValidNow(absl::string_view flag, const std::string& path, X509* certificate) {
  const absl::Time now = absl::Now();
  const absl::Time from = TimeOf(X509_get0_notBefore(certificate));
  const absl::Time until = TimeOf(X509_get0_notAfter(certificate));
  if (now >= from && now <= until) return absl::OkStatus();
  const bool early = now < from;
  return RefuseFlagFile(flag, path,
                        absl::StrCat("the certificate of ", SubjectOf(certificate),
                                     early ? " is valid only from " : " has expired at ",
                                     absl::FormatTime(early ? from : until, absl::UTCTimeZone()),
                                     "; it is now ", absl::FormatTime(now, absl::UTCTimeZone())));
}

// OpenSSL does not take every key and signature for a server, such as RSA of 1024 bits.
absl::Status CheckUsable(const TlsFiles& files, X509* certificate, EVP_PKEY* key) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_server_method()),
                                                                  &SSL_CTX_free);
  if (context != nullptr && SSL_CTX_use_certificate(context.get(), certificate) == 1 &&
      SSL_CTX_use_PrivateKey(context.get(), key) == 1) {
    return absl::OkStatus();
  }
  const char* const reason = ERR_reason_error_string(ERR_peek_error());
  ERR_clear_error();
  return RefuseFlagFile(
      "tls-cert", files.tls_cert,
      absl::StrCat("can't serve TLS with the certificate of ", SubjectOf(certificate), ": ",
                   reason != nullptr ? reason : "out of memory"));
}

std::string PemOf(EVP_PKEY* key, const std::vector<CertificatePtr>& chain) {
  const BioPtr text(BIO_new(BIO_s_mem()), &BIO_free);
  PEM_write_bio_PrivateKey(text.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
  for (const CertificatePtr& certificate : chain) PEM_write_bio_X509(text.get(), certificate.get());
  const char* data = nullptr;
  const long size = BIO_get_mem_data(text.get(), &data);
  return {data, static_cast<size_t>(size)};
}

}  // namespace

absl::StatusOr<Certificates> LoadCertificates(const TlsFiles& files) {
  const absl::StatusOr<std::string> cert = ReadFlagFile("tls-cert", files.tls_cert);
  if (!cert.ok()) return cert.status();
  const absl::StatusOr<std::string> key_pem = ReadFlagFile("tls-key", files.tls_key);
  if (!key_pem.ok()) return key_pem.status();
  const auto chain = ParseChain("tls-cert", files.tls_cert, *cert);
  if (!chain.ok()) return chain.status();
  const absl::StatusOr<KeyPtr> key = ParseKey(files.tls_key, *key_pem);
  if (!key.ok()) return key.status();

  X509* const leaf = chain->front().get();
  const bool match = X509_check_private_key(leaf, key->get()) == 1;
  ERR_clear_error();
  if (!match) {
    return RefuseFlagFile("tls-key", files.tls_key,
                          absl::StrCat("is not the key of the first certificate in ",
                                       files.tls_cert, " (", SubjectOf(leaf), ")"));
  }
  if (absl::Status valid = CheckValidNow("tls-cert", files.tls_cert, leaf); !valid.ok()) {
    return valid;
  }
  if (absl::Status usable = CheckUsable(files, leaf, key->get()); !usable.ok()) return usable;
  Certificates loaded;
  // What was parsed: the files may hold more, such as a certificate beside the key.
  loaded.key_and_chain = PemOf(key->get(), *chain);
  loaded.subject = SubjectOf(leaf);
  loaded.expires = TimeOf(X509_get0_notAfter(leaf));

  if (!files.tls_client_ca.empty()) {
    absl::StatusOr<std::string> client_ca = ReadFlagFile("tls-client-ca", files.tls_client_ca);
    if (!client_ca.ok()) return client_ca.status();
    const auto authorities = ParseChain("tls-client-ca", files.tls_client_ca, *client_ca);
    if (!authorities.ok()) return authorities.status();
    loaded.client_ca = *std::move(client_ca);
  }
  return loaded;
}

}  // namespace gradclip
