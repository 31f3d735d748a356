// Ranks of a group, each with a connection of its own to a real server.
#ifndef GRADCLIP_TESTS_SERVER_RPC_GROUP_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_RPC_GROUP_FIXTURE_H_

#include <grpcpp/create_channel_posix.h>
#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/net/dial.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {

class GroupTest : public ServerTest {
 protected:
  // One rank's call, over a connection of its own.
  struct Rank {
    Rank() = default;
    Rank(Rank&&) = default;
    Rank& operator=(Rank&&) = default;
    ~Rank() {
      if (context == nullptr) return;
      context->TryCancel();
      if (!finished) Drain(*stream);
    }

    void Write(const v1::ClipGradNormRequest& request) { stream->Write(request); }
    void HalfClose() {
      half_closed = true;
      stream->WritesDone();
    }
    Reply Finish() {
      if (!half_closed) HalfClose();
      return AwaitEnd();
    }
    // Of a call that the server ends though more may be sent.
    Reply AwaitEnd() {
      finished = true;
      return Drain(*stream);
    }
    // What the peer sees of a process that is killed.
    void LoseConnection() { shutdown(connection, SHUT_RDWR); }

    int connection = -1;  // the channel's
    std::unique_ptr<v1::GradClip::Stub> stub;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<Stream> stream;
    bool half_closed = false;
    bool finished = false;
  };

  Rank Connect() { return Connect(*server_); }
  static Rank Connect(const Server& server) {
    Rank rank;
    rank.connection = Dial(server.addresses()[0]).Release();
    rank.stub = v1::GradClip::NewStub(grpc::CreateInsecureChannelFromFd("rank", rank.connection));
    rank.context = std::make_unique<grpc::ClientContext>();
    rank.stream = rank.stub->ClipGradNorm(rank.context.get());
    return rank;
  }

  // A start of one tensor.
  static v1::ClipGradNormRequest Start(uint32_t rank, uint32_t world_size, int64_t elements = 4,
                                       uint64_t step = 1, const std::string& job = "job") {
    v1::ClipGradNormRequest request = ClipStart(1, elements);
    v1::Group& group = *request.mutable_start()->mutable_group();
    group.set_job(job);
    group.set_step(step);
    group.set_rank(rank);
    group.set_world_size(world_size);
    return request;
  }

  Rank Begin(const v1::ClipGradNormRequest& start) { return Begin(*server_, start); }
  static Rank Begin(const Server& server, const v1::ClipGradNormRequest& start) {
    Rank rank = Connect(server);
    rank.Write(start);
    return rank;
  }

  // With all its data.
  Rank Send(const v1::ClipGradNormRequest& start, const std::vector<float>& gradient) {
    return Send(*server_, start, gradient);
  }
  static Rank Send(const Server& server, const v1::ClipGradNormRequest& start,
                   const std::vector<float>& gradient) {
    Rank rank = Begin(server, start);
    rank.Write(Data(Bytes(gradient)));
    rank.HalfClose();
    return rank;
  }

  // Until that many calls have a place in their steps.
  void AwaitRanks(uint64_t count) {
    while (server_->group_calls() != count) std::this_thread::yield();
  }

  // Ranks' whole calls, at once.
  std::vector<Reply> RunAll(const std::vector<v1::ClipGradNormRequest>& starts,
                            const std::vector<std::string>& gradients) {
    std::vector<Reply> replies(starts.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < starts.size(); ++i) {
      threads.emplace_back([&, i] {
        Rank rank = Begin(starts[i]);
        const size_t half = gradients[i].size() / 2;
        rank.Write(Data(gradients[i].substr(0, half)));
        rank.Write(Data(gradients[i].substr(half)));
        replies[i] = rank.Finish();
      });
    }
    for (std::thread& thread : threads) thread.join();
    return replies;
  }

  static std::string Message(const Reply& reply) { return reply.status.error_message(); }
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_RPC_GROUP_FIXTURE_H_
