#include "client/gradclip/tls_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace gradclip {

TlsSocket::~TlsSocket() {
  close(socket_);
}

BIO* TlsSocket::MakeBio() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* const made =
        BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "gradclip socket");
    if (made != nullptr) {
      BIO_meth_set_write(made, &TlsSocket::Write);
      BIO_meth_set_read(made, &TlsSocket::Read);
      BIO_meth_set_ctrl(made, &TlsSocket::Control);
    }
    return made;
  }();
  BIO* const bio = method == nullptr ? nullptr : BIO_new(method);
  if (bio == nullptr) return nullptr;
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  return bio;
}

int TlsSocket::Write(BIO* bio, const char* bytes, int size) {
  auto& self = *static_cast<TlsSocket*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const ssize_t sent = send(self.socket_, bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (sent >= 0) return static_cast<int>(sent);
  if (errno == EAGAIN || errno == EINTR) {
    BIO_set_retry_write(bio);
  } else {
    self.error_ = errno;
  }
  return -1;
}

int TlsSocket::Read(BIO* bio, char* bytes, int size) {
  auto& self = *static_cast<TlsSocket*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const ssize_t got = recv(self.socket_, bytes, static_cast<size_t>(size), 0);
  if (got > 0) {
    if (!self.first_byte_.has_value()) self.first_byte_ = static_cast<unsigned char>(*bytes);
    return static_cast<int>(got);
  }
  if (got == 0) {
    self.ended_ = true;
    return 0;
  }
  if (errno == EAGAIN || errno == EINTR) {
    BIO_set_retry_read(bio);
  } else {
    self.error_ = errno;
  }
  return -1;
}

long TlsSocket::Control(BIO*, int command, long, void*) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

}  // namespace gradclip
