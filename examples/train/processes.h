// Processes that work together, each a fork of this one.
#ifndef GRADCLIP_EXAMPLES_TRAIN_PROCESSES_H_
#define GRADCLIP_EXAMPLES_TRAIN_PROCESSES_H_

#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace train {

// Runs work(rank) in `count` processes and waits until all have ended well. Where one fails or dies
// the others, which may wait for it for ever, are killed, and the error says which and why. They
// end with this process, too. REQUIRES: this process has one thread; it must not have used gRPC,
// which does not outlive a fork.
absl::Status RunProcesses(size_t count, const std::function<absl::Status(size_t rank)>& work);

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_PROCESSES_H_
