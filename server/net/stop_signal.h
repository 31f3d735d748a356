// Tells a thread that polls to end. Thread-safe.
#ifndef GRADCLIP_SERVER_NET_STOP_SIGNAL_H_
#define GRADCLIP_SERVER_NET_STOP_SIGNAL_H_

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "server/net/file_descriptor.h"

namespace gradclip {

class StopSignal {
 public:
  StopSignal() : event_(eventfd(0, EFD_CLOEXEC)) {}

  // False where the system had no descriptor for it.
  bool ok() const { return event_.ok(); }
  // Readable from Send() on.
  int get() const { return event_.get(); }

  void Send() const {
    const uint64_t one = 1;
    while (write(event_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
  }

 private:
  FileDescriptor event_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_STOP_SIGNAL_H_
