// The memory of the emulated devices and what host memory they may touch. Device memory lies in
// pages of a memory file that nobody can touch unless a kernel or copy runs, each allocation
// between pages that stay closed. Not thread-safe.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_MEMORY_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace gradclip::emulated_cuda {

enum class Space {
  kDevice,
  kPinned,
  // Host memory that somebody else allocated, registered.
  kRegistered,
  // Device memory that another allocation owns, opened by its IPC handle.
  kMapped,
};

struct Region {
  Space space = Space::kDevice;
  char* base = nullptr;
  size_t bytes = 0;
  // Where device memory lies; for host memory, the device that was current.
  int device = 0;
  // The device whose kernels reach device memory at this address.
  int user = 0;
  // Times that kMapped was opened and not closed.
  size_t references = 0;
  bool open = false;
  char* pages = nullptr;
  size_t page_bytes = 0;
  // The memory file that device memory lies in, by its number in the file system, and where there.
  uint64_t inode = 0;
  uint64_t file_offset = 0;
};

// Device memory as another process finds it; a cudaIpcMemHandle_t holds it.
struct Exported {
  int32_t process = 0;
  // Its descriptor of the memory file.
  int32_t file = 0;
  uint64_t inode = 0;
  uint64_t file_offset = 0;
  uint64_t bytes = 0;
  int32_t device = 0;
};

class Memory {
 public:
  explicit Memory(size_t devices);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Region& AllocateDevice(int device, size_t bytes);
  Region& AllocatePinned(int device, size_t bytes);
  Region& Register(int device, void* memory, size_t bytes);
  Exported Export(const Region& region) const;
  // Another address of device memory of this or another process, or the one that the user has
  // already; nullptr where there is no such memory. REQUIRES: a device that there is, and bytes
  // that it has.
  Region* Map(const Exported& exported, int user);
  void Free(Region& region);

  // The region that the address lies in, or nullptr.
  Region* Find(const void* address);
  // Whether a region has any of these bytes.
  bool Overlaps(const void* address, size_t bytes) const;

  // Lets all device memory of this user be touched, and no other device memory.
  void OpenFor(int user);
  void Open(Region& region);
  void CloseAll();

  // What was written around an allocation, within its pages; empty if nothing. AddressSanitizer
  // sees such a write when it happens.
  std::string FindOverrun() const;

  size_t device_bytes(int device) const { return device_bytes_[static_cast<size_t>(device)]; }
  const std::map<uintptr_t, Region>& regions() const { return regions_; }

 private:
  Region& Place(Region region, int file);
  Region& Insert(Region region);
  // The one of this space at this user, or nullptr.
  Region* Find(Space space, const Exported& exported, int user);
  void MarkSurroundings(const Region& region);

  std::map<uintptr_t, Region> regions_;
  std::vector<int> files_;
  std::vector<uint64_t> inodes_;
  std::vector<uint64_t> file_bytes_;
  std::vector<size_t> device_bytes_;
  // Addresses are not used again before the end, so that a use after a free ends the process.
  std::vector<std::pair<char*, size_t>> reservations_;
};

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_MEMORY_H_
