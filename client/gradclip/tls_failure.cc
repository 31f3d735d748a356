#include "client/gradclip/tls_failure.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

// How many of a certificate's names a message lists.
constexpr size_t kMostNames = 8;

std::string TimeText(const ASN1_TIME* time) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), &BIO_free);
  if (bio == nullptr || ASN1_TIME_print(bio.get(), time) != 1) return "an unreadable time";
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &bytes);
  return std::string(bytes, static_cast<size_t>(size));
}

std::string Octets(const ASN1_STRING* text) {
  return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                     static_cast<size_t>(ASN1_STRING_length(text)));
}

// The names that a certificate is for, each in quotes.
std::string Names(const X509* certificate) {
  const std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)> all(
      static_cast<GENERAL_NAMES*>(
          X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)),
      &GENERAL_NAMES_free);
  std::vector<std::string> names;
  const int count = all == nullptr ? 0 : sk_GENERAL_NAME_num(all.get());
  for (int i = 0; i < count && names.size() < kMostNames; ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(all.get(), i);
    std::string text;
    if (name->type == GEN_DNS) {
      text = absl::CHexEscape(Octets(name->d.dNSName));
    } else if (name->type == GEN_IPADD) {
      const std::string bytes = Octets(name->d.iPAddress);
      char printed[INET6_ADDRSTRLEN] = {};
      if (bytes.size() == 4) inet_ntop(AF_INET, bytes.data(), printed, sizeof(printed));
      if (bytes.size() == 16) inet_ntop(AF_INET6, bytes.data(), printed, sizeof(printed));
      text = printed;
    }
    if (!text.empty()) names.push_back(absl::StrCat("\"", text, "\""));
  }
  if (names.empty()) return "no name (the common name does not count)";
  return absl::StrCat(absl::StrJoin(names, ", "),
                      static_cast<size_t>(count) > kMostNames ? " and more" : "");
}

// The alert that the server sent, as "unknown ca"; empty where the error is none.
std::string AlertText(unsigned long error) {
  if (ERR_GET_LIB(error) != ERR_LIB_SSL || ERR_GET_REASON(error) <= SSL_AD_REASON_OFFSET) return "";
  const char* const reason = ERR_reason_error_string(error);
  if (reason == nullptr)
    return absl::StrCat("alert ", ERR_GET_REASON(error) - SSL_AD_REASON_OFFSET);
  const absl::string_view text = reason;  // "tlsv1 alert unknown ca"
  constexpr absl::string_view kBefore = "alert ";
  const size_t at = text.find(kBefore);
  return std::string(at == absl::string_view::npos ? text : text.substr(at + kBefore.size()));
}

// Of those alerts by which a server refuses a certificate. handshake_failure is TLS 1.2's for none.
bool RefusesCertificate(int alert) {
  return (alert >= SSL_AD_NO_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
         alert == SSL_AD_HANDSHAKE_FAILURE || alert == SSL_AD_UNKNOWN_CA ||
         alert == SSL_AD_ACCESS_DENIED || alert == SSL_AD_CERTIFICATE_REQUIRED;
}

absl::Status ClientCertificateRefused(const TlsFacts& facts, const std::string& alert) {
  if (facts.cert_file.empty()) {
    return absl::UnauthenticatedError(
        "the server wants a certificate of the client; set TlsOptions::cert_file and key_file "
        "(--tls-cert, --tls-key)");
  }
  return absl::UnauthenticatedError(absl::StrCat(
      "the server ",
      alert.empty() ? "closed the connection on" : absl::StrCat("refused (", alert, ")"),
      " the client's certificate, TlsOptions::cert_file (--tls-cert) \"", facts.cert_file,
      "\"; check that it is valid, for clients, and of an authority that the server trusts"));
}

}  // namespace

std::string RefusalText(int verify_error, const X509* certificate, const TlsFacts& facts) {
  const std::string authorities =
      facts.ca_file.empty()
          ? "the system's authorities do not vouch for it; name the file of the one that does: "
            "TlsOptions::ca_file (--tls-ca)"
          : absl::StrCat("check that TlsOptions::ca_file (--tls-ca) \"", facts.ca_file,
                         "\" holds the authority that issued it");
  switch (verify_error) {
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return absl::StrCat("it is for ", Names(certificate), ", not for \"", facts.server_name,
                          "\"; the name comes from the address or TlsOptions::server_name "
                          "(--tls-server-name)");
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return absl::StrCat("certificate has expired, on ", TimeText(X509_get0_notAfter(certificate)),
                          "; it has to be renewed, where this machine's clock is right");
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return absl::StrCat("certificate is not yet valid, before ",
                          TimeText(X509_get0_notBefore(certificate)),
                          "; check this machine's clock");
    default:
      return absl::StrCat(X509_verify_cert_error_string(verify_error), "; ", authorities);
  }
}

absl::Status TlsFailure(const TlsFacts& facts) {
  if (!facts.refusal.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server's certificate is not trusted: ", facts.refusal));
  }
  if (!facts.speaks_tls) {
    return absl::UnavailableError(
        "the server does not speak TLS; check the address, or do without ClientOptions::tls "
        "(--tls)");
  }
  const absl::string_view when = facts.handshake_done ? "the TLS connection" : "the TLS handshake";
  const std::string alert = AlertText(facts.error);
  if (!alert.empty()) {
    const int number = ERR_GET_REASON(facts.error) - SSL_AD_REASON_OFFSET;
    if (facts.asked_for_certificate && !facts.received && RefusesCertificate(number)) {
      return ClientCertificateRefused(facts, alert);
    }
    return absl::UnavailableError(absl::StrCat("the server ended ", when, ": ", alert));
  }
  const bool lost = facts.ended || facts.system_error == ECONNRESET || facts.system_error == EPIPE;
  // Not every server says that it refuses a certificate; gRPC's own do not. That one is stopped
  // just then is rare.
  if (lost && facts.asked_for_certificate && !facts.received) {
    return ClientCertificateRefused(facts, alert);
  }
  if (facts.system_error != 0) {
    return absl::UnavailableError(
        absl::StrCat(when, " was lost: ", std::strerror(facts.system_error)));
  }
  if (facts.ended) {
    if (facts.handshake_done) return absl::OkStatus();
    return absl::UnavailableError(
        "the server closed the connection during the TLS handshake; check that it is a "
        "gradclip-server with TLS that listens there");
  }
  const char* const reason = ERR_reason_error_string(facts.error);
  return absl::UnavailableError(
      absl::StrCat(when, " failed: ", reason != nullptr ? reason : "for no reason that is known"));
}

}  // namespace gradclip
