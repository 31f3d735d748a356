// A connection of the memory socket, against a plain reading of its protocol: whatever bytes come,
// in whatever pieces and with whatever descriptors, are answered as that says, a region is there
// exactly where the answer is a token, and nothing stays open or mapped.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/memory/budget.h"
#include "server/net/file_descriptor.h"
#include "server/observe/log.h"
#include "server/shm/memory_connection.h"
#include "server/shm/registration.h"
#include "server/shm/registry.h"
#include "tests/fuzz/fuzz.h"
#include "tests/server/shm/fake_devices.h"
#include "tests/server/shm/memfds.h"
#include "tests/server/shm/memory_client.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace gradclip {
namespace {

using absl::StatusCode;

constexpr uint64_t kMaxRegions = 3;

// A descriptor that may come with a registration.
struct Passed {
  FileDescriptor descriptor;
  bool memfd = true;
  int seals = kNeededSeals;
  uint64_t bytes = 0;
  bool open_for_writing = true;

  static Passed Memfd(uint64_t bytes, int seals = kNeededSeals) {
    return {.descriptor = MakeMemfd(bytes, seals), .seals = seals, .bytes = bytes};
  }
};

// What all inputs use.
struct World {
  World() {
    passed[0] = Passed::Memfd(4096);
    passed[1] = Passed::Memfd(5000);
    passed[2] = Passed::Memfd(4096, F_SEAL_SHRINK | F_SEAL_SEAL);
    passed[3] = Passed::Memfd(4096, kNeededSeals | F_SEAL_WRITE);
    passed[4] = Passed::Memfd(4096, kNeededSeals | F_SEAL_FUTURE_WRITE);
    const std::string path = "/proc/self/fd/" + std::to_string(passed[0].descriptor.get());
    passed[5] = {.descriptor = FileDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC)),
                 .bytes = 4096,
                 .open_for_writing = false};
    passed[6] = Passed::Memfd(0);
    passed[7] = {.descriptor = FileDescriptor(open("/dev/null", O_RDWR | O_CLOEXEC)),
                 .memfd = false};
    int ends[2];
    FUZZ_CHECK(pipe2(ends, O_CLOEXEC) == 0);
    passed[8] = {.descriptor = FileDescriptor(ends[0]), .memfd = false};
    pipe_writer = FileDescriptor(ends[1]);
    for (const Passed& one : passed) FUZZ_CHECK(one.descriptor.ok());
  }

  std::array<Passed, 9> passed;
  FileDescriptor pipe_writer;
  Log log{LogFormat::kText, LogLevel::kError, STDERR_FILENO};
  MemoryBudget budget{kMiB};
  FakeDevices devices;
  RegionRegistry registry{{.max_regions = kMaxRegions,
                           .max_regions_per_peer = kMaxRegions,
                           .max_shared_bytes = kMiB,
                           .max_shared_bytes_per_peer = kMiB},
                          budget,
                          &devices};
};

World& TheWorld() {
  static World world;
  return world;
}

// The little-endian number in bytes [offset, offset + count).
uint64_t NumberAt(std::string_view bytes, size_t offset, size_t count) {
  uint64_t number = 0;
  for (size_t i = count; i > 0; --i) {
    number = number << 8 | static_cast<uint8_t>(bytes[offset + i - 1]);
  }
  return number;
}

struct Expected {
  StatusCode code = StatusCode::kOk;
  bool closes = false;
};

// The answer to a whole registration of CUDA memory.
Expected ExpectOfCuda(uint64_t length, uint64_t offset, std::string_view allocation,
                      size_t descriptors, uint64_t regions) {
  if (descriptors != 0) return {StatusCode::kInvalidArgument};
  if (regions == kMaxRegions || length > kMiB - TheWorld().registry.bytes()) {
    return {StatusCode::kResourceExhausted};
  }
  const std::string right = FakeDevices::AllocationBytes();
  if (allocation.substr(0, 16) != right.substr(0, 16)) return {StatusCode::kFailedPrecondition};
  if (allocation != right || length == 0 || length > FakeDevices::kBytes ||
      offset > FakeDevices::kBytes - length) {
    return {StatusCode::kInvalidArgument};
  }
  return {};
}

