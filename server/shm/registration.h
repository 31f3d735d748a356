// The messages of the memory socket, by which a client hands memory over: see PROTOCOL.md. Values
// and pure functions, for server and client alike.
#ifndef GRADCLIP_SERVER_SHM_REGISTRATION_H_
#define GRADCLIP_SERVER_SHM_REGISTRATION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace gradclip {

// What names a region in SharedRanges: random, so that nobody can guess it.
using RegionToken = std::array<std::byte, 16>;

// What a client sends, together with one memfd (SCM_RIGHTS) or followed by a CudaAllocation. On the
// wire, little-endian: the 8 bytes of kMagic, u32 version, u16 kind, u16 flags, u64 length in
// bytes, u64 offset in bytes (of kMemfd: zero).
struct Registration {
  static constexpr size_t kBytes = 32;
  static constexpr char kMagic[] = "GRADCLIP";
  static constexpr uint32_t kVersion = 1;
  static constexpr uint16_t kMemfd = 1;       // kind
  static constexpr uint16_t kCudaMemory = 2;  // kind
  static constexpr uint16_t kReadOnly = 1;    // flags: the server may only read

  uint64_t magic = 0;
  uint32_t version = kVersion;
  uint16_t kind = kMemfd;
  uint16_t flags = 0;
  uint64_t length = 0;
  uint64_t offset = 0;

  static constexpr uint64_t Magic() {
    uint64_t magic = 0;
    for (int i = 7; i >= 0; --i) magic = magic << 8 | static_cast<uint8_t>(kMagic[i]);
    return magic;
  }
};
static_assert(sizeof(Registration) == Registration::kBytes);

// What follows a registration of kCudaMemory: which memory the offset counts in.
struct CudaAllocation {
  static constexpr size_t kBytes = 80;

  std::array<std::byte, 16> uuid{};    // of the GPU
  std::array<std::byte, 64> handle{};  // cudaIpcMemHandle_t
};
static_assert(sizeof(CudaAllocation) == CudaAllocation::kBytes);

// What the server answers, followed by message_bytes of UTF-8. On the wire, little-endian: u32
// status, u32 message_bytes, the token.
struct RegistrationAnswer {
  static constexpr size_t kBytes = 24;
  static constexpr size_t kMostMessageBytes = 1024;

  uint32_t status = 0;  // a gRPC status code; 0: OK
  uint32_t message_bytes = 0;
  RegionToken token{};  // zeros where not OK
};
static_assert(sizeof(RegistrationAnswer) == RegistrationAnswer::kBytes);

// Both are laid out as they are sent, on the little-endian machines that the project is for.
template <typename Message>
std::array<std::byte, Message::kBytes> ToBytes(const Message& message) {
  std::array<std::byte, Message::kBytes> bytes;
  std::memcpy(bytes.data(), &message, Message::kBytes);
  return bytes;
}
template <typename Message>
Message FromBytes(std::span<const std::byte, Message::kBytes> bytes) {
  Message message;
  std::memcpy(&message, bytes.data(), Message::kBytes);
  return message;
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGISTRATION_H_
