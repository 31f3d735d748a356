// What gRPC itself can do with the contract's messages: ComputeNorm reads and drops them and
// answers one tiny message, ClipGradNorm keeps them and sends them back. The limit that GradClip is
// compared with.
#ifndef GRADCLIP_TESTS_BENCH_RAW_SERVER_H_
#define GRADCLIP_TESTS_BENCH_RAW_SERVER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace gradclip::bench {

// Serves on the addresses until the process is killed; prints "listening on ADDRESS" for each to
// standard output. Returns on errors alone.
absl::Status ServeRaw(const std::vector<std::string>& addresses);

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_RAW_SERVER_H_
