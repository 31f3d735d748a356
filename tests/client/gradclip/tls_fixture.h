// For tests of the client's TLS: authorities, servers with certificates of theirs, and a server
// that speaks TLS and nothing else.
#ifndef GRADCLIP_TESTS_CLIENT_GRADCLIP_TLS_FIXTURE_H_
#define GRADCLIP_TESTS_CLIENT_GRADCLIP_TLS_FIXTURE_H_

#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/client/files/file_bytes.h"
#include "tests/client/gradclip/fake_server.h"
#include "tests/client/gradclip/listener.h"
#include "tests/tls/certificates.h"

namespace gradclip {

// A FakeServer's, with its certificate; with `client_ca` it demands the client's.
inline std::shared_ptr<grpc::ServerCredentials> Credentials(const CertificateFiles& files,
                                                            const std::string& client_ca = "") {
  grpc::SslServerCredentialsOptions options(
      client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                        : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_key_cert_pairs.push_back({ReadFile(files.key), ReadFile(files.cert)});
  if (!client_ca.empty()) options.pem_root_certs = ReadFile(client_ca);
  return grpc::SslServerCredentials(options);
}

// Accepts connections on the loopback interface, one after another, and does `serve` with each; its
// thread is the test's to end, by ending `serve`.
class LoopbackServer {
 public:
  explicit LoopbackServer(std::function<void(int socket)> serve) {
    thread_ = std::thread([this, serve = std::move(serve)] {
      // OpenSSL's own sockets raise it; that the client's do not is for the tests to see.
      sigset_t pipe;
      sigemptyset(&pipe);
      sigaddset(&pipe, SIGPIPE);
      pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
      for (int one = 0; (one = listener_.Accept()) >= 0;) {
        serve(one);
        close(one);
      }
    });
  }
  ~LoopbackServer() {
    listener_.Shutdown();
    thread_.join();
  }
  std::string address() const { return listener_.address(); }

 private:
  const Listener listener_;
  std::thread thread_;
};

// What a server may do over TLS that is no gRPC: `serve` gets the session once hands are shaken.
// `prepare` may change how.
inline std::function<void(int)> OverTls(const CertificateFiles& files,
                                        std::function<void(SSL*)> serve,
                                        std::function<void(SSL_CTX*)> prepare = nullptr) {
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  EXPECT_EQ(SSL_CTX_use_certificate_chain_file(context.get(), files.cert.c_str()), 1);
  EXPECT_EQ(SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM), 1);
  const auto choose_http2 = [](SSL*, const unsigned char** chosen, unsigned char* size,
                               const unsigned char* offered, unsigned int, void*) {
    *size = *offered;
    *chosen = offered + 1;
    return SSL_TLSEXT_ERR_OK;
  };
  SSL_CTX_set_alpn_select_cb(context.get(), choose_http2, nullptr);
  if (prepare) prepare(context.get());
  return [context, serve = std::move(serve)](int socket) {
    const std::unique_ptr<SSL, decltype(&SSL_free)> session(SSL_new(context.get()), &SSL_free);
    SSL_set_fd(session.get(), socket);
    if (SSL_accept(session.get()) == 1) serve(session.get());
  };
}

// Waits until the other side is gone.
inline void AwaitClosed(int socket) {
  char bytes[4096];
  while (recv(socket, bytes, sizeof(bytes), 0) > 0) {
  }
}

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    good_.dns_names = {"localhost", "gradclip.example"};
    good_.ip_addresses = {"127.0.0.1"};
  }
  ~TlsTest() override { std::filesystem::remove_all(folder_); }

  // Trusts authority_.
  TlsOptions Trusting() const {
    TlsOptions tls;
    tls.ca_file = authority_.ca_file();
    return tls;
  }

  static ClientOptions With(const TlsOptions& tls, int max_retries = 0) {
    ClientOptions options;
    options.tls = tls;
    options.max_retries = max_retries;
    options.initial_backoff = absl::Milliseconds(1);
    return options;
  }

  // What a client that trusts authority_ gets from a server with this certificate.
  absl::Status HealthOf(const CertificateRequest& request, const std::string& host = "127.0.0.1") {
    FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(request)));
    Client client(absl::StrCat(host, ":", server.port()), With(Trusting()));
    return client.CheckHealth();
  }

  const std::string folder_ = absl::StrCat(testing::TempDir(), "/gradclip_tls.", getpid());
  TestAuthority authority_{folder_, "authority"};
  TestAuthority other_{folder_, "other"};
  CertificateRequest good_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_GRADCLIP_TLS_FIXTURE_H_
