// memcpy past the caches, for bytes that will not be read soon. Thread-safe.
#ifndef GRADCLIP_SERVER_MEMORY_STREAMING_COPY_H_
#define GRADCLIP_SERVER_MEMORY_STREAMING_COPY_H_

#include <cstddef>

namespace gradclip {

// As std::memcpy(to, from, bytes). Lines of `to` are written without being read first and without
// pushing others out of the caches: measured 20 GB/s where memcpy had 11, for a source in the
// caches and a destination that is not.
void StreamingCopy(std::byte* to, const std::byte* from, size_t bytes);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_STREAMING_COPY_H_
