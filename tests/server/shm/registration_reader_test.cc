#include "server/shm/registration_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "tests/server/shm/memfds.h"
#include "tests/server/shm/memory_client.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using Progress = RegistrationReader::Progress;

class RegistrationReaderTest : public testing::Test {
 protected:
  RegistrationReaderTest() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    reader_end_ = FileDescriptor(ends[0]);
    writer_end_ = FileDescriptor(ends[1]);
  }

  bool Send(std::string_view bytes, std::vector<int> descriptors = {}) {
    return SendMessage(writer_end_.get(), bytes, descriptors);
  }
  Progress Read() { return reader_.Read(reader_end_.get()); }

  static std::string Right() { return RegistrationBytes(4096); }
  static std::string Wrong(void change(Registration&)) {
    Registration registration{.magic = Registration::Magic(), .length = 4096};
    change(registration);
    return RegistrationBytes(registration);
  }

  static std::string OfCudaMemory() {
    return Wrong([](Registration& r) {
      r.kind = Registration::kCudaMemory;
      r.offset = 512;
    });
  }

  // Sends it, with one descriptor, and checks its bytes.
  absl::Status Check(std::string_view bytes) {
    const FileDescriptor memfd = MakeMemfd(4096);
    EXPECT_TRUE(Send(bytes, {memfd.get()}));
    EXPECT_EQ(Read(), Progress::kComplete);
    return reader_.CheckBytes();
  }

  FileDescriptor reader_end_;
  FileDescriptor writer_end_;
  RegistrationReader reader_;
};

