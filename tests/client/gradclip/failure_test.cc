// The client against servers that refuse, fail, stop or break the contract.
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/client/gradclip/fake_server.h"
#include "tests/client/gradclip/listener.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

ClipOptions MaxNormOne(ReplyMode reply = ReplyMode::kCoefficient) {
  ClipOptions options;
  options.max_norm = 1;
  options.reply = reply;
  return options;
}

CallOptions Within(absl::Duration timeout) {
  CallOptions call;
  call.timeout = timeout;
  return call;
}

ClientOptions QuickRetries(int max_retries = 4) {
  ClientOptions options;
  options.max_retries = max_retries;
  options.initial_backoff = absl::Milliseconds(1);
  return options;
}

// A gradient of one tensor of ones, whose memory goes with it.
class Gradient {
 public:
  explicit Gradient(size_t elements) : values_(elements, 1.0f) {
    tensor_ = {"w", DType::kFloat32, {static_cast<int64_t>(elements)}, values_.data()};
  }
  std::span<const Tensor> tensors() const { return {&tensor_, 1}; }
  const std::vector<float>& values() const { return values_; }
  bool unchanged() const {
    return std::count(values_.begin(), values_.end(), 1.0f) == static_cast<int64_t>(values_.size());
  }

 private:
  std::vector<float> values_;
  Tensor tensor_;
};

TEST(ClientFailure, GivesTheServersStatusWithItsAddress) {
  FakeServer server;
  Client client(server.address());
  const grpc::StatusCode codes[] = {
      grpc::StatusCode::INVALID_ARGUMENT,   grpc::StatusCode::FAILED_PRECONDITION,
      grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNIMPLEMENTED,
      grpc::StatusCode::INTERNAL,           grpc::StatusCode::DEADLINE_EXCEEDED,
      grpc::StatusCode::DATA_LOSS};
  for (const grpc::StatusCode code : codes) {
    server.compute_norm = [code](NormStream& stream, v1::ComputeNormResponse&) {
      ReadAll(stream);
      return grpc::Status(code, "tensor \"w\": it is so");
    };
    const Gradient gradient(100);
    const absl::Status status = client.ComputeNorm(gradient.tensors()).status();
    EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code));
    EXPECT_EQ(status.message(),
              absl::StrCat("server ", server.address(), ": tensor \"w\": it is so"));
  }
}

TEST(ClientFailure, NamesTheServerThatCantBeReached) {
  std::string address;
  {
    FakeServer server;
    address = server.address();
  }
  Client client(address, QuickRetries(2));
  Gradient gradient(100);
  const absl::Status status = client.Clip(gradient.tensors(), MaxNormOne()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(absl::StrCat("server ", address)),
                                      HasSubstr("gradclip-server"), HasSubstr("tried 3 times")));
  EXPECT_EQ(client.CheckHealth().code(), absl::StatusCode::kUnavailable);
}

TEST(ClientFailure, TriesAgainWhereTheServerIsUnavailable) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream& stream) {
    if (++calls <= 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    EXPECT_EQ(ReadAll(stream).data().size(), 400000u);
    SendResult(stream, 0.5);
    return grpc::Status::OK;
  };
  Gradient gradient(100000);
  const auto answer = client.Clip(gradient.tensors(), MaxNormOne());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(calls, 3);
  EXPECT_THAT(gradient.values(), Each(0.5f));
}

TEST(ClientFailure, TriesNoMoreOftenThanAllowed) {
  FakeServer server;
  Client client(server.address(), QuickRetries(3));
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream&) {
    ++calls;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  };
  Gradient gradient(10);
  const absl::Status status = client.Clip(gradient.tensors(), MaxNormOne()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("draining"), HasSubstr("tried 4 times")));
  EXPECT_EQ(calls, 4);
  EXPECT_TRUE(gradient.unchanged());
}

TEST(ClientFailure, WaitsLongerBeforeEachTry) {
  FakeServer server;
  ClientOptions options;
  options.max_retries = 3;
  options.initial_backoff = absl::Milliseconds(20);
  Client client(server.address(), options);
  std::mutex mutex;  // the server's threads are several
  std::vector<absl::Time> calls;
  server.clip = [&](ClipStream&) {
    std::lock_guard lock(mutex);
    calls.push_back(absl::Now());
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  };
  Gradient gradient(10);
  EXPECT_FALSE(client.Clip(gradient.tensors(), MaxNormOne()).ok());
  std::lock_guard lock(mutex);
  ASSERT_EQ(calls.size(), 4u);
  // 20, 40 and 80 ms, of which at least half is waited.
  for (int i = 0; i < 3; ++i) EXPECT_GE(calls[i + 1] - calls[i], absl::Milliseconds(10 << i)) << i;
}

