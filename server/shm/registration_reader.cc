#include "server/shm/registration_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// What one message can carry (SCM_MAX_FD). With room for all of them none gets lost unseen.
constexpr size_t kMostDescriptors = 253;

constexpr size_t kMagicBytes = sizeof(Registration::magic);

bool IsTryAgain(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

// Whether a byte can be read. Takes nothing.
bool HasMore(int connection) {
  std::byte next;
  return recv(connection, &next, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

}  // namespace

RegistrationReader::Progress RegistrationReader::Read(int connection) {
  iovec rest = {bytes_.data() + received_, bytes_.size() - received_};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostDescriptors * sizeof(int))> control;
  msghdr message = {};
  message.msg_iov = &rest;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t count = recvmsg(connection, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0) {
    if (IsTryAgain(errno)) return Progress::kWaiting;
    ending_ = strerror(errno);
    return Progress::kEnded;
  }
  if (count == 0) {
    ending_ = begun()
                  ? absl::StrCat("the peer closed it after ", received_, " bytes of a registration")
                  : "the peer closed it";
    return Progress::kEnded;
  }
  TakeDescriptors(message);
  received_ += static_cast<size_t>(count);

  // Somebody who speaks another protocol is told at once, though less than 32 bytes may have come.
  const auto magic = ToBytes(Registration{.magic = Registration::Magic()});
  const size_t compared = std::min(received_, kMagicBytes);
  if (!std::equal(bytes_.begin(), bytes_.begin() + compared, magic.begin())) {
    return Progress::kComplete;
  }
  if (received_ < size()) return Progress::kWaiting;
  // recvmsg() stops behind a message that carries descriptors, so that more may be there.
  if (received_ == size() && HasMore(connection)) ++received_;
  return Progress::kComplete;
}

size_t RegistrationReader::size() const {
  const Registration start = registration();
  const bool of_cuda = received_ >= Registration::kBytes &&
                       start.version == Registration::kVersion &&
                       start.kind == Registration::kCudaMemory;
  return Registration::kBytes + (of_cuda ? CudaAllocation::kBytes : 0);
}

void RegistrationReader::TakeDescriptors(msghdr& message) {
  if ((message.msg_flags & MSG_CTRUNC) != 0) truncated_ = true;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      FileDescriptor descriptor(number);  // closed here, unless it is the first
      if (++descriptors_ == 1) memfd_ = std::move(descriptor);
    }
  }
  if (descriptors_ > 1) memfd_ = FileDescriptor();
}

Registration RegistrationReader::registration() const {
  return FromBytes<Registration>(
      std::span<const std::byte, Registration::kBytes>(bytes_.data(), Registration::kBytes));
}

CudaAllocation RegistrationReader::cuda_allocation() const {
  return FromBytes<CudaAllocation>(std::span<const std::byte, CudaAllocation::kBytes>(
      bytes_.data() + Registration::kBytes, CudaAllocation::kBytes));
}

absl::Status RegistrationReader::CheckBytes() const {
  const Registration message = registration();
  if (message.magic != Registration::Magic()) {
    return absl::InvalidArgumentError(
        "this is no registration of memory, whose first 8 bytes are GRADCLIP: calls go to the "
        "server's other addresses");
  }
  if (message.version != Registration::kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("version ", message.version,
                                                   " of registrations; this server knows version ",
                                                   Registration::kVersion));
  }
  if (message.kind != Registration::kMemfd && message.kind != Registration::kCudaMemory) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory of kind ", message.kind,
                     "; this server knows kinds 1 (a memfd) and 2 (CUDA memory)"));
  }
  if (received_ > size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("more than the ", size(),
                     " bytes of a registration came before its answer: wait for that before the "
                     "next"));
  }
  if ((message.flags & ~Registration::kReadOnly) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("flags ", message.flags, "; this server knows 1 (read only) alone"));
  }
  if (message.kind == Registration::kMemfd && message.offset != 0) {
    return absl::InvalidArgumentError("the last 8 bytes of a memfd's registration must be zero");
  }
  return absl::OkStatus();
}

absl::Status RegistrationReader::CheckDescriptor() const {
  if (truncated_) {
    return absl::ResourceExhaustedError(
        "the server has no descriptor left to take those that came with (ulimit -n): try again "
        "later");
  }
  if (registration().kind == Registration::kCudaMemory) {
    if (descriptors_ == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(descriptors_,
                     " descriptors came with the registration of CUDA memory; it has "
                     "none"));
  }
  if (descriptors_ != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(descriptors_,
                     " descriptors came with the registration; send one, the memfd, "
                     "by SCM_RIGHTS"));
  }
  return absl::OkStatus();
}

}  // namespace gradclip
