// Measures and scales pieces of a gradient that lie in a device's memory, with the bits that
// norm/pieces.h finds of the same pieces in the host's. Pure functions, which wait for the device.
#ifndef GRADCLIP_SERVER_SESSION_DEVICE_PIECES_H_
#define GRADCLIP_SERVER_SESSION_DEVICE_PIECES_H_

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device.h"
#include "server/norm/pieces.h"
#include "server/session/call_spec.h"

namespace gradclip {

// Of whole tensors, or of part of one, as MeasureTensors() and MeasureBlocks() have it; but there
// is a summary for each piece, always. `host` measures what devices don't: p other than 1, 2 and
// infinity. Errors: DeviceMemory's.
absl::StatusOr<PiecesNorm> MeasureOnDevice(DeviceMemory& memory, const Backend& host,
                                           const CallSpec& spec, std::span<const Piece> pieces);

// Multiplies the elements of those that the coefficient changes, or assigns 0 to all. After an
// error some may be changed. Errors: DeviceMemory's.
absl::Status ScaleOnDevice(DeviceMemory& memory, std::span<const Piece> pieces, double coefficient,
                           bool assign_zero);

// The elements of one piece.
absl::StatusOr<std::vector<std::byte>> FetchFromDevice(DeviceMemory& memory, const Piece& piece);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_DEVICE_PIECES_H_
