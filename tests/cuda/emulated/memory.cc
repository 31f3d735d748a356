#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sanitizers.h"

namespace gradclip::emulated_cuda {
namespace {

constexpr size_t kPage = 4096;
// CUDA's allocations start at multiples of it. They end where their last page ends, but for this.
constexpr size_t kAlignment = 256;
constexpr char kSurroundings = static_cast<char>(0xc9);
// What new memory holds, at its start at least: nothing may count on zeros.
constexpr int kGarbage = 0xa5;
constexpr size_t kGarbageBytes = 1 << 20;

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::abort();
}

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void Protect(char* pages, size_t bytes, int protection) {
  if (mprotect(pages, bytes, protection) != 0) Die("emulated CUDA: mprotect");
}

bool InDevice(const Region& region) {
  return region.space == Space::kDevice || region.space == Space::kMapped;
}

// The memory file, or -1 where it is not, or not as large as it has to be: touching it would then
// end the process.
int OpenFile(const Exported& exported, uint64_t page_bytes) {
  const std::string path =
      "/proc/" + std::to_string(exported.process) + "/fd/" + std::to_string(exported.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return -1;
  struct stat status = {};
  const bool found = fstat(file, &status) == 0 && S_ISREG(status.st_mode) &&
                     uint64_t{status.st_ino} == exported.inode;
  const auto size = static_cast<uint64_t>(status.st_size);
  if (found && exported.file_offset <= size && page_bytes <= size - exported.file_offset) {
    return file;
  }
  close(file);
  return -1;
}

bool AllSurroundings(const char* first, const char* last) {
  return std::all_of(first, last, [](char c) { return c == kSurroundings; });
}

}  // namespace

Memory::Memory(size_t devices) : file_bytes_(devices), device_bytes_(devices) {
  for (size_t i = 0; i < devices; ++i) {
    files_.push_back(memfd_create("emulated CUDA device", MFD_CLOEXEC));
    if (files_.back() < 0) Die("emulated CUDA: memfd_create");
    struct stat status = {};
    if (fstat(files_.back(), &status) != 0) Die("emulated CUDA: fstat");
    inodes_.push_back(status.st_ino);
  }
}

Memory::~Memory() {
  for (const auto& [address, region] : regions_) Unpoison(region.pages, region.page_bytes);
  for (const auto& [start, bytes] : reservations_) munmap(start, bytes);
  for (const int file : files_) close(file);
}

Region& Memory::Insert(Region region) {
  const auto address = reinterpret_cast<uintptr_t>(region.base);
  return regions_.emplace(address, region).first->second;
}

// Gives the region its pages, of the file or, where that is -1, of no file.
Region& Memory::Place(Region region, int file) {
  const size_t reserved = region.page_bytes + 2 * kPage;
  void* const start =
      mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) Die("emulated CUDA: mmap");
  reservations_.emplace_back(static_cast<char*>(start), reserved);
  region.pages = static_cast<char*>(start) + kPage;
  if (file < 0) {
    Protect(region.pages, region.page_bytes, PROT_READ | PROT_WRITE);
  } else if (mmap(region.pages, region.page_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file,
                  static_cast<off_t>(region.file_offset)) == MAP_FAILED) {
    Die("emulated CUDA: mmap");
  }
  return Insert([&] {
    region.base = region.pages + (region.space == Space::kPinned
                                      ? 0
                                      : region.page_bytes - RoundUp(region.bytes, kAlignment));
    return region;
  }());
}

void Memory::MarkSurroundings(const Region& region) {
  char* const end = region.base + region.bytes;
  std::memset(region.pages, kSurroundings, static_cast<size_t>(region.base - region.pages));
  std::memset(end, kSurroundings, static_cast<size_t>(region.pages + region.page_bytes - end));
}

Region& Memory::AllocateDevice(int device, size_t bytes) {
  const auto index = static_cast<size_t>(device);
  Region region{.space = Space::kDevice, .bytes = bytes, .device = device, .user = device};
  region.page_bytes = RoundUp(bytes, kPage);
  region.inode = inodes_[index];
  region.file_offset = file_bytes_[index];
  file_bytes_[index] += region.page_bytes;
  if (ftruncate(files_[index], static_cast<off_t>(file_bytes_[index])) != 0) {
    Die("emulated CUDA: ftruncate");
  }
  device_bytes_[index] += RoundUp(bytes, kAlignment);
  Region& placed = Place(region, files_[index]);
  Open(placed);
  MarkSurroundings(placed);
  std::memset(placed.base, kGarbage, std::min(bytes, kGarbageBytes));
  Protect(placed.pages, placed.page_bytes, PROT_NONE);
  placed.open = false;
  Poison(placed.pages, static_cast<size_t>(placed.base - placed.pages));
  Poison(placed.base + bytes,
         static_cast<size_t>(placed.pages + placed.page_bytes - placed.base) - bytes);
  return placed;
}

