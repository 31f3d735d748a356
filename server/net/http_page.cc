#include "server/net/http_page.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How long to leave waiting connections alone where the system has nothing to accept them with.
constexpr milliseconds kPause{100};

bool WouldBlock(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

std::string Response(absl::string_view status, absl::string_view content_type,
                     absl::string_view more_headers, absl::string_view body, bool with_body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", content_type,
                      "\r\nContent-Length: ", body.size(), "\r\n", more_headers,
                      "Connection: close\r\n\r\n", with_body ? body : absl::string_view());
}

std::string Refusal(absl::string_view status, absl::string_view why,
                    absl::string_view more_headers = "", bool with_body = true) {
  return Response(status, "text/plain; charset=utf-8", more_headers, absl::StrCat(why, "\n"),
                  with_body);
}

}  // namespace

HttpPage::HttpPage(Listener listener, std::string path, std::string content_type,
                   std::function<std::string()> make, milliseconds most_time)
    : listener_(std::move(listener)),
      path_(std::move(path)),
      content_type_(std::move(content_type)),
      make_(std::move(make)),
      most_time_(most_time) {}

absl::Status HttpPage::Start() {
  if (!stop_.ok()) return absl::UnavailableError("cannot listen: there are too many open files");
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

HttpPage::~HttpPage() {
  if (!thread_.joinable()) return;
  stop_.Send();
  thread_.join();
}

void HttpPage::Run() {
  const std::vector<int> sockets = listener_.sockets();
  std::vector<pollfd> polled;
  while (true) {
    const steady_clock::time_point now = steady_clock::now();
    steady_clock::time_point wake = steady_clock::time_point::max();
    polled = {{stop_.get(), POLLIN, 0}};
    const bool accepts = now >= accepts_from_;
    if (!accepts) wake = accepts_from_;
    for (const int socket : sockets) {
      polled.push_back({accepts ? socket : -1, POLLIN, 0});  // poll() leaves -1 alone
    }
    for (const Connection& connection : connections_) {
      const bool writes = !connection.response.empty() && !connection.lingers;
      polled.push_back({connection.socket.get(), static_cast<short>(writes ? POLLOUT : POLLIN), 0});
      wake = std::min(wake, connection.end);
    }
    int timeout = -1;
    if (wake != steady_clock::time_point::max()) {
      timeout = static_cast<int>(std::max(std::chrono::ceil<milliseconds>(wake - now), {}).count());
    }
    if (poll(polled.data(), polled.size(), timeout) < 0) continue;  // interrupted
    if (polled[0].revents != 0) return;

    size_t at = 1 + sockets.size();
    for (auto connection = connections_.begin(); connection != connections_.end(); ++at) {
      const bool goes_on =
          (polled[at].revents == 0 || Move(*connection)) && steady_clock::now() < connection->end;
      connection = goes_on ? std::next(connection) : connections_.erase(connection);
    }
    for (size_t i = 0; i < sockets.size(); ++i) {
      if (polled[1 + i].revents != 0) Accept(sockets[i]);
    }
  }
}

void HttpPage::Accept(int socket) {
  FileDescriptor accepted(accept4(socket, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!accepted.ok()) {
    // It would be ready again at once.
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      accepts_from_ = steady_clock::now() + kPause;
    }
    return;
  }
  if (connections_.size() == kMaxConnections) {
    // One that has not asked, rather than one that is being answered.
    const auto silent = std::find_if(connections_.begin(), connections_.end(),
                                     [](const Connection& one) { return one.response.empty(); });
    connections_.erase(silent == connections_.end() ? connections_.begin() : silent);
  }
  Connection& connection = connections_.emplace_back();
  connection.socket = std::move(accepted);
  connection.end = steady_clock::now() + most_time_;
}

bool HttpPage::Move(Connection& connection) const {
  if (connection.lingers || connection.response.empty()) return Read(connection);
  return Write(connection);
}

bool HttpPage::Read(Connection& connection) const {
  std::array<char, 4096> bytes;
  const ssize_t got = recv(connection.socket.get(), bytes.data(), bytes.size(), 0);
  if (got <= 0) return got < 0 && WouldBlock(errno);
  if (connection.lingers) return true;
  connection.request.append(bytes.data(), static_cast<size_t>(got));
  if (connection.request.find("\r\n\r\n") != std::string::npos) {
    connection.response = Respond(connection.request);
  } else if (connection.request.size() > kMaxRequestBytes) {
    connection.response = Refusal("431 Request Header Fields Too Large",
                                  absl::StrCat("A request may have ", kMaxRequestBytes, " bytes."));
  } else {
    return true;
  }
  connection.request.clear();
  return Write(connection);
}

bool HttpPage::Write(Connection& connection) {
  const std::string& response = connection.response;
  const ssize_t sent = send(connection.socket.get(), response.data() + connection.sent,
                            response.size() - connection.sent, MSG_NOSIGNAL);
  if (sent < 0) return WouldBlock(errno);
  connection.sent += static_cast<size_t>(sent);
  if (connection.sent < response.size()) return true;
  connection.lingers = true;
  return shutdown(connection.socket.get(), SHUT_WR) == 0;
}

std::string HttpPage::Respond(std::string_view request) const {
  const std::string_view line = request.substr(0, request.find("\r\n"));
  const size_t method_end = line.find(' ');
  const size_t target_end = line.rfind(' ');
  if (method_end == std::string_view::npos || target_end == method_end ||
      line.substr(target_end + 1).rfind("HTTP/1.", 0) != 0) {
    return Refusal("400 Bad Request", "This is not a request of HTTP/1.1.");
  }
  const std::string_view method = line.substr(0, method_end);
  std::string_view target = line.substr(method_end + 1, target_end - method_end - 1);
  target = target.substr(0, target.find('?'));
  const bool with_body = method != "HEAD";
  if (with_body && method != "GET") {
    return Refusal("405 Method Not Allowed", "There are GET and HEAD here.",
                   "Allow: GET, HEAD\r\n");
  }
  if (target != path_) {
    return Refusal("404 Not Found", absl::StrCat("The metrics are at ", path_, "."), "", with_body);
  }
  return Response("200 OK", content_type_, "", make_(), with_body);
}

}  // namespace gradclip
