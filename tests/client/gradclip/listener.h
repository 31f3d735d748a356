#ifndef GRADCLIP_TESTS_CLIENT_GRADCLIP_LISTENER_H_
#define GRADCLIP_TESTS_CLIENT_GRADCLIP_LISTENER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace gradclip {

// Listens on a free port of the loopback interface; who connects waits for Accept(). Thread-safe.
class Listener {
 public:
  Listener() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address_), sizeof(address_)), 0);
    EXPECT_EQ(listen(socket_, 16), 0);
    socklen_t size = sizeof(address_);
    EXPECT_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&address_), &size), 0);
  }
  ~Listener() { close(socket_); }

  int Accept() const { return accept(socket_, nullptr, nullptr); }  // negative once it is shut down
  void Shutdown() const { shutdown(socket_, SHUT_RDWR); }
  int socket() const { return socket_; }
  uint16_t port() const { return ntohs(address_.sin_port); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port()); }

 private:
  const int socket_;
  sockaddr_in address_ = {};
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_GRADCLIP_LISTENER_H_
