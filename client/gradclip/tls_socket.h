// A socket under OpenSSL that raises no SIGPIPE, which OpenSSL's own would in the user's process,
// and that remembers what it met: OpenSSL's errors do not always say.
//
// Not thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TLS_SOCKET_H_
#define GRADCLIP_CLIENT_GRADCLIP_TLS_SOCKET_H_

#include <openssl/bio.h>

#include <optional>

namespace gradclip {

class TlsSocket {
 public:
  // Takes `socket`, which is non-blocking.
  explicit TlsSocket(int socket) : socket_(socket) {}
  ~TlsSocket();
  TlsSocket(const TlsSocket&) = delete;
  TlsSocket& operator=(const TlsSocket&) = delete;

  // For SSL_set_bio(); null where memory is out. The socket has to outlive it.
  BIO* MakeBio();

  int descriptor() const { return socket_; }
  std::optional<unsigned char> first_byte() const { return first_byte_; }  // of what came
  bool ended() const { return ended_; }  // the other side sends no more
  int error() const { return error_; }   // the system's, of the last operation that failed for good

 private:
  static int Write(BIO* bio, const char* bytes, int size);
  static int Read(BIO* bio, char* bytes, int size);
  static long Control(BIO* bio, int command, long number, void* pointer);

  const int socket_;
  std::optional<unsigned char> first_byte_;
  bool ended_ = false;
  int error_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TLS_SOCKET_H_
