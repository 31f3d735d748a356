// Whether a server of its own process is left as it was by those who share memory with it, however
// they go: its descriptors and mappings are counted from outside.
#include <gmock/gmock.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gradclip/shared_gradient.h"
#include "tests/e2e/command_fixture.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

class SharedLeaks : public testing::Test {
 protected:
  struct Held {
    size_t descriptors = 0;
    size_t mappings = 0;  // of memfds
    bool operator==(const Held&) const = default;
  };
  friend void PrintTo(const Held& held, std::ostream* out) {
    *out << held.descriptors << " descriptors, " << held.mappings << " mappings";
  }

  Held HeldByServer() {
    const std::filesystem::path process = absl::StrCat("/proc/", server_.process().pid());
    Held held;
    const std::filesystem::directory_iterator descriptors(process / "fd");
    held.descriptors = static_cast<size_t>(std::distance(begin(descriptors), end(descriptors)));
    std::ifstream maps(process / "maps");
    for (std::string line; std::getline(maps, line);) {
      held.mappings += absl::StrContains(line, "memfd:") ? 1 : 0;
    }
    return held;
  }

  // Closing is the server's to do, a moment after the client has gone.
  void ExpectHeldSoon(const Held& expected) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (HeldByServer() != expected && absl::Now() < end) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_EQ(HeldByServer(), expected);
  }

  // Registers, clips and closes; whoever multiplies.
  void Cycle(Client& client, ReplyMode reply) {
    SharedGradientOptions required;
    required.require_shared = true;
    absl::StatusOr<SharedGradient> gradient =
        SharedGradient::Make(client, {{{"w", DType::kFloat32, {2}}}}, required);
    ASSERT_TRUE(gradient.ok()) << gradient.status();
    auto* const values = static_cast<float*>(gradient->tensors()[0].data);
    values[0] = 3;
    values[1] = 4;
    ClipOptions options;
    options.max_norm = 2.5;
    options.epsilon = 0;
    options.reply = reply;
    const absl::StatusOr<ClipAnswer> answer = gradient->Clip(options);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(values[0], 1.5f);
    EXPECT_EQ(values[1], 2.0f);
  }

  const Folder folder_;
  ServerProcess server_{{"--memory-socket=" + folder_ / "memory"}};
};

TEST_F(SharedLeaks, AThousandGradientsLeaveNothingBehind) {
  Client client(server_.address());
  ASSERT_TRUE(client.GetServerInfo().ok());  // the call's connection stays
  const Held before = HeldByServer();
  EXPECT_EQ(before.mappings, 0u);
  for (int i = 0; i < 1000 && !HasFatalFailure(); ++i) {
    Cycle(client, i % 2 == 0 ? ReplyMode::kCoefficient : ReplyMode::kGradient);
  }
  ExpectHeldSoon(before);
}

// From before it connects to amid its calls, wherever that finds it.
TEST_F(SharedLeaks, KilledClientsLeaveNothingBehind) {
  const Held before = HeldByServer();
  for (int i = 0; i < 30; ++i) {
    Process client("gradclip",
                   {"bench", "--server", server_.address(), "--shared", "--bytes", "8MiB",
                    "--rounds", "1000000", "--reply", i % 2 == 0 ? "coefficient" : "gradient"});
    absl::SleepFor(absl::Milliseconds(10 * i));
    client.Signal(SIGKILL);
    EXPECT_EQ(client.Wait(), 128 + SIGKILL);
  }
  ExpectHeldSoon(before);
  Client client(server_.address());
  Cycle(client, ReplyMode::kGradient);
}

}  // namespace
}  // namespace gradclip
