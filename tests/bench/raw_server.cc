#include "tests/bench/raw_server.h"

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "gradclip/v1/gradclip.grpc.pb.h"

namespace gradclip::bench {
namespace {

// A field of 8 bytes: as small as an answer gets.
grpc::ByteBuffer TinyMessage() {
  const grpc::Slice slice("\x0a\x06gone!!", 8);
  return grpc::ByteBuffer(&slice, 1);
}

class Sink final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  explicit Sink(grpc::ByteBuffer* response) : response_(response) { StartRead(&message_); }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      message_.Clear();
      return StartRead(&message_);
    }
    *response_ = TinyMessage();
    Finish(grpc::Status::OK);
  }
  void OnDone() override { delete this; }

  grpc::ByteBuffer* const response_;
  grpc::ByteBuffer message_;
};

class KeepAndEcho final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  KeepAndEcho() { StartRead(&message_); }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      kept_.push_back(message_);  // shares the slices
      message_.Clear();
      return StartRead(&message_);
    }
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the caller has left"));
    kept_[next_++].Clear();
    WriteNext();
  }

  void WriteNext() {
    if (kept_.empty()) return Finish(grpc::Status::OK);
    if (next_ + 1 < kept_.size()) return StartWrite(&kept_[next_]);
    StartWriteAndFinish(&kept_[next_], grpc::WriteOptions(), grpc::Status::OK);
  }

  void OnDone() override { delete this; }

  grpc::ByteBuffer message_;
  std::vector<grpc::ByteBuffer> kept_;
  size_t next_ = 0;
};

// The same generated classes as GradClip's own service.
class RawService final
    : public v1::GradClip::WithRawCallbackMethod_ComputeNorm<
          v1::GradClip::WithRawCallbackMethod_ClipGradNorm<v1::GradClip::Service>> {
 public:
  grpc::ServerReadReactor<grpc::ByteBuffer>* ComputeNorm(grpc::CallbackServerContext*,
                                                         grpc::ByteBuffer* response) override {
    return new Sink(response);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ClipGradNorm(
      grpc::CallbackServerContext*) override {
    return new KeepAndEcho();
  }
  // Answers with an empty message.
  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse*) override {
    return grpc::Status::OK;
  }
};

}  // namespace

absl::Status ServeRaw(const std::vector<std::string>& addresses) {
  RawService service;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  std::vector<int> ports(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) {
    builder.AddListeningPort(addresses[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("the raw server could not start");
  for (size_t i = 0; i < addresses.size(); ++i) {
    const std::string& address = addresses[i];
    const std::string bound =
        address.starts_with("unix:")
            ? address
            : absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[i]);
    std::cout << "listening on " << bound << std::endl;
  }
  server->Wait();
  return absl::UnavailableError("the raw server has stopped");
}

}  // namespace gradclip::bench