TEST(ClientFailure, WaitsNoLongerThanTheLongestBackoff) {
  FakeServer server;
  ClientOptions options;
  options.max_retries = 2;
  options.initial_backoff = absl::Hours(1);
  options.max_backoff = absl::Milliseconds(1);
  Client client(server.address(), options);
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream&) {
    ++calls;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  };
  Gradient gradient(10);
  EXPECT_FALSE(client.Clip(gradient.tensors(), MaxNormOne(), Within(absl::Seconds(30))).ok());
  EXPECT_EQ(calls, 3);
}

TEST(ClientFailure, DoesNotTryAgainBeyondTheTimeout) {
  FakeServer server;
  ClientOptions options;
  options.initial_backoff = absl::Hours(1);
  options.max_backoff = absl::Hours(1);
  Client client(server.address(), options);
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream&) {
    ++calls;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  };
  Gradient gradient(10);
  const absl::Status status =
      client.Clip(gradient.tensors(), MaxNormOne(), Within(absl::Seconds(30))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(calls, 1);
}

TEST(ClientFailure, DoesNotTryAgainWhatTheServerRefuses) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream&) {
    ++calls;
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no");
  };
  Gradient gradient(10);
  EXPECT_EQ(client.Clip(gradient.tensors(), MaxNormOne()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(calls, 1);
}

TEST(ClientFailure, FindsTheServerAgainAfterItsRestart) {
  const std::string address = absl::StrCat("unix:/tmp/gradclip_failure_test.", getpid(), ".sock");
  auto server = std::make_unique<FakeServer>(address);
  Client client(address, QuickRetries(0));
  EXPECT_TRUE(client.CheckHealth().ok());
  server.reset();
  EXPECT_EQ(client.CheckHealth().code(), absl::StatusCode::kUnavailable);
  server = std::make_unique<FakeServer>(address);
  const absl::Status health = client.CheckHealth();
  EXPECT_TRUE(health.ok()) << health;
}

TEST(ClientFailure, GivesTheStatusOfAServerThatEndsTheCallWhileTheClientWrites) {
  FakeServer server;
  Client client(server.address());
  server.clip = [](ClipStream&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too much: --max-call-bytes");
  };
  for (int round = 0; round < 3; ++round) {
    auto gradient = std::make_unique<Gradient>(size_t{16} << 20);
    const absl::Status status = client.Clip(gradient->tensors(), MaxNormOne()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(status.message(), HasSubstr("too much: --max-call-bytes"));
    EXPECT_TRUE(gradient->unchanged());
  }
}

TEST(ClientFailure, EndsAtTheDeadlineWhereTheServerStopsReadingTheCall) {
  FakeServer server;
  Client client(server.address());
  absl::Notification done;
  server.clip = [&](ClipStream&) {
    done.WaitForNotification();
    return grpc::Status::OK;
  };
  auto gradient = std::make_unique<Gradient>(size_t{16} << 20);
  const absl::Status status =
      client.Clip(gradient->tensors(), MaxNormOne(), Within(absl::Milliseconds(200))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_TRUE(gradient->unchanged());
  gradient.reset();
  EXPECT_TRUE(client.CheckHealth().ok());
  done.Notify();
}

TEST(ClientFailure, EndsAtOnceWhereTheTimeoutIsOver) {
  FakeServer server;
  Client client(server.address());
  Gradient gradient(10);
  const absl::Status status =
      client.Clip(gradient.tensors(), MaxNormOne(), Within(absl::ZeroDuration())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

int ConnectToLoopback(int port) {
  const int connected = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  EXPECT_EQ(connect(connected, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return connected;
}

// What a server may open HTTP/2 with: SETTINGS with the largest initial window, and as much for the
// connection. The client may then send without end, so that only the socket stops it.
const std::string kEndlessWindow(
    "\0\0\6\4\0\0\0\0\0\0\4\x7f\xff\xff\xff"
    "\0\0\4\x8\0\0\0\0\0\x7f\xff\0\0",
    28);

// Stands between clients and a server, and takes `most` bytes from each client, which may send
// more: then that client's socket fills up. `most` has to be less than the server itself takes
// ahead.
class Relay {
 public:
  Relay(int server_port, size_t most) {
    thread_ = std::thread([this, server_port, most] {
      for (int client = 0; (client = listener_.Accept()) >= 0;) {
        const int server = ConnectToLoopback(server_port);
        EXPECT_EQ(write(client, kEndlessWindow.data(), kEndlessWindow.size()),
                  static_cast<ssize_t>(kEndlessWindow.size()));
        sockets_.insert(sockets_.end(), {client, server});
        copiers_.emplace_back([=] { Copy(client, server, most); });
        copiers_.emplace_back([=] { Copy(server, client, std::numeric_limits<size_t>::max()); });
      }
    });
  }
  ~Relay() {
    listener_.Shutdown();
    thread_.join();
    for (int one : sockets_) shutdown(one, SHUT_RDWR);
    for (std::thread& copier : copiers_) copier.join();
    for (int one : sockets_) close(one);
  }
  std::string address() const { return listener_.address(); }

 private:
  // Copies `most` bytes, or all until either side ends.
  static void Copy(int from, int to, size_t most) {
    char buffer[65536];
    for (size_t left = most; left > 0;) {
      const ssize_t bytes = read(from, buffer, std::min(left, sizeof(buffer)));
      if (bytes <= 0) {
        shutdown(to, SHUT_WR);
        return;
      }
      left -= static_cast<size_t>(bytes);
      for (ssize_t at = 0; at < bytes;) {
        const ssize_t written = send(to, buffer + at, bytes - at, MSG_NOSIGNAL);
        if (written <= 0) return;
        at += written;
      }
    }
  }

  const Listener listener_;
  std::vector<int> sockets_;
  std::vector<std::thread> copiers_;
  std::thread thread_;
};

// Accepts connections and reads nothing. With `settings` it allows the client to send without end,
// so that only the socket stops it.
class DeafServer {
 public:
  explicit DeafServer(std::string settings) {
    thread_ = std::thread([this, settings = std::move(settings)] {
      for (int one = 0; (one = listener_.Accept()) >= 0;) {
        EXPECT_EQ(write(one, settings.data(), settings.size()),
                  static_cast<ssize_t>(settings.size()));
        accepted_.push_back(one);
      }
    });
  }
  ~DeafServer() {
    listener_.Shutdown();
    thread_.join();
    for (int one : accepted_) close(one);
  }
  std::string address() const { return listener_.address(); }

 private:
  const Listener listener_;
  std::vector<int> accepted_;
  std::thread thread_;
};

TEST(ClientFailure, NamesAServerThatDoesNotSpeakGrpc) {
  for (const char* greeting : {"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n"}) {
    const DeafServer server(greeting);
    Client client(server.address(), QuickRetries(1));
    Gradient gradient(size_t{1} << 20);
    for (const absl::Status& status :
         {client.Clip(gradient.tensors(), MaxNormOne(), Within(absl::Seconds(20))).status(),
          client.GetServerInfo(Within(absl::Seconds(20))).status()}) {
      EXPECT_THAT(status.code(),
                  ::testing::AnyOf(absl::StatusCode::kUnavailable, absl::StatusCode::kInternal));
      EXPECT_THAT(status.message(),
                  AllOf(HasSubstr(server.address()),
                        ::testing::AnyOf(HasSubstr("gradclip-server"), HasSubstr("http1"))));
    }
    EXPECT_TRUE(gradient.unchanged());
  }
}

TEST(ClientFailure, EndsAtTheDeadlineAndLetsGoOfTheMemoryWhereTheServerIsDeaf) {
  for (const std::string& settings : {std::string(), kEndlessWindow}) {
    const DeafServer server(settings);
    Client client(server.address());
    for (int round = 0; round < 2; ++round) {
      auto gradient = std::make_unique<Gradient>(size_t{16} << 20);
      const absl::Time start = absl::Now();
      const absl::Status status =
          client.Clip(gradient->tensors(), MaxNormOne(), Within(absl::Milliseconds(300))).status();
      const absl::Duration taken = absl::Now() - start;
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
      EXPECT_LT(taken, absl::Seconds(5));
      EXPECT_TRUE(gradient->unchanged());
    }
    EXPECT_EQ(client.CheckHealth(Within(absl::Milliseconds(100))).code(),
              absl::StatusCode::kDeadlineExceeded);
  }
}

TEST(ClientFailure, ReportsDataLossWhereTheCallFailsAfterBytesCameBack) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream& stream) {
    ++calls;
    const std::string data = ReadAll(stream).data();
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    SendData(stream, std::string(data.size() / 2, '\0'));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
  };
  Gradient gradient(100);
  const absl::Status status =
      client.Clip(gradient.tensors(), MaxNormOne(ReplyMode::kGradient)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("200 of 400"), HasSubstr("some tensors are clipped and some are not"),
                    HasSubstr("UNAVAILABLE: gone")));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(gradient.values()[49], 0);
  EXPECT_EQ(gradient.values()[50], 1);
}

TEST(ClientFailure, TriesAgainWhereTheCallFailsBeforeBytesCameBack) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  std::atomic<int> calls = 0;
  server.clip = [&](ClipStream& stream) {
    const std::string data = ReadAll(stream).data();
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    if (++calls == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
    SendData(stream, std::string(data.size(), '\0'));
    return grpc::Status::OK;
  };
  Gradient gradient(100);
  const auto answer = client.Clip(gradient.tensors(), MaxNormOne(ReplyMode::kGradient));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(calls, 2);
  EXPECT_THAT(gradient.values(), Each(0.0f));
}

// What Clip gives where the server, asked for the gradient, does `reply` with the bytes sent.
template <typename Reply>
absl::Status StatusOfReply(Reply reply, Gradient& gradient, ReplyMode mode = ReplyMode::kGradient) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  server.clip = [&](ClipStream& stream) {
    reply(stream, ReadAll(stream).data());
    return grpc::Status::OK;
  };
  return client.Clip(gradient.tensors(), MaxNormOne(mode)).status();
}

TEST(ClientFailure, ReportsDataLossWhereTooFewOrTooManyBytesCameBack) {
  for (const int surplus : {-1, 1}) {
    Gradient gradient(100);
    const auto reply = [surplus](ClipStream& stream, const std::string& data) {
      SendResult(stream, 0.5, /*gradient_follows=*/true);
      SendData(stream, data.substr(0, 40));
      SendData(stream, std::string(data.size() - 40 + surplus, '\0'));
    };
    const absl::Status status = StatusOfReply(reply, gradient);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(status.message(), HasSubstr("INTERNAL: the server sent"));
  }
}

TEST(ClientFailure, IsInternalWhereTheServerBreaksTheContractBeforeBytesCameBack) {
  Gradient gradient(100);
  const auto code_of = [&](auto reply, ReplyMode mode) {
    return StatusOfReply(reply, gradient, mode).code();
  };
  const auto nothing = [](ClipStream&, const std::string&) {};
  const auto data_only = [](ClipStream& stream, const std::string& data) {
    SendData(stream, data);
  };
  const auto too_much = [](ClipStream& stream, const std::string& data) {
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    SendData(stream, data + "x");
  };
  const auto unasked = [](ClipStream& stream, const std::string& data) {
    SendResult(stream, 0.5);
    SendData(stream, data);
  };
  EXPECT_EQ(code_of(nothing, ReplyMode::kCoefficient), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(nothing, ReplyMode::kGradient), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(data_only, ReplyMode::kGradient), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(too_much, ReplyMode::kGradient), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(unasked, ReplyMode::kCoefficient), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(unasked, ReplyMode::kGradientIfChanged), absl::StatusCode::kInternal);
  EXPECT_TRUE(gradient.unchanged());
}

TEST(ClientFailure, IsInternalWhereTheServerSaysOkBeforeItHasTakenEverything) {
  FakeServer server;
  Client client(server.address());
  server.compute_norm = [](NormStream&, v1::ComputeNormResponse&) { return grpc::Status::OK; };
  const Gradient gradient(size_t{16} << 20);
  const absl::Status status = client.ComputeNorm(gradient.tensors()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(status.message(), HasSubstr("before it had taken the gradient's 67108864 bytes"));
}

TEST(ClientFailure, OneCallsDeadlineDoesNotEndTheOthers) {
  FakeServer server;
  Client client(server.address());
  absl::Notification done;
  server.clip = [&](ClipStream& stream) {
    v1::ClipGradNormRequest request;
    stream.Read(&request);
    if (request.start().max_norm() == 1) {
      done.WaitForNotification();
      return grpc::Status::OK;
    }
    while (stream.Read(&request)) {
    }
    SendResult(stream, 0.5);
    return grpc::Status::OK;
  };
  std::jthread stuck([&] {
    Gradient gradient(size_t{4} << 20);
    const absl::Status status =
        client.Clip(gradient.tensors(), MaxNormOne(), Within(absl::Milliseconds(200))).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    done.Notify();
  });
  while (!done.HasBeenNotified()) {
    Gradient gradient(1000);
    ClipOptions options;
    options.max_norm = 2;
    const auto answer = client.Clip(gradient.tensors(), options);
    EXPECT_TRUE(answer.ok()) << answer.status();
  }
}

TEST(ClientFailure, NamesTheMemoryWhereAMappedFileBecomesShorterWhileItIsSent) {
  FakeServer server;
  Client client(server.address(), QuickRetries());
  server.clip = [](ClipStream& stream) {
    ReadAll(stream);
    return grpc::Status::OK;
  };
  constexpr size_t kBytes = size_t{64} << 20;
  const int file = memfd_create("gradient", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, kBytes), 0);
  void* const mapped = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, file, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const Tensor tensor = {"w", DType::kFloat32, {kBytes / sizeof(float)}, mapped};
  CallOptions call;
  call.progress = [&](uint64_t done, uint64_t) {
    if (done > 0) {
      EXPECT_EQ(ftruncate(file, 4096), 0);
    }
  };
  const absl::Status status = client.Clip({&tensor, 1}, MaxNormOne(), call).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("its memory can't be read;"), Not(HasSubstr("tried"))));
  munmap(mapped, kBytes);
  close(file);
}

TEST(ClientFailure, EndsTheCallWhereTheProgressFunctionThrows) {
  FakeServer server;
  const DeafServer deaf(kEndlessWindow);
  server.clip = [](ClipStream& stream) {
    const std::string data = ReadAll(stream).data();
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    SendData(stream, data);
    return grpc::Status::OK;
  };
  const struct {
    std::string address;
    uint64_t limit;
  } cases[] = {
      {server.address(), 1},                  // as bytes go out,
      {deaf.address(), 1},                    // where nobody reads them,
      {server.address(), uint64_t{80} << 20}  // and as they come back
  };
  for (const auto& one : cases) {
    Client client(one.address);
    auto gradient = std::make_unique<Gradient>(size_t{16} << 20);
    CallOptions call;
    call.progress = [&](uint64_t done, uint64_t) {
      if (done >= one.limit) throw std::runtime_error("enough");
    };
    EXPECT_THROW(
        (void)client.Clip(gradient->tensors(), MaxNormOne(ReplyMode::kGradient), call).status(),
        std::runtime_error);
  }
}

TEST(ClientFailure, CuttingOneCallOffHarmsNoOther) {
  FakeServer server("127.0.0.1:0", /*window_bytes=*/64 << 20);
  const Relay relay(server.port(), /*most=*/32768);
  Client client(relay.address(), QuickRetries());
  absl::Notification half_is_back, other_is_over;
  server.clip = [&](ClipStream& stream) {
    const auto received = ReadAll(stream);
    if (received.starts.at(0).reply() != v1::REPLY_GRADIENT) return grpc::Status::OK;
    const std::string half(received.data().size() / 2, '\0');
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    SendData(stream, half);
    other_is_over.WaitForNotification();
    SendData(stream, half);
    return grpc::Status::OK;
  };
  Gradient gradient(1000);
  absl::Status status;
  std::jthread running([&] {
    CallOptions call;
    call.progress = [&](uint64_t done, uint64_t) {
      if (done == 6000) half_is_back.Notify();
    };
    status = client.Clip(gradient.tensors(), MaxNormOne(ReplyMode::kGradient), call).status();
  });
  half_is_back.WaitForNotification();
  {
    Gradient stuck(size_t{8} << 20);
    EXPECT_EQ(
        client.Clip(stuck.tensors(), MaxNormOne(), Within(absl::Milliseconds(300))).status().code(),
        absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(stuck.unchanged());
  }
  other_is_over.Notify();
  running.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(gradient.values(), Each(0.0f));
}

}  // namespace
}  // namespace gradclip
