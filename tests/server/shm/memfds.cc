#include "tests/server/shm/memfds.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace gradclip {

uint64_t PageBytes() {
  return static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

FileDescriptor MakeMemfd(uint64_t bytes, int seals) {
  FileDescriptor memfd(memfd_create("gradclip-test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_TRUE(memfd.ok());
  EXPECT_EQ(ftruncate(memfd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(memfd.get(), F_ADD_SEALS, seals), 0);
  return memfd;
}

void Fill(const FileDescriptor& memfd, unsigned char value) {
  struct stat file = {};
  ASSERT_EQ(fstat(memfd.get(), &file), 0);
  const std::vector<unsigned char> bytes(static_cast<size_t>(file.st_size), value);
  ASSERT_EQ(pwrite(memfd.get(), bytes.data(), bytes.size(), 0), file.st_size);
}

void PunchHole(const FileDescriptor& memfd, uint64_t offset, uint64_t bytes) {
  ASSERT_EQ(fallocate(memfd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(offset), static_cast<off_t>(bytes)),
            0);
}

bool IsFilled(const std::byte* data, uint64_t bytes, unsigned char value) {
  return std::all_of(data, data + bytes, [=](std::byte byte) { return byte == std::byte{value}; });
}

MappedMemfd::MappedMemfd(uint64_t bytes)
    : size_((bytes + PageBytes() - 1) / PageBytes() * PageBytes()),
      memfd_(MakeMemfd(size_)),
      data_(static_cast<char*>(
          mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0))) {
  EXPECT_NE(data_, MAP_FAILED);
}

MappedMemfd::~MappedMemfd() {
  munmap(data_, size_);
}

void MappedMemfd::Write(uint64_t offset, std::string_view bytes) {
  std::memcpy(data_ + offset, bytes.data(), bytes.size());
}

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

size_t MemfdMappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:gradclip-test") != std::string::npos) ++count;
  }
  return count;
}

}  // namespace gradclip
