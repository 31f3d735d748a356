// Tensors measured and scaled on a device, slot after slot, without a session. Errors of the device
// fail the test. Not thread-safe.
#ifndef GRADCLIP_TESTS_CONTRACT_ON_DEVICES_H_
#define GRADCLIP_TESTS_CONTRACT_ON_DEVICES_H_

#include <cstddef>
#include <span>

#include "server/backend/device.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// Adds a whole tensor to `total`, whose p is 1, 2 or infinity.
void MeasureOn(Devices& devices, DType dtype, std::span<const std::byte> tensor,
               NormPartial& total);

// Scales a whole tensor there and brings it back.
void ScaleOn(Devices& devices, DType dtype, std::span<std::byte> tensor, double coefficient);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CONTRACT_ON_DEVICES_H_
