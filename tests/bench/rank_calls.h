// Many ranks of one job or several, as calls of one thread: their shards are tiny, so that what is
// measured is how they meet. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_RANK_CALLS_H_
#define GRADCLIP_TESTS_BENCH_RANK_CALLS_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip::bench {

// How many there are. REQUIRES: `jobs` divides `ranks`.
struct RankCounts {
  uint32_t ranks = 1;  // of all jobs
  uint32_t jobs = 1;
  uint32_t on_a_connection = 128;
};

class RankCalls {
 public:
  // Ranks come to the servers in turn.
  RankCalls(const std::vector<std::string>& addresses, const RankCounts& counts);
  ~RankCalls();
  RankCalls(const RankCalls&) = delete;
  RankCalls& operator=(const RankCalls&) = delete;

  struct Step {
    double seconds = 0;         // from the first call to the last answer
    double answer_seconds = 0;  // from when the last rank had written its last message to then
  };
  // One call of every rank: with those of its job, whose names begin with `jobs`, or, without that,
  // each for itself. INTERNAL where answers differ.
  absl::StatusOr<Step> Run(const std::optional<std::string>& jobs, uint64_t step);

 private:
  struct Rank;

  const uint32_t ranks_of_a_job_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_RANK_CALLS_H_
