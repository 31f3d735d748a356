// What tests of shared memory need: memfds, and counts of what this process has open and mapped.
#ifndef GRADCLIP_TESTS_SERVER_SHM_MEMFDS_H_
#define GRADCLIP_TESTS_SERVER_SHM_MEMFDS_H_

#include <fcntl.h>
#include <sys/mman.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>

#include "server/net/file_descriptor.h"

namespace gradclip {

inline constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;

uint64_t PageBytes();

// A memfd of `bytes` zeros, of which none has a page yet.
FileDescriptor MakeMemfd(uint64_t bytes, int seals = kNeededSeals);

// Writes `value` to all bytes.
void Fill(const FileDescriptor& memfd, unsigned char value);
// Takes the pages away, all or some.
void PunchHole(const FileDescriptor& memfd, uint64_t offset, uint64_t bytes);
// Whether all bytes are `value`.
bool IsFilled(const std::byte* data, uint64_t bytes, unsigned char value);

// A memfd of whole pages for `bytes`, mapped to be written. Not thread-safe.
class MappedMemfd {
 public:
  explicit MappedMemfd(uint64_t bytes);
  ~MappedMemfd();
  MappedMemfd(const MappedMemfd&) = delete;
  MappedMemfd& operator=(const MappedMemfd&) = delete;

  const FileDescriptor& memfd() const { return memfd_; }
  uint64_t size() const { return size_; }
  void Write(uint64_t offset, std::string_view bytes);
  std::string Read(uint64_t offset, uint64_t bytes) const { return {data_ + offset, bytes}; }

 private:
  const uint64_t size_;
  const FileDescriptor memfd_;
  char* const data_;
};

size_t OpenDescriptors();
// Of memory made by MakeMemfd().
size_t MemfdMappings();

// Until `condition` holds or, where something is wrong, half a minute has passed.
template <typename Condition>
[[nodiscard]] bool Await(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SHM_MEMFDS_H_
