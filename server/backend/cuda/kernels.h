// The CUDA kernels and how they are launched. Both return at once: the work is queued on `stream`,
// of the device that is current. Thread-safe.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_KERNELS_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "server/backend/device_tables.h"

namespace gradclip {

// Runs in the device's memory. The table itself lies there, too.
struct DeviceRuns {
  const DeviceRun* runs = nullptr;
  uint32_t count = 0;
  uint64_t blocks = 0;  // of all of them: fewer than 2^30
};

// What elements are multiplied by, as Backend::Scale() says.
struct ScaleFactor {
  double coefficient = 1;
  bool in_double = false;    // elements of all types are multiplied in double: ScalesInDouble()
  bool assign_zero = false;  // elements are set to 0
  uint32_t dtypes = 0;       // bit d: elements of DType d; those of others stay
};

// A tally to which nothing was added.
DeviceTally EmptyTally();

// Adds what is found in the runs to *tally and, where `found` is not null, writes to found[b] what
// was found in block b. multiprocessors: of the device.
cudaError_t LaunchMeasure(cudaStream_t stream, int multiprocessors, NormKind kind, DeviceRuns runs,
                          DeviceTally* tally, DeviceBlock* found);

// Scales all elements of the runs in place.
cudaError_t LaunchScale(cudaStream_t stream, int multiprocessors, DeviceRuns runs,
                        const ScaleFactor& factor);

// Loads the kernels, so that no call has to. cudaErrorNoKernelImageForDevice where this build has
// no code for the device that is current.
cudaError_t CheckKernels();

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_KERNELS_H_
