// Elements in memory that a process and those it forks later have in common, 0 at first.
#ifndef GRADCLIP_EXAMPLES_TRAIN_SHARED_ARRAY_H_
#define GRADCLIP_EXAMPLES_TRAIN_SHARED_ARRAY_H_

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <span>
#include <type_traits>

namespace train {

template <typename T>
class SharedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // Throws std::bad_alloc where there is no memory, as a std::vector does.
  explicit SharedArray(size_t size) : size_(size) {
    void* const memory =
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
  }
  ~SharedArray() { munmap(data_, bytes()); }
  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  T& operator[](size_t i) const { return data_[i]; }
  std::span<T> Part(size_t offset, size_t size) const { return {data_ + offset, size}; }

 private:
  size_t bytes() const { return size_ * sizeof(T); }

  const size_t size_;
  T* data_ = nullptr;
};

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_SHARED_ARRAY_H_
