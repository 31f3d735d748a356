#include "client/gradclip/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// A memfd of the test's own.
class Memfd {
 public:
  explicit Memfd(uint64_t bytes, unsigned flags = MFD_ALLOW_SEALING)
      : memfd_(memfd_create("test", MFD_CLOEXEC | flags)) {
    EXPECT_EQ(ftruncate(memfd_, static_cast<off_t>(bytes)), 0);
  }
  ~Memfd() { close(memfd_); }
  int get() const { return memfd_; }

 private:
  const int memfd_;
};

std::string Refusal(int memfd) {
  const auto memory = SharedMemory::Adopt(memfd);
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kInvalidArgument) << memory.status();
  return std::string(memory.status().message());
}

TEST(SharedMemory, IsSealedAndZeroAndCanBeWritten) {
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{5000}, uint64_t{4} << 20}) {
    const auto memory = SharedMemory::Create(bytes);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(memory->size(), bytes);
    EXPECT_EQ(fcntl(memory->memfd(), F_GET_SEALS), kSeals);
    EXPECT_EQ(fcntl(memory->memfd(), F_GETFD), FD_CLOEXEC);
    struct stat file {};
    ASSERT_EQ(fstat(memory->memfd(), &file), 0);
    EXPECT_EQ(static_cast<uint64_t>(file.st_size), bytes);
    EXPECT_EQ(memory->data()[0], std::byte{0});
    EXPECT_EQ(memory->data()[bytes - 1], std::byte{0});
    std::memset(memory->data(), 7, bytes);
    char last = 0;
    ASSERT_EQ(pread(memory->memfd(), &last, 1, static_cast<off_t>(bytes - 1)), 1);
    EXPECT_EQ(last, 7);
  }
}

TEST(SharedMemory, LiesWhereHugePagesMay) {
  const uint64_t huge_page = uint64_t{2} << 20;
  const auto memory = SharedMemory::Create(3 * huge_page + 100);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % huge_page, 0u);
}

TEST(SharedMemory, OfNoBytesIsNone) {
  const auto memory = SharedMemory::Create(0);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->memfd(), -1);
  EXPECT_EQ(memory->data(), nullptr);
}

TEST(SharedMemory, SaysThatTheSystemHasNotAsMuch) {
  const auto memory = SharedMemory::Create(uint64_t{1} << 62);
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(memory.status().message(), HasSubstr("4611686018427387904 bytes of shared memory"));
}

TEST(SharedMemory, MovesWithoutMoving) {
  auto memory = SharedMemory::Create(100);
  ASSERT_TRUE(memory.ok());
  std::byte* const data = memory->data();
  const SharedMemory moved = *std::move(memory);
  EXPECT_EQ(moved.data(), data);
  data[99] = std::byte{1};
}

TEST(SharedMemory, AdoptsAndSealsAFileOfTheCallers) {
  auto file = std::make_unique<Memfd>(10000);
  const auto memory = SharedMemory::Adopt(file->get());
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->size(), 10000u);
  EXPECT_EQ(fcntl(file->get(), F_GET_SEALS), kSeals);
  EXPECT_NE(memory->memfd(), file->get());
  ASSERT_EQ(pwrite(file->get(), "x", 1, 9999), 1);
  file.reset();
  EXPECT_EQ(memory->data()[9999], std::byte{'x'});
}

TEST(SharedMemory, TakesAFileWhoseSealsAreSet) {
  const Memfd file(100);
  ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, kSeals), 0);
  EXPECT_TRUE(SharedMemory::Adopt(file.get()).ok());
}

TEST(SharedMemory, SaysWhyItCantAdoptAFile) {
  EXPECT_THAT(Refusal(-1), HasSubstr("descriptor -1 is no memfd: Bad file descriptor"));
  int pipes[2];
  ASSERT_EQ(pipe2(pipes, O_CLOEXEC), 0);
  EXPECT_THAT(Refusal(pipes[0]),
              HasSubstr("is no memfd: Invalid argument; make it with memfd_cre"));
  close(pipes[0]);
  close(pipes[1]);
  const Memfd without_seals(100, 0);
  EXPECT_THAT(Refusal(without_seals.get()), HasSubstr("make it with MFD_ALLOW_SEALING"));
  const Memfd written(100);
  ASSERT_EQ(fcntl(written.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_THAT(Refusal(written.get()), HasSubstr("without F_SEAL_WRITE"));
}

}  // namespace
}  // namespace gradclip
