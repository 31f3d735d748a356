#include "client/gradclip/tls_session.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace gradclip {
namespace {

// As for connecting.
constexpr absl::Duration kHandshakeTimeout = absl::Seconds(20);

// The types of record that a server's first may be.
constexpr unsigned char kAlertRecord = 21;
constexpr unsigned char kHandshakeRecord = 22;

// The name that the certificate must have: without an IPv6 address's zone, or a name's last dot.
std::string ExpectedName(const std::string& host, const TlsOptions& options) {
  const std::string& name = options.server_name.empty() ? host : options.server_name;
  if (absl::StrContains(name, ':')) return name.substr(0, name.find('%'));
  return std::string(absl::StripSuffix(name, "."));
}

bool IsAddress(const std::string& name) {
  in6_addr ignored;
  return inet_pton(AF_INET, name.c_str(), &ignored) == 1 ||
         inet_pton(AF_INET6, name.c_str(), &ignored) == 1;
}

// False at the deadline.
bool Await(int socket, short events, absl::Time deadline) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd waited = {.fd = socket, .events = events, .revents = 0};
    if (poll(&waited, 1, static_cast<int>(left / absl::Milliseconds(1)) + 1) > 0) return true;
    if (absl::Now() >= deadline) return false;
  }
}

}  // namespace

TlsSession::TlsSession(int socket, const std::string& host, const TlsOptions& options,
                       TlsContext context)
    : socket_(socket), context_(std::move(context)), session_(SSL_new(context_.get())) {
  facts_.server_name = ExpectedName(host, options);
  facts_.ca_file = options.ca_file;
  facts_.cert_file = options.cert_file;
}

absl::StatusOr<std::unique_ptr<TlsSession>> TlsSession::Open(int socket, const std::string& host,
                                                             const TlsOptions& options,
                                                             TlsContext context,
                                                             absl::Time deadline) {
  std::unique_ptr<TlsSession> opened(new TlsSession(socket, host, options, std::move(context)));
  absl::Status status = opened->SetUp();
  if (status.ok()) status = opened->ShakeHands(deadline);
  if (!status.ok()) return status;
  return opened;
}

absl::Status TlsSession::SetUp() {
  ERR_clear_error();
  BIO* const bio = session_ == nullptr ? nullptr : socket_.MakeBio();
  if (bio == nullptr) {
    return absl::UnavailableError(absl::StrCat("can't set up TLS: ", TakeOpenSslReason()));
  }
  SSL_set_bio(session_.get(), bio, bio);
  SSL_set_app_data(session_.get(), this);
  SSL_set_verify(session_.get(), SSL_VERIFY_PEER, &TlsSession::Verified);
  SSL_set_cert_cb(session_.get(), &TlsSession::CertificateAsked, this);

  const std::string& name = facts_.server_name;
  X509_VERIFY_PARAM* const rules = SSL_get0_param(session_.get());
  bool set = false;
  if (IsAddress(name)) {
    set = X509_VERIFY_PARAM_set1_ip_asc(rules, name.c_str()) == 1;
  } else {
    X509_VERIFY_PARAM_set_hostflags(
        rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    set = X509_VERIFY_PARAM_set1_host(rules, name.data(), name.size()) == 1 &&
          SSL_set_tlsext_host_name(session_.get(), name.c_str()) == 1;
  }
  if (set) return absl::OkStatus();
  ERR_clear_error();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name,
                   "\" can't be the name of a server's certificate; see "
                   "TlsOptions::server_name (--tls-server-name)"));
}

absl::Status TlsSession::ShakeHands(absl::Time deadline) {
  const absl::Time limit = std::min(deadline, absl::Now() + kHandshakeTimeout);
  while (true) {
    ERR_clear_error();
    const int result = SSL_connect(session_.get());
    if (result == 1) break;
    const State state = After(result);
    if (state == State::kOver) return Failure();
    if (Await(socket(), state == State::kWantsRead ? POLLIN : POLLOUT, limit)) continue;
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("no TLS handshake before the call's timeout");
    }
    return absl::UnavailableError(absl::StrCat("the server did not finish the TLS handshake in ",
                                               absl::FormatDuration(kHandshakeTimeout)));
  }
  const unsigned char* protocol = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(session_.get(), &protocol, &size);
  if (absl::string_view(reinterpret_cast<const char*>(protocol), size) != "h2") {
    return absl::UnavailableError(
        "the server speaks TLS but not HTTP/2; check that it is a gradclip-server that listens "
        "there");
  }
  facts_.handshake_done = true;
  return absl::OkStatus();
}

TlsSession::State TlsSession::After(int result) {
  switch (SSL_get_error(session_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return State::kWantsRead;
    case SSL_ERROR_WANT_WRITE:
      return State::kWantsWrite;
    default:
      break;
  }
  if (facts_.error == 0) facts_.error = ERR_peek_error();
  ERR_clear_error();
  const auto first = socket_.first_byte();
  facts_.speaks_tls = !first.has_value() || *first == kAlertRecord || *first == kHandshakeRecord;
  facts_.ended = socket_.ended() || (SSL_get_shutdown(session_.get()) & SSL_RECEIVED_SHUTDOWN) != 0;
  facts_.system_error = socket_.error();
  return State::kOver;
}

TlsSession::Step TlsSession::Read(std::span<char> bytes) {
  ERR_clear_error();
  size_t got = 0;
  const int result = SSL_read_ex(session_.get(), bytes.data(), bytes.size(), &got);
  if (result != 1) return {After(result), 0};
  facts_.received = true;
  return {State::kMoved, got};
}

TlsSession::Step TlsSession::Write(std::span<const char> bytes) {
  ERR_clear_error();
  size_t sent = 0;
  const int result = SSL_write_ex(session_.get(), bytes.data(), bytes.size(), &sent);
  if (result != 1) return {After(result), 0};
  return {State::kMoved, sent};
}

void TlsSession::SayGoodbye() {
  ERR_clear_error();
  SSL_shutdown(session_.get());
  ERR_clear_error();
}

// Called for each certificate of the server's chain, and for each fault that is found.
int TlsSession::Verified(int preverified, X509_STORE_CTX* store) {
  if (preverified == 1) return 1;
  auto* const session =
      static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  auto& self = *static_cast<TlsSession*>(SSL_get_app_data(session));
  self.facts_.refusal = RefusalText(X509_STORE_CTX_get_error(store),
                                    X509_STORE_CTX_get_current_cert(store), self.facts_);
  return 0;
}

// Called where the server asks for the client's certificate.
int TlsSession::CertificateAsked(SSL*, void* self) {
  static_cast<TlsSession*>(self)->facts_.asked_for_certificate = true;
  return 1;
}

}  // namespace gradclip
