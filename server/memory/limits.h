// How much memory this process can have at all. Pure but for the files it reads; thread-safe.
#ifndef GRADCLIP_SERVER_MEMORY_LIMITS_H_
#define GRADCLIP_SERVER_MEMORY_LIMITS_H_

#include <cstdint>
#include <filesystem>

namespace gradclip {

// Bytes: the smallest of physical memory, memory.max of the process's cgroup v2 and of its
// ancestors, and memory.limit_in_bytes of its cgroup v1 and of its ancestors. What cannot be read
// limits nothing. `root` stands for the root directory, so that tests can bring files of their own.
uint64_t SystemMemoryLimit(const std::filesystem::path& root = "/");

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_LIMITS_H_
