// Bytes of small files for the tests, and reading and writing whole ones. Pure functions.
#ifndef GRADCLIP_TESTS_CLIENT_FILES_FILE_BYTES_H_
#define GRADCLIP_TESTS_CLIENT_FILES_FILE_BYTES_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

namespace gradclip {

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A little-endian number of `size` bytes.
inline std::string LittleEndian(uint64_t number, size_t size) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes.push_back(static_cast<char>(number >> (8 * i)));
  return bytes;
}

inline std::string Safetensors(std::string_view header, std::string_view data) {
  return LittleEndian(header.size(), 8).append(header).append(data);
}

inline std::string Npy(int major, std::string_view header, std::string_view data) {
  std::string bytes = "\x93NUMPY";
  bytes.push_back(static_cast<char>(major));
  bytes.push_back('\0');
  return bytes.append(LittleEndian(header.size(), major == 1 ? 2 : 4)).append(header).append(data);
}

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.flush().good()) << path;
}

// A folder of one test's own, removed at its end.
class Folder {
 public:
  Folder() {
    std::string name = ::testing::TempDir() + "/gradclip-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(std::string_view name) const { return path_ / name; }

  // How many entries it has, hidden ones included.
  size_t entries() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_),
                                             std::filesystem::directory_iterator()));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_FILES_FILE_BYTES_H_
