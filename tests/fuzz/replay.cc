// Runs a fuzz target over every file of the folders it is given, and over prefixes and bit flips of
// each: what CI does with the corpus where there is no libFuzzer.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void Run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  int files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream file(entry.path(), std::ios::binary);
      std::string input{std::istreambuf_iterator<char>(file), {}};
      ++files;
      Run(input);
      for (size_t at = 0; at < input.size(); at += 1 + input.size() / 256) {
        Run(input.substr(0, at));
        for (int bit = 0; bit < 8; ++bit) {
          input[at] = static_cast<char>(input[at] ^ 1 << bit);
          Run(input);
          input[at] = static_cast<char>(input[at] ^ 1 << bit);
        }
      }
    }
  }
  std::printf("%d files replayed, each with its prefixes and bit flips\n", files);
  return files > 0 ? 0 : 1;
}
