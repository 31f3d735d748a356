// A gradient in memory of a GPU, measured and clipped there by a server on the same host: nothing
// leaves the GPU. The library itself knows nothing of CUDA; its caller does:
//
//   gradclip::CudaMemory memory = {.bytes = bytes};  // of what cudaMalloc gave
//   cudaIpcGetMemHandle(reinterpret_cast<cudaIpcMemHandle_t*>(memory.handle.data()), pointer);
//   std::memcpy(memory.uuid.data(), &properties.uuid, 16);  // of cudaGetDeviceProperties
//   gradclip::Client client("unix:/run/gradclip/server.sock");
//   auto gradient = gradclip::CudaGradient::Make(
//       client, memory, {{{"weight", gradclip::DType::kFloat32, {768, 768}}}}, {{0}});
//   cudaStreamSynchronize(stream);  // what is to be measured has been written
//   absl::StatusOr<gradclip::ClipAnswer> answer = gradient->Clip(options);
//   gradient->Release(absl::Seconds(10));  // and only then
//   cudaFree(pointer);
//
// The server has to have a --memory-socket and --allow-cuda-ipc, and to use that GPU; its
// server/shm/PROTOCOL.md says more, also of the memory that can be shared. The library can't read
// the memory, so nothing is streamed where the server refuses: the call ends with its reason.
//
// A CudaGradient belongs to one thread at a time, its memory included while a call runs. Several
// may share a client.
#ifndef GRADCLIP_CUDA_GRADIENT_H_
#define GRADCLIP_CUDA_GRADIENT_H_

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradclip/client.h"

namespace gradclip {

// `bytes` of an allocation of cudaMalloc or cuMemAlloc, from byte `offset` of it on.
struct CudaMemory {
  std::array<std::byte, 64> handle{};  // cudaIpcMemHandle_t of the allocation
  std::array<std::byte, 16> uuid{};    // of the GPU: cudaDeviceProp::uuid
  uint64_t offset = 0;                 // a multiple of the size of each tensor's elements
  uint64_t bytes = 0;
};

struct CudaGradientOptions {
  // Users, beside root and the caller's own, who may be given the memory, as of
  // SharedGradientOptions.
  std::vector<uid_t> server_uids;
};

class SharedCalls;

class CudaGradient {
 public:
  // tensors[i] begins at byte offsets[i] of `memory`, a multiple of its element's size (their data
  // is ignored). Asks no server: that is for the first call. `client` has to outlive it, and the
  // memory has to stay until Release(). INVALID_ARGUMENT says which tensor does not fit, or
  // overlaps another.
  static absl::StatusOr<CudaGradient> Make(Client& client, const CudaMemory& memory,
                                           std::span<const Tensor> tensors,
                                           std::span<const uint64_t> offsets,
                                           CudaGradientOptions options = {});

  // As Release(), for at most 5 s.
  ~CudaGradient();
  CudaGradient(CudaGradient&&) noexcept;
  CudaGradient& operator=(CudaGradient&&) noexcept;

  // Answers and errors as Client::ComputeNorm; and where the memory is refused, the status that the
  // server gave: UNIMPLEMENTED where it shares no memory of GPUs, FAILED_PRECONDITION where it has
  // no memory socket or does not use the GPU, and those of server/shm/PROTOCOL.md. The
  // server may only read the memory.
  // REQUIRES: the memory has been written, and nothing writes to it until the call returns.
  absl::StatusOr<NormAnswer> ComputeNorm(const NormOptions& options = {},
                                         const CallOptions& call = {});

  // The same. Who multiplies is up to ClipOptions::reply:
  //   kCoefficient        the caller, by ClipAnswer::coefficient. Where ClipAnswer::skipped is
  //                       true, elements become 0 for the coefficient 0, and stay otherwise. The
  //                       server may only read.
  //   all others          the server, in place. A call that failed after the memory was handed to
  //                       it is DATA_LOSS, as of SharedGradient::Clip.
  // REQUIRES: nothing else uses the memory until the call returns. What the server does to it is
  // done by then.
  absl::StatusOr<ClipAnswer> Clip(const ClipOptions& options, const CallOptions& call = {});

  // Gives the memory up and waits until the server has let go of it; false where it has not after
  // `patience`: it may still use it then, and to free it would be undefined. A later call hands it
  // over again.
  bool Release(absl::Duration patience);

 private:
  explicit CudaGradient(std::unique_ptr<SharedCalls> calls);

  std::unique_ptr<SharedCalls> calls_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CUDA_GRADIENT_H_
