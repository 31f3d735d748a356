// What a server has written and its peers have not taken yet: gRPC counts a reply as sent when the
// kernel has it. Thread-safe. Linux only.
#ifndef GRADCLIP_SERVER_RPC_UNREAD_H_
#define GRADCLIP_SERVER_RPC_UNREAD_H_

#include <chrono>
#include <string>
#include <vector>

namespace gradclip {

// Waits until no connection that this process has accepted at one of `addresses` ("HOST:PORT",
// "[IPV6]:PORT" or "unix:PATH", PORT not 0) holds anything back, or for the deadline. False where
// the deadline came first.
//
// TCP: until the peer's kernel has confirmed every byte. Unix: until the peer has read all but what
// it will get in one read, for a peer that idles leaves gRPC's own frames where they are.
bool AwaitRead(const std::vector<std::string>& addresses,
               std::chrono::steady_clock::time_point deadline);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_UNREAD_H_
