// Many ranks of one group, as calls of one thread over a few connections: their shards are tiny, so
// that what is measured is how they meet. Not thread-safe.
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

class RankCalls {
 public:
  // Ranks come to the servers in turn.
  RankCalls(const std::vector<std::string>& addresses, uint32_t ranks);
  ~RankCalls();
  RankCalls(const RankCalls&) = delete;
  RankCalls& operator=(const RankCalls&) = delete;

  struct Step {
    double seconds = 0;         // from the first call to the last answer
    double answer_seconds = 0;  // from when the last rank had written its last message to then
  };
  // One call of every rank: of a group of its own, or, without `job`, each for itself. INTERNAL
  // where answers differ.
  absl::StatusOr<Step> Run(const std::optional<std::string>& job, uint64_t step);

 private:
  struct Rank;

  const std::vector<std::string> addresses_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_RANK_CALLS_H_