// The answer to all that came since the last one; none: more must come first.
std::optional<Expected> Expect(std::string_view bytes, const std::vector<const Passed*>& passed,
                               uint64_t regions) {
  constexpr std::string_view kMagic = "GRADCLIP";
  const Expected ends = {StatusCode::kInvalidArgument, /*closes=*/true};
  if (bytes.substr(0, 8) != kMagic.substr(0, bytes.size())) return ends;
  if (bytes.size() < 32) return std::nullopt;
  const uint64_t kind = NumberAt(bytes, 12, 2);
  const uint64_t flags = NumberAt(bytes, 14, 2);
  const uint64_t length = NumberAt(bytes, 16, 8);
  const uint64_t offset = NumberAt(bytes, 24, 8);
  const bool version_1 = NumberAt(bytes, 8, 4) == 1;
  const size_t size = version_1 && kind == 2 ? 112 : 32;
  if (bytes.size() < size) return std::nullopt;
  if (bytes.size() > size || !version_1 || flags > 1 || kind < 1 || kind > 2 ||
      (kind == 1 && offset != 0)) {
    return ends;
  }
  if (kind == 2) return ExpectOfCuda(length, offset, bytes.substr(32), passed.size(), regions);

  const Expected invalid = {StatusCode::kInvalidArgument};
  if (passed.size() != 1) return invalid;
  const Passed& one = *passed.front();
  const bool read_only = flags == 1;
  if (!one.memfd || (one.seals & kNeededSeals) != kNeededSeals) return invalid;
  if (length == 0 || length != one.bytes) return invalid;
  const bool sealed = (one.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
  if (sealed && !read_only) return Expected{StatusCode::kFailedPrecondition};
  if (regions == kMaxRegions) return Expected{StatusCode::kResourceExhausted};
  if (!one.open_for_writing && !read_only) return Expected{StatusCode::kFailedPrecondition};
  return Expected{};
}

// The codec means what the protocol's table says, and loses nothing.
void CheckCodec(std::string_view bytes) {
  std::array<std::byte, Registration::kBytes> raw;
  std::memcpy(raw.data(), bytes.data(), raw.size());
  const auto registration = FromBytes<Registration>(std::span<const std::byte, 32>(raw));
  FUZZ_CHECK(registration.magic == NumberAt(bytes, 0, 8));
  FUZZ_CHECK(registration.version == NumberAt(bytes, 8, 4));
  FUZZ_CHECK(registration.kind == NumberAt(bytes, 12, 2));
  FUZZ_CHECK(registration.flags == NumberAt(bytes, 14, 2));
  FUZZ_CHECK(registration.length == NumberAt(bytes, 16, 8));
  FUZZ_CHECK(registration.offset == NumberAt(bytes, 24, 8));
  FUZZ_CHECK(ToBytes(registration) == raw);
}

// Both ends of a connection.
class Connection {
 public:
  Connection() {
    int ends[2];
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    client_ = FileDescriptor(ends[0]);
    server_.emplace(FileDescriptor(ends[1]), MemoryPeer{.uid = getuid(), .pid = getpid()},
                    std::chrono::seconds(1), MemoryConnection::Time(), TheWorld().registry,
                    TheWorld().log);
  }

  // REQUIRES: at least one byte; the system takes no descriptors with none.
  void Send(std::string_view bytes, const std::vector<const Passed*>& passed) {
    std::vector<int> descriptors;
    for (const Passed* one : passed) descriptors.push_back(one->descriptor.get());
    FUZZ_CHECK(SendMessage(client_.get(), bytes, descriptors));
    unanswered_ += bytes;
    passed_.insert(passed_.end(), passed.begin(), passed.end());
  }

  // Has the server take all that was sent, and checks what it answers. False: it has closed.
  bool Serve() {
    bool open = true;
    while (open && HasMore(server_->socket())) open = server_->Advance({});
    const std::optional<Expected> expected = Expect(unanswered_, passed_, regions_);
    if (expected.has_value()) CheckAnswer(*expected);
    FUZZ_CHECK(!HasMore(client_.get()));
    FUZZ_CHECK(open == !(expected.has_value() && expected->closes));
    FUZZ_CHECK(TheWorld().registry.regions() == regions_);
    FUZZ_CHECK(server_->has_region() == (regions_ > 0));
    return open;
  }

  // The client has sent its last byte and, where `closes`, reads no answer.
  void End(bool closes) {
    if (closes) {
      client_ = FileDescriptor();
    } else {
      FUZZ_CHECK(shutdown(client_.get(), SHUT_WR) == 0);
    }
    while (server_->Advance({})) {
    }
    FUZZ_CHECK(!server_->releasing());
  }

  size_t unanswered_bytes() const { return unanswered_.size(); }

 private:
  static bool HasMore(int socket) {
    pollfd polled = {socket, POLLIN, 0};
    return poll(&polled, 1, 0) > 0;
  }

  std::string Receive(size_t bytes) {
    std::string received(bytes, '\0');
    FUZZ_CHECK(bytes == 0 || recv(client_.get(), received.data(), bytes, MSG_DONTWAIT) ==
                                 static_cast<ssize_t>(bytes));
    return received;
  }

  void CheckAnswer(const Expected& expected) {
    const std::string head = Receive(24);
    const std::string message = Receive(NumberAt(head, 4, 4));
    const std::string token = head.substr(8);
    FUZZ_CHECK(NumberAt(head, 0, 4) == static_cast<uint64_t>(expected.code));
    FUZZ_CHECK(message.size() <= 1024);
    if (expected.code == StatusCode::kOk) {
      FUZZ_CHECK(message.empty());
      RegionToken key;
      std::memcpy(key.data(), token.data(), key.size());
      const std::shared_ptr<Region> region = TheWorld().registry.Find(key);
      FUZZ_CHECK(region != nullptr && region->size() == NumberAt(unanswered_, 16, 8));
      FUZZ_CHECK((region->device_memory() == nullptr) == (NumberAt(unanswered_, 12, 2) == 1));
      FUZZ_CHECK(region->read_only() == (NumberAt(unanswered_, 14, 2) == 1));
      FUZZ_CHECK(!region->broken());
      ++regions_;
    } else {
      FUZZ_CHECK(!message.empty() && token == std::string(16, '\0'));
    }
    unanswered_.clear();
    passed_.clear();
  }

  FileDescriptor client_;
  std::optional<MemoryConnection> server_;
  uint64_t regions_ = 0;
  // Since the last answer.
  std::string unanswered_;
  std::vector<const Passed*> passed_;
};

// A byte: how the connection ends. Then, for each message, a byte with its length, 1 to 64, and
// kLater; a byte with how many descriptors come with it, 0 to 3, and, from its third bit on, the
// first of them; the bytes.
void Check(std::string_view input) {
  constexpr uint8_t kLater = 64;  // the server looks when more has come
  if (input.empty()) return;
  const auto ending = static_cast<uint8_t>(input[0]);
  input.remove_prefix(1);
  if (input.size() >= Registration::kBytes) CheckCodec(input);

  Connection connection;
  bool open = true;
  while (open && input.size() > 2) {
    const auto head = static_cast<uint8_t>(input[0]);
    const auto with = static_cast<uint8_t>(input[1]);
    const std::string_view bytes = input.substr(2, 1 + head % 64);
    input.remove_prefix(2 + bytes.size());
    std::vector<const Passed*> passed;
    for (size_t i = 0; i < with % 4; ++i) {
      passed.push_back(&TheWorld().passed[(with / 4 + i) % TheWorld().passed.size()]);
    }
    connection.Send(bytes, passed);
    // The socket holds only so much.
    const bool later = (head & kLater) != 0 && connection.unanswered_bytes() <= 144;
    if (!later) open = connection.Serve();
  }
  if (open && ending % 3 > 0) connection.End(/*closes=*/ending % 3 == 2);
}

void CheckNothingLeft() {
  FUZZ_CHECK(TheWorld().registry.regions() == 0);
  FUZZ_CHECK(TheWorld().registry.bytes() == 0);
  FUZZ_CHECK(TheWorld().budget.used_bytes() == 0);
  FUZZ_CHECK(TheWorld().devices.open() == 0);
  static uint64_t runs = 0;
  if (++runs % 256 == 0) FUZZ_CHECK(MemfdMappings() == 0);  // takes longer than most inputs
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::TheWorld();
  // Counted anew each time: libFuzzer opens some of its own in between.
  const size_t descriptors = gradclip::OpenDescriptors();
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  FUZZ_CHECK(gradclip::OpenDescriptors() == descriptors);
  gradclip::CheckNothingLeft();
  return 0;
}
