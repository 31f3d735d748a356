// A server with a memory socket, in a folder of its own, and host memory that is registered there.
// Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_
#define GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/server/rpc/server_fixture.h"
#include "tests/server/shm/memfds.h"
#include "tests/server/shm/memory_client.h"

namespace gradclip {

class MemorySocketServer : public ServerTest {
 protected:
  MemorySocketServer() {
    std::string folder = testing::TempDir() + "gradclip-XXXXXX";
    folder_ = mkdtemp(folder.data());
    options_.memory_socket = folder_ / "memory";
    options_.max_shared_bytes = options_.max_shared_bytes_per_peer = options_.memory_budget;
  }
  ~MemorySocketServer() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  const std::string& socket() const { return options_.memory_socket; }

  std::filesystem::path folder_;
};

// A request with `length` bytes of a region, from `offset` on.
template <typename Request>
Request RangesOf(const RegionToken& region, uint64_t offset, uint64_t length) {
  Request request;
  request.mutable_shared()->set_region(
      std::string(reinterpret_cast<const char*>(region.data()), region.size()));
  request.mutable_shared()->add_offset(offset);
  request.mutable_shared()->add_length(length);
  return request;
}

// A client's memory, mapped and registered over a connection of its own.
class Shared : public MappedMemfd {
 public:
  Shared(const std::string& socket, uint64_t bytes, uint16_t flags = 0)
      : MappedMemfd(bytes), connection_(socket) {
    const auto answer = connection_.Register(memfd(), size(), flags);
    EXPECT_TRUE(answer.has_value() && answer->code == absl::StatusCode::kOk);
    if (answer.has_value()) token_ = answer->token;
  }

  template <typename Request = v1::ClipGradNormRequest>
  Request Ranges(uint64_t offset, uint64_t length) const {
    return RangesOf<Request>(token_, offset, length);
  }
  void Close() { connection_.Close(); }

 private:
  MemoryClient connection_;
  RegionToken token_{};
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_
