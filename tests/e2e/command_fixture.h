// A running server, the command against it, and a folder of the test's own.
#ifndef GRADCLIP_TESTS_E2E_COMMAND_FIXTURE_H_
#define GRADCLIP_TESTS_E2E_COMMAND_FIXTURE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/client/files/file_bytes.h"
#include "tests/e2e/process.h"

namespace gradclip {

inline const std::string kGradients = GRADCLIP_TEST_DATA "/gradients/";

class Command : public testing::Test {
 protected:
  // shares: the server has a memory socket, in the folder.
  explicit Command(bool shares = false)
      : server_(shares ? std::vector<std::string>{"--memory-socket=" + memory_socket()}
                       : std::vector<std::string>()) {}

  struct Ran {
    int status = 0;
    std::string out;
    std::string err;
  };

  // The verb is the first argument; the server's address is added.
  std::vector<std::string> WithServer(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin() + 1, {"--server", server_.address()});
    return arguments;
  }

  Ran Run(const std::vector<std::string>& arguments) const {
    Process process("gradclip", WithServer(arguments));
    Ran ran;
    ran.status = process.Wait();
    ran.out = process.out();
    ran.err = process.err();
    return ran;
  }

  std::string memory_socket() const { return folder_ / "memory"; }

  std::string Out(const std::string& name) const { return folder_ / name; }

  const Folder folder_;
  ServerProcess server_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_E2E_COMMAND_FIXTURE_H_
