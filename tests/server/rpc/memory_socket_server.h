// A server with a memory socket, in a folder of its own. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_
#define GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/server/rpc/server_fixture.h"

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

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_RPC_MEMORY_SOCKET_SERVER_H_
