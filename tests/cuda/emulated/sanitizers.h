// Which sanitizer the code is compiled with, and what it has to be told.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_SANITIZERS_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_SANITIZERS_H_

#include <cstddef>

// The build defines these for the sources that it compiles without the sanitizer.
#if defined(EMULATED_CUDA_ASAN)
#elif defined(__SANITIZE_ADDRESS__)
#define EMULATED_CUDA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATED_CUDA_ASAN 1
#endif
#endif
#if defined(EMULATED_CUDA_TSAN)
#elif defined(__SANITIZE_THREAD__)
#define EMULATED_CUDA_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMULATED_CUDA_TSAN 1
#endif
#endif

#ifdef EMULATED_CUDA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATED_CUDA_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace gradclip::emulated_cuda {

#ifdef EMULATED_CUDA_ASAN
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif

inline void Poison([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMULATED_CUDA_ASAN
  __asan_poison_memory_region(memory, bytes);
#endif
}

inline void Unpoison([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMULATED_CUDA_ASAN
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

// Whoever acquires comes after all who have released, for ThreadSanitizer.
inline void Release([[maybe_unused]] char* point) {
#ifdef EMULATED_CUDA_TSAN
  __tsan_release(point);
#endif
}

inline void Acquire([[maybe_unused]] char* point) {
#ifdef EMULATED_CUDA_TSAN
  __tsan_acquire(point);
#endif
}

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_SANITIZERS_H_
