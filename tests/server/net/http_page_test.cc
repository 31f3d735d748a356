#include "server/net/http_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/server/net/http_get.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class HttpPageTest : public testing::Test {
 protected:
  explicit HttpPageTest(std::string text = "one 1\n") : text_(std::move(text)) {
    absl::StatusOr<Listener> listener = Listener::Open("127.0.0.1:0", std::nullopt);
    if (!listener.ok()) std::abort();
    address_ = listener->address();
    page_ = std::make_unique<HttpPage>(*std::move(listener), "/metrics", "text/plain", [this] {
      ++made_;
      return text_;
    });
    EXPECT_TRUE(page_->Start().ok());
  }

  std::string Get() { return Exchange(address_, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); }

  const std::string text_;
  std::atomic<int> made_ = 0;
  std::string address_;
  std::unique_ptr<HttpPage> page_;
};

TEST_F(HttpPageTest, AnswersGetWithThePage) {
  EXPECT_EQ(Get(),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n"
            "Connection: close\r\n\r\none 1\n");
  EXPECT_THAT(Exchange(address_, "GET /metrics?name=a HTTP/1.0\r\n\r\n"), EndsWith("one 1\n"));
  EXPECT_EQ(made_, 2);
}

TEST_F(HttpPageTest, AnswersHeadWithTheHeadersAlone) {
  EXPECT_THAT(
      Exchange(address_, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
      AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("Content-Length: 6\r\n"), EndsWith("\r\n\r\n")));
}

TEST_F(HttpPageTest, TakesARequestInPieces) {
  const FileDescriptor connection = Dial(address_);
  for (const char byte : std::string("GET /metrics HTTP/1.1\r\n\r\n")) {
    Send(connection, std::string(1, byte));
  }
  EXPECT_THAT(ReadAll(connection), EndsWith("one 1\n"));
}

TEST_F(HttpPageTest, RefusesAllElse) {
  EXPECT_THAT(Exchange(address_, "GET / HTTP/1.1\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 404 "), EndsWith("The metrics are at /metrics.\n")));
  EXPECT_THAT(Exchange(address_, "GET /metrics/x HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Exchange(address_, "POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"),
              AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: GET, HEAD\r\n")));
  for (const char* request : {"\r\n\r\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n",
                              "GET  HTTP/2.0\r\n\r\n", "\x16\x03\x01\r\n\r\n", " \r\n\r\n"}) {
    EXPECT_THAT(Exchange(address_, request), StartsWith("HTTP/1.1 400 ")) << request;
  }
  EXPECT_THAT(
      Exchange(address_, "GET /metrics HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n"),
      StartsWith("HTTP/1.1 431 "));
  EXPECT_EQ(made_, 0);
}

TEST_F(HttpPageTest, AnswersWhileOthersSayNothing) {
  std::vector<FileDescriptor> silent;
  for (size_t i = 0; i < 3 * HttpPage::kMaxConnections; ++i) {
    silent.push_back(Dial(address_));
    if (i % 2 == 0) Send(silent.back(), "GET /metr");
    EXPECT_THAT(Get(), EndsWith("one 1\n"));
  }
  // The oldest made room.
  EXPECT_TRUE(IsClosedByPeer(silent.front()));
}

TEST_F(HttpPageTest, StopsWhileOthersSayNothing) {
  const FileDescriptor silent = Dial(address_);
  const FileDescriptor talks = Dial(address_);
  Send(talks, "GET /");
  EXPECT_THAT(Get(), EndsWith("one 1\n"));  // so these two have been accepted
  page_.reset();
  EXPECT_TRUE(IsClosedByPeer(silent));
  EXPECT_TRUE(IsClosedByPeer(talks));
  EXPECT_FALSE(Dial(address_).ok());
}

class LargeHttpPage : public HttpPageTest {
 protected:
  LargeHttpPage() : HttpPageTest(std::string(size_t{64} << 20, 'x')) {}
};

TEST_F(LargeHttpPage, AnswersWhileOthersDoNotRead) {
  std::vector<FileDescriptor> lazy;
  for (int i = 0; i < 2; ++i) {
    lazy.push_back(Dial(address_));
    Send(lazy.back(), "GET /metrics HTTP/1.1\r\n\r\n");
  }
  EXPECT_EQ(BodyOf(Get()).size(), text_.size());
  EXPECT_EQ(BodyOf(ReadAll(lazy[0])).size(), text_.size());
}

TEST(HttpPageTime, IsBounded) {
  absl::StatusOr<Listener> listener = Listener::Open("127.0.0.1:0", std::nullopt);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string address = listener->address();
  const std::string text(size_t{64} << 20, 'x');
  HttpPage page(
      *std::move(listener), "/metrics", "text/plain", [&] { return text; },
      std::chrono::milliseconds(50));
  ASSERT_TRUE(page.Start().ok());
  const FileDescriptor silent = Dial(address);
  const FileDescriptor lazy = Dial(address);
  Send(lazy, "GET /metrics HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(IsClosedByPeer(silent));
  const FileDescriptor another = Dial(address);
  EXPECT_TRUE(IsClosedByPeer(another));
  EXPECT_LT(ReadAll(lazy).size(), text.size());
}

TEST(HttpPageAddress, IsRefusedWhereItIsTaken) {
  const absl::StatusOr<Listener> first = Listener::Open("127.0.0.1:0", std::nullopt);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second =
      Listener::Open(first->address(), std::nullopt, "--metrics-listen").status();
  EXPECT_EQ(second.message(), absl::string_view("cannot listen on " + first->address() +
                                                ": another process listens there; choose another "
                                                "address with --metrics-listen"));
}

}  // namespace
}  // namespace gradclip
