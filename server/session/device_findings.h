// What devices found, as norms are made of it. Pure functions.
#ifndef GRADCLIP_SERVER_SESSION_DEVICE_FINDINGS_H_
#define GRADCLIP_SERVER_SESSION_DEVICE_FINDINGS_H_

#include <cstdint>

#include "server/backend/device.h"
#include "server/norm/gradient_norm.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// Whether devices measure such norms, and which kind they are: p = 1, 2 and infinity.
bool DevicesMeasure(double norm_type);
NormKind KindOf(double norm_type);  // REQUIRES: DevicesMeasure(norm_type)

// One run's part in what was found without per_block. Of non-finite elements only their number and
// the first one's place are known: all are put down to the run that has the first.
TensorSummary NonfiniteIn(const DeviceTally& tally, const DeviceRun& run);

// One run's part in what was found per_block: the sum of its blocks, counted or not, is added to
// `sum`; there is no norm in the summary.
TensorSummary AddBlocksOf(const DeviceFound& found, const DeviceRun& run, NormPartial& sum);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_DEVICE_FINDINGS_H_
