#include "tests/tls/certificates.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

template <auto kFree>
struct Free {
  template <typename Object>
  void operator()(Object* object) const {
    kFree(object);
  }
};
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;

void Require(bool done, const char* what) {
  if (done) return;
  char reason[256];
  ERR_error_string_n(ERR_get_error(), reason, sizeof(reason));
  throw std::runtime_error(absl::StrCat(what, ": ", reason));
}

void SetName(X509_NAME* name, const std::string& common_name) {
  Require(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                     reinterpret_cast<const unsigned char*>(common_name.c_str()),
                                     -1, -1, 0) == 1,
          "a name");
}

void Extend(X509* certificate, X509* issuer, int extension, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>> made(
      X509V3_EXT_conf_nid(nullptr, &context, extension, value.c_str()));
  Require(made != nullptr, value.c_str());
  Require(X509_add_ext(certificate, made.get(), -1) == 1, value.c_str());
}

std::string AlternativeNames(const CertificateRequest& request) {
  std::string names;
  for (const std::string& name : request.dns_names) {
    absl::StrAppend(&names, names.empty() ? "" : ",", "DNS:", name);
  }
  for (const std::string& address : request.ip_addresses) {
    absl::StrAppend(&names, names.empty() ? "" : ",", "IP:", address);
  }
  return names;
}

std::string Text(BIO* bio) {
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(bio, &bytes);
  return std::string(bytes, static_cast<size_t>(size));
}

std::string Pem(X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  Require(PEM_write_bio_X509(bio.get(), certificate) == 1, "writing a certificate");
  return Text(bio.get());
}

std::string Pem(EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  Require(PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1,
          "writing a key");
  return Text(bio.get());
}

// In one step, so that no reader sees half a file.
void WriteFile(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  {
    std::ofstream file(fresh, std::ios::binary | std::ios::trunc);
    if (!(file << text).flush()) throw std::runtime_error("can't write " + fresh);
  }
  std::filesystem::rename(fresh, path);
}

}  // namespace

struct TestAuthority::Signer {
  // Signed by `issuer`; by itself where that is null.
  Signer(const Signer* issuer, const CertificateRequest& request, bool is_authority)
      : key(EVP_EC_gen("P-256")), certificate(X509_new()) {
    Require(key != nullptr && certificate != nullptr, "a key");
    X509* const made = certificate.get();
    X509* const signer = issuer == nullptr ? made : issuer->certificate.get();
    uint32_t serial = 0;
    Require(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) == 1, "a number");
    Require(X509_set_version(made, 2) == 1, "the version");  // which means 3
    Require(ASN1_INTEGER_set_uint64(X509_get_serialNumber(made), uint64_t{serial} + 1) == 1,
            "the number");
    const long from = absl::ToInt64Seconds(request.valid_from);
    const long until = absl::ToInt64Seconds(request.valid_until);
    Require(X509_gmtime_adj(X509_getm_notBefore(made), from) != nullptr, "the time");
    Require(X509_gmtime_adj(X509_getm_notAfter(made), until) != nullptr, "the time");
    SetName(X509_get_subject_name(made), request.common_name);
    Require(X509_set_issuer_name(made, X509_get_subject_name(signer)) == 1, "the issuer");
    Require(X509_set_pubkey(made, key.get()) == 1, "the key");

    Extend(made, signer, NID_basic_constraints, is_authority ? "critical,CA:TRUE" : "CA:FALSE");
    Extend(made, signer, NID_key_usage,
           is_authority ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature");
    Extend(made, signer, NID_subject_key_identifier, "hash");
    Extend(made, signer, NID_authority_key_identifier, "keyid");
    if (!is_authority) {
      Extend(made, signer, NID_ext_key_usage, request.is_client ? "clientAuth" : "serverAuth");
      const std::string names = AlternativeNames(request);
      if (!names.empty()) Extend(made, signer, NID_subject_alt_name, names);
    }
    EVP_PKEY* const signing_key = issuer == nullptr ? key.get() : issuer->key.get();
    Require(X509_sign(made, signing_key, EVP_sha256()) > 0, "signing");
  }

  const Key key;
  const Certificate certificate;
};

TestAuthority::TestAuthority(std::string folder, std::string name)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      ca_file_(absl::StrCat(folder_, "/", name_, "-ca.pem")) {
  std::filesystem::create_directories(folder_);
  CertificateRequest request;
  request.valid_from = -absl::Hours(24 * 365);
  request.valid_until = absl::Hours(24 * 365);
  request.common_name = absl::StrCat(name_, " root");
  root_ = std::make_unique<Signer>(nullptr, request, /*is_authority=*/true);
  request.common_name = absl::StrCat(name_, " intermediate");
  intermediate_ = std::make_unique<Signer>(root_.get(), request, /*is_authority=*/true);
  WriteFile(ca_file_, Pem(root_->certificate.get()));
}

TestAuthority::~TestAuthority() = default;

CertificateFiles TestAuthority::Issue(const CertificateRequest& request) {
  const Signer& issuer = request.through_intermediate ? *intermediate_ : *root_;
  const Signer leaf(&issuer, request, /*is_authority=*/false);
  const std::string stem =
      request.file_stem.empty() ? absl::StrCat(name_, "-", ++issued_) : request.file_stem;
  const CertificateFiles files = {.cert = absl::StrCat(folder_, "/", stem, ".crt"),
                                  .key = absl::StrCat(folder_, "/", stem, ".key")};
  WriteFile(files.cert,
            absl::StrCat(Pem(leaf.certificate.get()), request.through_intermediate
                                                          ? Pem(intermediate_->certificate.get())
                                                          : std::string()));
  WriteFile(files.key, Pem(leaf.key.get()));
  return files;
}

}  // namespace gradclip
