// Memory that another process may be given: a sealed memfd, mapped here. Thread-safe but for
// moving; the memory itself is the callers'.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SHARED_MEMORY_H_
#define GRADCLIP_CLIENT_GRADCLIP_SHARED_MEMORY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace gradclip {

class SharedMemory {
 public:
  // `bytes` of zeros, on huge pages where the system gives them for memfds. 0 bytes: no memory.
  // RESOURCE_EXHAUSTED with the system's reason where there is not as much.
  static absl::StatusOr<SharedMemory> Create(uint64_t bytes);

  // All of a memfd of the caller's, which stays the caller's: this keeps a descriptor of its own.
  // The seals that are missing are set, so that its size is final. INVALID_ARGUMENT, saying what
  // to do, where it is no memfd or can't be sealed or written.
  static absl::StatusOr<SharedMemory> Adopt(int memfd);

  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&&) = delete;

  int memfd() const { return memfd_; }       // -1 where there is no memory
  std::byte* data() const { return data_; }  // null where there is no memory
  uint64_t size() const { return size_; }

 private:
  SharedMemory(int memfd, uint64_t size) : memfd_(memfd), size_(size) {}
  absl::Status Map();

  int memfd_ = -1;
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SHARED_MEMORY_H_
