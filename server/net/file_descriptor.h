// A file descriptor that is closed with its owner. Not thread-safe.
#ifndef GRADCLIP_SERVER_NET_FILE_DESCRIPTOR_H_
#define GRADCLIP_SERVER_NET_FILE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace gradclip {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int number) : number_(number) {}
  FileDescriptor(FileDescriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~FileDescriptor() {
    if (number_ >= 0) close(number_);
  }

  int get() const { return number_; }  // negative: none
  bool ok() const { return number_ >= 0; }
  // Gives it away, open.
  int Release() { return std::exchange(number_, -1); }

 private:
  int number_ = -1;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_FILE_DESCRIPTOR_H_