TEST_F(RegistrationReaderTest, ReadsOneInOnePiece) {
  const FileDescriptor memfd = MakeMemfd(4096);
  EXPECT_EQ(Read(), Progress::kWaiting);
  EXPECT_FALSE(reader_.begun());
  ASSERT_TRUE(Send(RegistrationBytes(4096, Registration::kReadOnly), {memfd.get()}));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_TRUE(reader_.CheckBytes().ok());
  EXPECT_TRUE(reader_.CheckDescriptor().ok());
  EXPECT_EQ(reader_.registration().length, 4096);
  EXPECT_EQ(reader_.registration().flags, Registration::kReadOnly);
  EXPECT_GE(reader_.memfd(), 0);
  EXPECT_NE(fcntl(reader_.memfd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(RegistrationReaderTest, ReadsOneByteByByteWithItsDescriptorAtAnyOfThem) {
  const size_t open_before = OpenDescriptors();
  for (size_t with = 0; with < Registration::kBytes; ++with) {
    const FileDescriptor memfd = MakeMemfd(4096);
    for (size_t i = 0; i < Registration::kBytes; ++i) {
      const bool here = i == with;
      ASSERT_TRUE(Send(Right().substr(i, 1), here ? std::vector{memfd.get()} : std::vector<int>{}));
      EXPECT_EQ(Read(), i + 1 < Registration::kBytes ? Progress::kWaiting : Progress::kComplete);
      EXPECT_TRUE(reader_.begun());
    }
    EXPECT_TRUE(reader_.CheckBytes().ok());
    EXPECT_TRUE(reader_.CheckDescriptor().ok());
    reader_.Reset();
  }
  EXPECT_EQ(OpenDescriptors(), open_before);
}

TEST_F(RegistrationReaderTest, RefusesBytesThatAreNoRegistration) {
  const auto expect_refused = [&](const std::string& bytes, const std::string& text) {
    const absl::Status status = Check(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    reader_.Reset();
  };
  expect_refused(Wrong([](Registration& r) { r.magic ^= uint64_t{1} << 56; }), "GRADCLIP");
  expect_refused(Wrong([](Registration& r) { r.version = 0; }), "version 0");
  expect_refused(Wrong([](Registration& r) { r.version = 2; }), "version 2");
  expect_refused(Wrong([](Registration& r) { r.kind = 0; }), "kind 0");
  expect_refused(Wrong([](Registration& r) { r.kind = 3; }), "kind 3");
  expect_refused(Wrong([](Registration& r) { r.flags = 2; }), "flags 2");
  expect_refused(Wrong([](Registration& r) { r.flags = 0x8001; }), "flags 32769");
  expect_refused(Wrong([](Registration& r) { r.offset = uint64_t{1} << 63; }), "zero");
}

TEST_F(RegistrationReaderTest, ReadsCudaMemoryByteByByte) {
  std::string bytes = OfCudaMemory();
  for (size_t i = 0; i < 80; ++i) bytes += static_cast<char>(i);
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_TRUE(Send(bytes.substr(i, 1)));
    EXPECT_EQ(Read(), i + 1 < bytes.size() ? Progress::kWaiting : Progress::kComplete);
  }
  EXPECT_EQ(reader_.CheckBytes(), absl::OkStatus());
  EXPECT_EQ(reader_.CheckDescriptor(), absl::OkStatus());
  EXPECT_EQ(reader_.registration().length, 4096u);
  EXPECT_EQ(reader_.registration().offset, 512u);
  const CudaAllocation allocation = reader_.cuda_allocation();
  EXPECT_EQ(allocation.uuid[15], std::byte{15});
  EXPECT_EQ(allocation.handle[0], std::byte{16});
  EXPECT_EQ(allocation.handle[63], std::byte{79});
}

TEST_F(RegistrationReaderTest, RefusesBytesBeyondThoseOfCudaMemory) {
  ASSERT_TRUE(Send(OfCudaMemory() + std::string(81, 'x')));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_THAT(std::string(reader_.CheckBytes().message()), HasSubstr("more than the 112 bytes"));
}

TEST_F(RegistrationReaderTest, WantsNoDescriptorWithCudaMemory) {
  const FileDescriptor memfd = MakeMemfd(4096);
  ASSERT_TRUE(Send(OfCudaMemory(), {memfd.get()}));
  EXPECT_EQ(Read(), Progress::kWaiting);
  ASSERT_TRUE(Send(std::string(80, 'x')));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_EQ(reader_.CheckBytes(), absl::OkStatus());
  EXPECT_THAT(std::string(reader_.CheckDescriptor().message()), HasSubstr("1 descriptors"));
}

// What another version's second kind has behind its start is not known.
TEST_F(RegistrationReaderTest, WaitsForNothingOfAnotherVersion) {
  EXPECT_THAT(std::string(Check(Wrong([](Registration& r) {
                            r.version = 2;
                            r.kind = 2;
                          })).message()),
              HasSubstr("version 2"));
}

TEST_F(RegistrationReaderTest, TellsAnotherProtocolByItsFirstByteThatIsWrong) {
  ASSERT_TRUE(Send("GRAD"));
  EXPECT_EQ(Read(), Progress::kWaiting);
  ASSERT_TRUE(Send("E"));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_EQ(reader_.CheckBytes().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RegistrationReaderTest, RefusesBytesBeyondARegistration) {
  EXPECT_THAT(std::string(Check(Right() + "G").message()), HasSubstr("wait for that"));
}

TEST_F(RegistrationReaderTest, RefusesASecondRegistrationBeforeTheAnswer) {
  const FileDescriptor memfd = MakeMemfd(4096);
  ASSERT_TRUE(Send(Right(), {memfd.get()}));
  ASSERT_TRUE(Send(Right(), {memfd.get()}));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_THAT(std::string(reader_.CheckBytes().message()), HasSubstr("wait for that"));
}

// The system hands over the rest of the first together with the second and its descriptor.
TEST_F(RegistrationReaderTest, TakesNoDescriptorOfASecondRegistrationForTheFirsts) {
  const FileDescriptor memfd = MakeMemfd(4096);
  ASSERT_TRUE(Send(Right().substr(0, 8)));
  ASSERT_TRUE(Send(Right().substr(8)));
  ASSERT_TRUE(Send(Right(), {memfd.get()}));
  EXPECT_EQ(Read(), Progress::kComplete);
  EXPECT_THAT(std::string(reader_.CheckBytes().message()), HasSubstr("wait for that"));
}

TEST_F(RegistrationReaderTest, WantsExactlyOneDescriptor) {
  const size_t open_before = OpenDescriptors();
  {
    const FileDescriptor a = MakeMemfd(4096);
    const FileDescriptor b = MakeMemfd(4096);
    const auto expect_refused = [&](const std::string& text) {
      EXPECT_EQ(Read(), Progress::kComplete);
      EXPECT_TRUE(reader_.CheckBytes().ok());
      EXPECT_EQ(reader_.CheckDescriptor().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(reader_.CheckDescriptor().message()), HasSubstr(text));
      EXPECT_EQ(reader_.memfd(), -1);
      EXPECT_EQ(OpenDescriptors(), open_before + 2);  // all that came are closed
      reader_.Reset();
    };
    ASSERT_TRUE(Send(Right()));
    expect_refused("0 descriptors");
    ASSERT_TRUE(Send(Right(), {a.get(), b.get()}));
    expect_refused("2 descriptors");
    ASSERT_TRUE(Send(Right().substr(0, 16), {a.get()}));
    EXPECT_EQ(Read(), Progress::kWaiting);
    ASSERT_TRUE(Send(Right().substr(16), {b.get()}));
    expect_refused("2 descriptors");
    ASSERT_TRUE(Send(Right(), std::vector<int>(253, a.get())));  // as many as the system passes
    expect_refused("253 descriptors");
  }
  EXPECT_EQ(OpenDescriptors(), open_before);
}

TEST_F(RegistrationReaderTest, SaysHowTheConnectionEnded) {
  ASSERT_TRUE(Send(Right().substr(0, 5)));
  writer_end_ = FileDescriptor();
  EXPECT_EQ(Read(), Progress::kWaiting);
  EXPECT_EQ(Read(), Progress::kEnded);
  EXPECT_EQ(reader_.ending(), "the peer closed it after 5 bytes of a registration");
}

}  // namespace
}  // namespace gradclip
