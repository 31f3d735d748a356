// A port of this machine as if it were far away: who connects here speaks with the port, and every
// byte comes `delay` later, either way. What a network costs in time, not in packets.
#ifndef GRADCLIP_TESTS_BENCH_DISTANT_PORT_H_
#define GRADCLIP_TESTS_BENCH_DISTANT_PORT_H_

#include <cstdint>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "server/net/stop_signal.h"
#include "tests/client/gradclip/listener.h"

namespace gradclip::bench {

class DistantPort {
 public:
  // Of the loopback interface.
  DistantPort(uint16_t port, absl::Duration delay);
  // Breaks off what is connected.
  ~DistantPort();

  uint16_t port() const { return listener_.port(); }

 private:
  void Run() const;

  const std::string to_;
  const absl::Duration delay_;
  const Listener listener_;
  const StopSignal stop_;
  std::thread thread_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_DISTANT_PORT_H_
