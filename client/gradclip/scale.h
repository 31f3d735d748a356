// Applies a ClipResult's coefficient to the caller's memory, as the server would have. Pure
// functions; thread-safe on memory that does not overlap.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SCALE_H_
#define GRADCLIP_CLIENT_GRADCLIP_SCALE_H_

#include <cstdint>
#include <span>

#include "gradclip/client.h"
#include "server/backend/backend.h"

namespace gradclip {

// Multiplies every element of the tensors in place. Where the step is `skipped`, assigns 0 for the
// coefficient 0 and else changes nothing. Gradients above 32 MiB are shared among as many threads
// as the machine has; the bits do not depend on it.
void ApplyCoefficient(const Backend& backend, std::span<const Tensor> tensors, double coefficient,
                      bool skipped);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SCALE_H_
