// What an acceptor does without descriptors. Not under sanitizers, which need some for their own
// checks.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <thread>

#include "tests/server/net/acceptor_fixture.h"
#include "tests/server/net/dial.h"

namespace gradclip {
namespace {

using std::chrono::milliseconds;

// CVE-2023-4785: gRPC's own listeners stay dead once accept() has failed for want of descriptors.
TEST_F(AcceptorTest, GoesOnOnceThereAreDescriptorsAgain) {
  Listen({"127.0.0.1:0"});
  FileDescriptor waiting;
  {
    rlimit before = {};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    FileDescriptor next(dup(null_.get()));
    // One more, for the peer; none for the acceptor.
    const rlimit few = {.rlim_cur = static_cast<rlim_t>(next.get()) + 1,
                        .rlim_max = before.rlim_max};
    next = FileDescriptor();
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    waiting = Dial(addresses_[0]);
    std::this_thread::sleep_for(milliseconds(250));
    EXPECT_TRUE(taken_.empty());
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  }
  ASSERT_TRUE(waiting.ok());
  const Taken::One taken = taken_.Next();
  EXPECT_EQ(taken.peer.host, "127.0.0.1");
}

}  // namespace
}  // namespace gradclip
