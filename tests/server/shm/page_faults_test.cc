#include "server/shm/page_faults.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <memory>
#include <thread>
#include <vector>

#include "server/shm/guarded_mapping.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // whose own handlers may end the process first
#else
constexpr bool kSanitized = false;
#endif

bool DiesOfSigbus(int status) {
  if (kSanitized) return status != 0;
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

// A guarded mapping of a file that, other than a region's, may shrink.
class PageFaults : public testing::Test {
 protected:
  void Map(uint64_t pages, bool writable) {
    memfd_ = MakeMemfd(pages * PageBytes(), 0);
    Fill(memfd_, 7);
    auto mapping =
        GuardedMapping::Map(memfd_.get(), pages * PageBytes(), writable, MAP_SHARED, broken_);
    ASSERT_TRUE(mapping.ok()) << mapping.status();
    mapping_ = *std::move(mapping);
  }

  void ShrinkTo(uint64_t pages) {
    ASSERT_EQ(ftruncate(memfd_.get(), static_cast<off_t>(pages * PageBytes())), 0);
  }

  std::byte* Page(uint64_t index) { return mapping_->data() + index * PageBytes(); }
  bool PageIs(uint64_t index, unsigned char value) {
    return IsFilled(Page(index), PageBytes(), value);
  }

  FileDescriptor memfd_;
  std::atomic<bool> broken_ = false;
  std::unique_ptr<GuardedMapping> mapping_;
};

// A page of a file that has none, guarded by nobody.
std::byte* MapBeyondTheEnd(std::byte* at = nullptr) {
  const int flags = at == nullptr ? MAP_SHARED : MAP_SHARED | MAP_FIXED;
  void* pages = mmap(at, PageBytes(), PROT_READ, flags, MakeMemfd(0).get(), 0);
  EXPECT_NE(pages, MAP_FAILED);
  return static_cast<std::byte*>(pages);
}

void Touch(const std::byte* address) {
  static_cast<void>(*static_cast<const volatile std::byte*>(address));
}

TEST_F(PageFaults, AMissingPageReadsAsZerosAndOnlyThat) {
  Map(4, /*writable=*/false);
  EXPECT_TRUE(PageIs(3, 7));
  EXPECT_FALSE(broken_);
  ShrinkTo(2);
  EXPECT_TRUE(PageIs(2, 0));
  EXPECT_TRUE(broken_);
  EXPECT_TRUE(PageIs(3, 0));
  EXPECT_TRUE(PageIs(0, 7));
  EXPECT_TRUE(PageIs(1, 7));
}

TEST_F(PageFaults, AMissingPageCanBeWrittenWhereTheMappingCould) {
  Map(2, /*writable=*/true);
  ShrinkTo(1);
  *Page(1) = std::byte{9};
  EXPECT_TRUE(broken_);
  EXPECT_EQ(Page(1)[0], std::byte{9});
  EXPECT_EQ(Page(1)[1], std::byte{0});
}

TEST_F(PageFaults, LeavesErrnoAsItWas) {
  Map(1, /*writable=*/false);
  ShrinkTo(0);
  errno = 12345;
  Touch(Page(0));
  EXPECT_EQ(errno, 12345);
}

TEST_F(PageFaults, GuardsEachRangeByItself) {
  Map(1, /*writable=*/false);
  std::atomic<bool> other_broken = false;
  {
    auto other = GuardedMapping::Map(memfd_.get(), PageBytes(), false, MAP_SHARED, other_broken);
    ASSERT_TRUE(other.ok());
    ShrinkTo(0);
    Touch((*other)->data());
  }
  EXPECT_TRUE(other_broken);
  EXPECT_FALSE(broken_);
  Touch(Page(0));
  EXPECT_TRUE(broken_);
}

TEST_F(PageFaults, GuardsAnyNumberOfRanges) {
  constexpr size_t kRanges = 5000;
  const uint64_t bytes = PageBytes();
  auto* const space = static_cast<std::byte*>(
      mmap(nullptr, kRanges * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int round = 0; round < 2; ++round) {
    std::atomic<bool> never = false;
    std::vector<std::unique_ptr<PageFaultGuard>> guards;
    for (size_t i = 0; i < kRanges; ++i) {
      guards.push_back(
          std::make_unique<PageFaultGuard>(space + i * bytes, bytes, PROT_NONE, never));
    }
    Map(1, /*writable=*/false);
    ShrinkTo(0);
    EXPECT_TRUE(PageIs(0, 0));
    EXPECT_TRUE(broken_.exchange(false));
    mapping_.reset();
    EXPECT_FALSE(never);
  }
  munmap(space, kRanges * bytes);
}

// Each replaced page by itself makes three mappings of one, of which a process may have so many.
TEST_F(PageFaults, ReplacesTheWholeRangeWhereManyPagesAreMissing) {
  Map(400, /*writable=*/false);
  ShrinkTo(100);
  for (uint64_t page = 101; page < 133; page += 2) Touch(Page(page));
  EXPECT_TRUE(broken_);
  EXPECT_TRUE(PageIs(99, 7));
  EXPECT_EQ(MemfdMappings(), 17);
  Touch(Page(133));
  EXPECT_EQ(MemfdMappings(), 0);
  EXPECT_TRUE(IsFilled(Page(0), 400 * PageBytes(), 0));
}

// Threads fault all the time, while others guard and unguard ranges beside theirs.
TEST_F(PageFaults, HoldsWhileRangesComeAndGo) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 300;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([] {
      for (int round = 0; round < kRounds; ++round) {
        const FileDescriptor memfd = MakeMemfd(2 * PageBytes(), 0);
        std::atomic<bool> broken = false;
        auto mapping = GuardedMapping::Map(memfd.get(), 2 * PageBytes(), false, MAP_SHARED, broken);
        ASSERT_TRUE(mapping.ok());
        Touch((*mapping)->data());
        EXPECT_FALSE(broken);
        ASSERT_EQ(ftruncate(memfd.get(), 0), 0);
        Touch((*mapping)->data() + PageBytes());
        EXPECT_TRUE(broken);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(MemfdMappings(), 0);
}

TEST_F(PageFaults, ManyThreadsMayMeetTheSamePages) {
  constexpr int kThreads = 4;
  constexpr uint64_t kPages = 256;
  Map(kPages, /*writable=*/false);
  ShrinkTo(0);
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (uint64_t page = 0; page < kPages; ++page) Touch(Page(page));
      EXPECT_TRUE(broken_);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class PageFaultsDeathTest : public PageFaults {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

TEST_F(PageFaultsDeathTest, AFaultElsewhereEndsTheProcess) {
  Map(1, /*writable=*/false);
  std::byte* const elsewhere = MapBeyondTheEnd();
  EXPECT_EXIT(Touch(elsewhere), DiesOfSigbus, "");
  // Also after faults that were survived.
  ShrinkTo(0);
  Touch(Page(0));
  EXPECT_EXIT(Touch(elsewhere), DiesOfSigbus, "");
  munmap(elsewhere, PageBytes());
}

TEST_F(PageFaultsDeathTest, AFaultWhereARangeWasEndsTheProcess) {
  EXPECT_EXIT(
      {
        Map(1, /*writable=*/false);
        std::byte* const was = Page(0);
        mapping_.reset();
        Touch(MapBeyondTheEnd(was));
      },
      DiesOfSigbus, "");
}

TEST_F(PageFaultsDeathTest, ASignalThatSomebodySendsEndsTheProcess) {
  Map(1, /*writable=*/false);
  EXPECT_EXIT(raise(SIGBUS), DiesOfSigbus, "");
}

TEST_F(PageFaultsDeathTest, AnActionThatWasThereBeforeGetsTheOtherFaults) {
  EXPECT_EXIT(
      {
        struct sigaction own = {};
        own.sa_handler = [](int) { _exit(42); };
        sigaction(SIGBUS, &own, nullptr);
        Map(1, /*writable=*/false);
        ShrinkTo(0);
        Touch(Page(0));
        Touch(MapBeyondTheEnd());
      },
      testing::ExitedWithCode(42), "");
}

}  // namespace
}  // namespace gradclip
