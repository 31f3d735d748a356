// The example of server/shm/PROTOCOL.md, as it stands there.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/server/shm/memory_socket_fixture.h"

namespace gradclip {
namespace {

std::string ReadFile(const std::filesystem::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The document's block of Python.
std::string Example() {
  const std::string document = ReadFile(GRADCLIP_PROTOCOL);
  const std::string open = "```python\n";
  const size_t begin = document.find(open);
  if (begin == std::string::npos) return "";
  const size_t end = document.find("```", begin + open.size());
  return document.substr(begin + open.size(), end - begin - open.size());
}

TEST_F(MemorySocketTest, TheDocumentsExampleRegistersMemory) {
  if (system("python3 -c 'import socket, fcntl; socket.send_fds, fcntl.F_SEAL_SHRINK'") != 0) {
    GTEST_SKIP() << "no python3 of at least version 3.9";
  }
  Listen();
  ASSERT_NE(Example(), "");
  const std::filesystem::path script = folder_ / "example.py";
  // It ends when it is told to, so that what it has registered can be looked at.
  std::ofstream(script) << Example() << "\nprint(token.hex(), flush=True)\ninput()\n";
  const std::string command = "python3 " + script.string() + " " + options_.path + " > " +
                              (folder_ / "out").string() + " 2>&1";
  FILE* const python = popen(command.c_str(), "w");
  ASSERT_NE(python, nullptr);
  EXPECT_TRUE(Await([&] { return ReadFile(folder_ / "out").find('\n') != std::string::npos; }));

  const std::string out = ReadFile(folder_ / "out");
  RegionToken token{};
  ASSERT_GE(out.size(), 2 * token.size()) << out;
  for (size_t i = 0; i < token.size(); ++i) {
    unsigned value = 0;
    ASSERT_EQ(sscanf(out.c_str() + 2 * i, "%2x", &value), 1) << out;
    token[i] = static_cast<std::byte>(value);
  }
  std::shared_ptr<Region> region = registry_->Find(token);
  ASSERT_NE(region, nullptr) << out;
  // A gradient of four floats, 3, 4, 0 and 0, at its start.
  EXPECT_EQ(region->size(), kMiB);
  float gradient[4];
  memcpy(gradient, region->data(), sizeof(gradient));
  EXPECT_THAT(gradient, testing::ElementsAre(3, 4, 0, 0));
  region.reset();

  fputs("\n", python);
  EXPECT_EQ(pclose(python), 0) << out;
  EXPECT_TRUE(AwaitConnections(0));
}

}  // namespace
}  // namespace gradclip
