#include "tests/bench/rank_calls.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "server/wire/byte_buffer.h"
#include "tests/bench/caller.h"

namespace gradclip::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kElements = 16;

v1::ClipGradNormRequest StartOf(uint32_t rank, uint32_t ranks,
                                const std::optional<std::string>& job, uint64_t step) {
  v1::ClipGradNormRequest request;
  v1::ClipGradNormStart& start = *request.mutable_start();
  v1::TensorSpec& tensor = *start.add_tensors();
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.add_shape(kElements);
  start.set_max_norm(1);
  start.set_reply(v1::REPLY_COEFFICIENT);
  if (!job.has_value()) return request;
  v1::Group& group = *start.mutable_group();
  group.set_job(*job);
  group.set_step(step);
  group.set_rank(rank);
  group.set_world_size(ranks);
  return request;
}

}  // namespace

// One call, from event to event.
struct RankCalls::Rank {
  enum class State { kStart, kData, kRead, kFinish };

  std::optional<grpc::ClientContext> context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  State state = State::kStart;
  grpc::ByteBuffer reply;
  std::optional<v1::ClipResult> result;
  grpc::Status status;
};

RankCalls::RankCalls(const std::vector<std::string>& addresses, const RankCounts& counts)
    : ranks_of_a_job_(counts.ranks / counts.jobs) {
  const size_t on_each = (counts.ranks + addresses.size() - 1) / addresses.size();
  const size_t connections = (on_each + counts.on_a_connection - 1) / counts.on_a_connection;
  for (size_t i = 0; i < connections; ++i) {
    for (const std::string& address : addresses) {
      stubs_.push_back(std::make_unique<grpc::GenericStub>(OwnChannel(address)));
    }
  }
  for (uint32_t i = 0; i < counts.ranks; ++i) ranks_.push_back(std::make_unique<Rank>());
}

RankCalls::~RankCalls() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::StatusOr<RankCalls::Step> RankCalls::Run(const std::optional<std::string>& jobs,
                                               uint64_t step) {
  const auto count = static_cast<uint32_t>(ranks_.size());
  v1::ClipGradNormRequest data_message;
  data_message.set_data(std::string(kElements * sizeof(float), '\1'));
  const grpc::ByteBuffer data = Serialize(data_message);
  std::vector<grpc::ByteBuffer> starts;
  for (uint32_t i = 0; i < count; ++i) {
    std::optional<std::string> job = jobs;
    if (job.has_value()) absl::StrAppend(&*job, "/", i / ranks_of_a_job_);
    starts.push_back(Serialize(StartOf(i % ranks_of_a_job_, ranks_of_a_job_, job, step)));
  }

  const Clock::time_point begin = Clock::now();
  for (uint32_t i = 0; i < count; ++i) {
    Rank& rank = *ranks_[i];
    rank.stream.reset();  // before the context that its call lives in
    rank.context.emplace();
    rank.context->set_initial_metadata_corked(true);
    rank.result.reset();
    rank.state = Rank::State::kStart;
    rank.stream = stubs_[i % stubs_.size()]->PrepareCall(&*rank.context, kClipGradNorm, &queue_);
    rank.stream->StartCall(nullptr);
    rank.stream->Write(starts[i], &rank);
  }
  Clock::time_point written = begin;
  Clock::time_point answered = begin;
  for (uint32_t under_way = count; under_way > 0;) {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
    Rank& rank = *static_cast<Rank*>(tag);
    switch (rank.state) {
      case Rank::State::kStart:
        rank.state = Rank::State::kData;
        rank.stream->WriteLast(data, {}, &rank);
        break;
      case Rank::State::kData:
        written = Clock::now();
        rank.state = Rank::State::kRead;
        rank.stream->Read(&rank.reply, &rank);
        break;
      case Rank::State::kRead: {
        grpc::Slice bytes;
        v1::ClipGradNormResponse response;
        if (ok && rank.reply.DumpToSingleSlice(&bytes).ok() &&
            response.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size()))) {
          rank.result = response.result();
        }
        rank.state = Rank::State::kFinish;
        rank.stream->Finish(&rank.status, &rank);
        break;
      }
      case Rank::State::kFinish:
        answered = Clock::now();
        --under_way;
        break;
    }
  }
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    if (!rank->status.ok()) {
      return absl::Status(static_cast<absl::StatusCode>(rank->status.error_code()),
                          rank->status.error_message());
    }
    if (!rank->result.has_value() ||
        rank->result->coefficient() != ranks_[0]->result->coefficient()) {
      return absl::InternalError("ranks got different answers, or none");
    }
  }
  return Step{std::chrono::duration<double>(answered - begin).count(),
              std::chrono::duration<double>(answered - written).count()};
}

}  // namespace gradclip::bench
