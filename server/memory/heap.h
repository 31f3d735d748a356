// The process's malloc, set for a server that streams. Call KeepHeap() once, before other threads
// start; TrimHeap() is thread-safe.
#ifndef GRADCLIP_SERVER_MEMORY_HEAP_H_
#define GRADCLIP_SERVER_MEMORY_HEAP_H_

namespace gradclip {

// gRPC receives into allocations of 64 KiB and frees them a message later. By default glibc gives
// freed memory back to the system at once and takes new pages for the next message: zeroing and
// mapping them took more time than the norm (half the server's, in a profile of 1 MiB messages).
// From here on freed memory is kept, in one heap, so that the next message finds pages that are
// mapped and likely still in the caches. Does nothing for other allocators.
void KeepHeap();

// Gives back to the system what the heap keeps unused.
void TrimHeap();

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_HEAP_H_