Region& Memory::AllocatePinned(int device, size_t bytes) {
  Region region{.space = Space::kPinned, .bytes = bytes, .device = device, .user = device};
  region.page_bytes = RoundUp(bytes, kPage);
  Region& placed = Place(region, -1);
  MarkSurroundings(placed);
  std::memset(placed.base, kGarbage, std::min(bytes, kGarbageBytes));
  Poison(placed.base + bytes, placed.page_bytes - bytes);
  return placed;
}

Region& Memory::Register(int device, void* memory, size_t bytes) {
  return Insert({.space = Space::kRegistered,
                 .base = static_cast<char*>(memory),
                 .bytes = bytes,
                 .device = device,
                 .user = device});
}

Exported Memory::Export(const Region& region) const {
  return {.process = getpid(),
          .file = files_[static_cast<size_t>(region.device)],
          .inode = region.inode,
          .file_offset = region.file_offset,
          .bytes = region.bytes,
          .device = region.device};
}

Region* Memory::Map(const Exported& exported, int user) {
  if (exported.process == getpid() && Find(Space::kDevice, exported, exported.device) == nullptr) {
    return nullptr;  // it was freed
  }
  if (Region* const mapped = Find(Space::kMapped, exported, user)) {
    ++mapped->references;
    return mapped;
  }
  if (exported.file_offset % kPage != 0) return nullptr;
  Region region{.space = Space::kMapped,
                .bytes = exported.bytes,
                .device = exported.device,
                .user = user,
                .references = 1,
                .page_bytes = RoundUp(exported.bytes, kPage),
                .inode = exported.inode,
                .file_offset = exported.file_offset};
  const int file = OpenFile(exported, region.page_bytes);
  if (file < 0) return nullptr;
  Region& placed = Place(region, file);
  close(file);
  Poison(placed.pages, static_cast<size_t>(placed.base - placed.pages));
  Poison(placed.base + placed.bytes,
         static_cast<size_t>(placed.pages + placed.page_bytes - placed.base) - placed.bytes);
  return &placed;
}

void Memory::Free(Region& region) {
  if (region.space != Space::kRegistered) {
    Unpoison(region.pages, region.page_bytes);
    if (mmap(region.pages, region.page_bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
      Die("emulated CUDA: mmap");
    }
  }
  if (region.space == Space::kDevice) {
    const auto index = static_cast<size_t>(region.device);
    device_bytes_[index] -= RoundUp(region.bytes, kAlignment);
    if (fallocate(files_[index], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(region.file_offset),
                  static_cast<off_t>(region.page_bytes)) != 0) {
      Die("emulated CUDA: fallocate");
    }
  }
  regions_.erase(reinterpret_cast<uintptr_t>(region.base));
}

Region* Memory::Find(const void* address) {
  auto next = regions_.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (next == regions_.begin()) return nullptr;
  Region& region = std::prev(next)->second;
  const size_t offset =
      reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(region.base);
  return offset < region.bytes ? &region : nullptr;
}

bool Memory::Overlaps(const void* address, size_t bytes) const {
  const auto first = reinterpret_cast<uintptr_t>(address);
  const auto next = regions_.lower_bound(first + bytes);
  if (next == regions_.begin()) return false;
  const auto& [base, region] = *std::prev(next);
  return base + region.bytes > first;
}

Region* Memory::Find(Space space, const Exported& exported, int user) {
  for (auto& [address, region] : regions_) {
    if (region.space == space && region.user == user && region.inode == exported.inode &&
        region.file_offset == exported.file_offset && region.bytes == exported.bytes) {
      return &region;
    }
  }
  return nullptr;
}

void Memory::Open(Region& region) {
  if (!InDevice(region) || region.open) return;
  Protect(region.pages, region.page_bytes, PROT_READ | PROT_WRITE);
  region.open = true;
}

void Memory::OpenFor(int user) {
  for (auto& [address, region] : regions_) {
    if (!InDevice(region)) continue;
    if (region.user == user) {
      Open(region);
    } else if (region.open) {
      Protect(region.pages, region.page_bytes, PROT_NONE);
      region.open = false;
    }
  }
}

void Memory::CloseAll() {
  OpenFor(-1);
}

std::string Memory::FindOverrun() const {
  if (kAsan) return "";
  for (const auto& [address, region] : regions_) {
    if (region.space != Space::kDevice || !region.open) continue;
    const char* const end = region.base + region.bytes;
    const bool before = !AllSurroundings(region.pages, region.base);
    if (before || !AllSurroundings(end, region.pages + region.page_bytes)) {
      return std::string("a store ") + (before ? "before" : "behind") + " the allocation of " +
             std::to_string(region.bytes) + " bytes";
    }
  }
  return "";
}

}  // namespace gradclip::emulated_cuda
