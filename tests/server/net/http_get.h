// One request over HTTP, with sockets alone.
#ifndef GRADCLIP_TESTS_SERVER_NET_HTTP_GET_H_
#define GRADCLIP_TESTS_SERVER_NET_HTTP_GET_H_

#include <sys/socket.h>

#include <string>

#include "server/net/file_descriptor.h"
#include "tests/server/net/dial.h"

namespace gradclip {

// All that comes until the other side closes.
inline std::string ReadAll(const FileDescriptor& connection) {
  std::string all;
  char bytes[4096];
  for (ssize_t got = 0; (got = recv(connection.get(), bytes, sizeof(bytes), 0)) > 0;) {
    all.append(bytes, static_cast<size_t>(got));
  }
  return all;
}

inline void Send(const FileDescriptor& connection, const std::string& bytes) {
  send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

// What `address` ("127.0.0.1:9090") answers to these bytes; empty where nobody listens.
inline std::string Exchange(const std::string& address, const std::string& request) {
  const FileDescriptor connection = Dial(address);
  if (!connection.ok()) return "";
  Send(connection, request);
  return ReadAll(connection);
}

inline std::string BodyOf(const std::string& response) {
  const size_t end = response.find("\r\n\r\n");
  return end == std::string::npos ? "" : response.substr(end + 4);
}

// The body of a GET, whatever the status. (Of HTTP/1.0: then it comes in one piece.)
inline std::string HttpGet(const std::string& address, const std::string& target) {
  return BodyOf(Exchange(address, "GET " + target + " HTTP/1.0\r\nHost: " + address + "\r\n\r\n"));
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_NET_HTTP_GET_H_
