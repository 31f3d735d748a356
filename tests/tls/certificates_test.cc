#include "tests/tls/certificates.h"

#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace gradclip {
namespace {

using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

bool Matches(const std::string& cert, const std::string& key) {
  const Context context(SSL_CTX_new(TLS_method()), &SSL_CTX_free);
  return SSL_CTX_use_certificate_chain_file(context.get(), cert.c_str()) == 1 &&
         SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) == 1 &&
         SSL_CTX_check_private_key(context.get()) == 1;
}

// What OpenSSL says of the chain in `cert` where `ca_file` is trusted; X509_V_OK where it is good.
int Verify(const std::string& ca_file, const std::string& cert, const char* host = nullptr,
           const char* ip = nullptr, const char* purpose = "ssl_server") {
  const Context context(SSL_CTX_new(TLS_method()), &SSL_CTX_free);
  EXPECT_EQ(SSL_CTX_load_verify_locations(context.get(), ca_file.c_str(), nullptr), 1);
  EXPECT_EQ(SSL_CTX_use_certificate_chain_file(context.get(), cert.c_str()), 1);
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(context.get(), &chain);
  const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> checked(
      X509_STORE_CTX_new(), &X509_STORE_CTX_free);
  EXPECT_EQ(X509_STORE_CTX_init(checked.get(), SSL_CTX_get_cert_store(context.get()),
                                SSL_CTX_get0_certificate(context.get()), chain),
            1);
  EXPECT_EQ(X509_STORE_CTX_set_default(checked.get(), purpose), 1);
  X509_VERIFY_PARAM* const rules = X509_STORE_CTX_get0_param(checked.get());
  if (host != nullptr) X509_VERIFY_PARAM_set1_host(rules, host, 0);
  if (ip != nullptr) X509_VERIFY_PARAM_set1_ip_asc(rules, ip);
  X509_verify_cert(checked.get());
  return X509_STORE_CTX_get_error(checked.get());
}

class Certificates : public testing::Test {
 protected:
  const std::string folder_ =
      absl::StrCat(testing::TempDir(), "/gradclip_certificates.", absl::ToUnixNanos(absl::Now()));
  TestAuthority authority_{folder_, "first"};
  TestAuthority other_{folder_, "other"};

  ~Certificates() override { std::filesystem::remove_all(folder_); }
};

TEST_F(Certificates, AreForTheNamesAskedFor) {
  CertificateRequest request;
  request.dns_names = {"localhost", "trainer.example"};
  request.ip_addresses = {"127.0.0.1", "::1"};
  const CertificateFiles files = authority_.Issue(request);
  EXPECT_TRUE(Matches(files.cert, files.key));
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert), X509_V_OK);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert, "trainer.example"), X509_V_OK);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert, nullptr, "::1"), X509_V_OK);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert, "elsewhere.example"),
            X509_V_ERR_HOSTNAME_MISMATCH);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert, nullptr, "127.0.0.2"),
            X509_V_ERR_IP_ADDRESS_MISMATCH);
}

TEST_F(Certificates, AreTheirAuthoritysAlone) {
  const CertificateFiles files = authority_.Issue({});
  const CertificateFiles others = other_.Issue({});
  EXPECT_EQ(Verify(other_.ca_file(), files.cert), X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
  EXPECT_FALSE(Matches(files.cert, others.key));
}

TEST_F(Certificates, AreValidFromWhenUntilWhenAskedFor) {
  CertificateRequest request;
  request.valid_from = absl::Hours(1);
  request.valid_until = absl::Hours(2);
  EXPECT_EQ(Verify(authority_.ca_file(), authority_.Issue(request).cert),
            X509_V_ERR_CERT_NOT_YET_VALID);
  request.valid_from = -absl::Hours(2);
  request.valid_until = -absl::Hours(1);
  EXPECT_EQ(Verify(authority_.ca_file(), authority_.Issue(request).cert),
            X509_V_ERR_CERT_HAS_EXPIRED);
}

TEST_F(Certificates, BringTheIntermediateThatSignedThem) {
  CertificateRequest request;
  request.through_intermediate = true;
  const CertificateFiles files = authority_.Issue(request);
  EXPECT_TRUE(Matches(files.cert, files.key));
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert), X509_V_OK);
}

TEST_F(Certificates, AreForServersOrForClients) {
  CertificateRequest request;
  request.is_client = true;
  const CertificateFiles files = authority_.Issue(request);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert, nullptr, nullptr, "ssl_client"), X509_V_OK);
  EXPECT_EQ(Verify(authority_.ca_file(), files.cert), X509_V_ERR_INVALID_PURPOSE);
}

TEST_F(Certificates, AreWrittenOverOlderOnesOfTheSameStem) {
  CertificateRequest request;
  request.file_stem = "server";
  const CertificateFiles first = authority_.Issue(request);
  const CertificateFiles second = other_.Issue(request);
  EXPECT_EQ(first.cert, second.cert);
  EXPECT_TRUE(Matches(second.cert, second.key));
  EXPECT_EQ(Verify(other_.ca_file(), second.cert), X509_V_OK);
}

}  // namespace
}  // namespace gradclip
