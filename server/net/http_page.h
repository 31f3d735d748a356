// One page over HTTP/1.1, on a thread of its own: what Prometheus scrapes.
//
// Context: prometheus-cpp has a server for this, the Exposer, on CivetWeb. Of Debian 12's (1.0.1 on
// 1.15), with 2 threads and a request timeout of 3 s: three connections that say nothing delayed a
// scrape by 2.7 s, six by 8.7 s, as each holds a thread; it took 2 s to stop, connections or none;
// an address that is taken is an exception without a reason in it. Decision: prometheus-cpp makes
// the text, and this serves it. Consequence: one thread, however many connect. Connections that say
// nothing or do not read hold nobody up: there are a few places, the oldest makes room for the
// newest, and none has one for longer than a while.
//
// Without TLS and without authentication: for an address that only the monitoring can reach.
// Not thread-safe; the page is made on the thread.
#ifndef GRADCLIP_SERVER_NET_HTTP_PAGE_H_
#define GRADCLIP_SERVER_NET_HTTP_PAGE_H_

#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "server/net/file_descriptor.h"
#include "server/net/listener.h"
#include "server/net/stop_signal.h"

namespace gradclip {

class HttpPage {
 public:
  static constexpr size_t kMaxConnections = 16;
  static constexpr size_t kMaxRequestBytes = 8192;
  // From a connection's beginning to its end.
  static constexpr std::chrono::seconds kMostTime{10};

  // GET and HEAD of `path` ("/metrics") get what `make` returns at that moment, as `content_type`;
  // other paths 404, and other methods 405. `most_time` is for tests.
  HttpPage(Listener listener, std::string path, std::string content_type,
           std::function<std::string()> make, std::chrono::milliseconds most_time = kMostTime);
  ~HttpPage();

  HttpPage(const HttpPage&) = delete;
  HttpPage& operator=(const HttpPage&) = delete;

  // Once. UNAVAILABLE where the system has no descriptor for it.
  absl::Status Start();

 private:
  struct Connection {
    FileDescriptor socket;
    std::chrono::steady_clock::time_point end;  // when it is closed, whatever it does
    std::string request;
    std::string response;  // empty: the request is not complete
    size_t sent = 0;       // of the response
    // All is sent: what still comes is thrown away, as closing with bytes unread would take the
    // response from the peer.
    bool lingers = false;
  };

  void Run();
  void Accept(int socket);
  // False: the connection is over.
  bool Move(Connection& connection) const;
  bool Read(Connection& connection) const;
  static bool Write(Connection& connection);
  std::string Respond(std::string_view request) const;

  const Listener listener_;
  const std::string path_;
  const std::string content_type_;
  const std::function<std::string()> make_;
  const std::chrono::milliseconds most_time_;
  const StopSignal stop_;

  // The thread's.
  std::list<Connection> connections_;  // the oldest first
  std::chrono::steady_clock::time_point accepts_from_;

  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_HTTP_PAGE_H_
