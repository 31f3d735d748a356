// Puts one registration together out of what a connection delivers: 32 bytes in any pieces, 80 more
// of CUDA memory, and the descriptors that come with them. Not thread-safe.
#ifndef GRADCLIP_SERVER_SHM_REGISTRATION_READER_H_
#define GRADCLIP_SERVER_SHM_REGISTRATION_READER_H_

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "server/net/file_descriptor.h"
#include "server/shm/registration.h"

namespace gradclip {

class RegistrationReader {
 public:
  enum class Progress {
    kWaiting,   // for more
    kComplete,  // Check() it
    kEnded,     // the peer has closed; ending() says how
  };

  // Takes what is there, without waiting. REQUIRES: the last answer was kWaiting, or Reset() came
  // since.
  Progress Read(int connection);
  void Reset() { *this = RegistrationReader(); }

  bool begun() const { return received_ > 0; }
  const std::string& ending() const { return ending_; }

  // What follows holds once it is complete.

  // What is wrong with it by itself. INVALID_ARGUMENT: the bytes are no registration of this
  // version, or more than one; what comes next on the connection can't be trusted to be one.
  absl::Status CheckBytes() const;
  // Whether exactly one descriptor came with it, or none with CUDA memory: INVALID_ARGUMENT, or
  // RESOURCE_EXHAUSTED where this process could not take it.
  absl::Status CheckDescriptor() const;

  Registration registration() const;
  int memfd() const { return memfd_.get(); }
  CudaAllocation cuda_allocation() const;  // REQUIRES: it is of CUDA memory

 private:
  void TakeDescriptors(msghdr& message);
  size_t size() const;  // of the registration, as far as can be told

  // One more than there may be, so that it shows where there are more.
  std::array<std::byte, Registration::kBytes + CudaAllocation::kBytes + 1> bytes_{};
  size_t received_ = 0;
  FileDescriptor memfd_;    // the only one so far
  size_t descriptors_ = 0;  // that came; all are closed where they are more than one
  bool truncated_ = false;  // some could not be taken
  std::string ending_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGISTRATION_READER_H_
