// A client of the memory socket that can do everything wrong. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_SHM_MEMORY_CLIENT_H_
#define GRADCLIP_TESTS_SERVER_SHM_MEMORY_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/net/file_descriptor.h"
#include "server/shm/registration.h"

namespace gradclip {

// The bytes of a registration that is right but for what is changed.
std::string RegistrationBytes(uint64_t length, uint16_t flags = 0);
std::string RegistrationBytes(const Registration& registration);

// Sends bytes and descriptors in one message. False: the peer has closed.
bool SendMessage(int socket, std::string_view bytes, std::span<const int> descriptors = {});

class MemoryClient {
 public:
  struct Answer {
    absl::StatusCode code;
    std::string message;
    RegionToken token;
  };

  explicit MemoryClient(const std::string& path);
  // With a socket that was made before.
  MemoryClient(const std::string& path, FileDescriptor unconnected);

  bool Send(std::string_view bytes, std::vector<int> descriptors = {});
  // Waits for a whole answer; none where the connection ends before.
  std::optional<Answer> Receive();
  // Sends a right registration and waits for its answer.
  std::optional<Answer> Register(const FileDescriptor& memfd, uint64_t length, uint16_t flags = 0);
  // Whether the server has taken all that was sent.
  bool IsTaken() const;
  // Waits for the end of the connection, where nothing else comes before.
  bool AwaitEnd();
  void Close() { socket_ = FileDescriptor(); }

  int socket() const { return socket_.get(); }

 private:
  // False: it ended before.
  bool ReceiveExactly(char* bytes, size_t count);

  FileDescriptor socket_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SHM_MEMORY_CLIENT_H_
