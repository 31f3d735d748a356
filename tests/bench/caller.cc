#include "tests/bench/caller.h"

#include "absl/strings/str_format.h"

namespace gradclip::bench {
namespace {

enum Event : intptr_t { kWritten, kRead, kFinished };

void* Tag(Event event) {
  return reinterpret_cast<void*>(event);
}

}  // namespace

std::shared_ptr<grpc::Channel> OwnChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

Caller::Caller(const std::string& address) : channel_(OwnChannel(address)), stub_(channel_) {}

Caller::~Caller() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status Caller::Call(const std::string& method, std::span<const grpc::ByteBuffer> messages,
                          uint64_t reply_bytes) {
  grpc::ClientContext context;
  context.set_initial_metadata_corked(true);
  const auto stream = stub_.PrepareCall(&context, method, &queue_);
  stream->StartCall(nullptr);

  size_t next = 0;
  const auto write = [&] {
    grpc::WriteOptions options;
    if (next + 1 == messages.size()) {
      options.set_last_message();
    } else if (next == 0) {
      options.set_buffer_hint();  // the start message leaves with the first data
    }
    stream->Write(messages[next++], options, Tag(kWritten));
  };
  grpc::ByteBuffer reply;
  grpc::Status status;
  uint64_t received = 0;
  write();
  bool writing = true;
  bool reading = false;
  bool finished = false;
  while (writing || !finished) {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
    switch (static_cast<Event>(reinterpret_cast<intptr_t>(tag))) {
      case kWritten:
        writing = ok && next < messages.size();
        if (writing) write();
        if (!reading) stream->Read(&reply, Tag(kRead));
        reading = true;
        break;
      case kRead:
        if (ok) {
          received += reply.Length();
          reply.Clear();
          stream->Read(&reply, Tag(kRead));
        } else {
          stream->Finish(&status, Tag(kFinished));
        }
        break;
      case kFinished:
        finished = true;
        break;
    }
  }
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrFormat("%s: %s", method, status.error_message()));
  }
  if (received < reply_bytes) {
    return absl::InternalError(absl::StrFormat("%s answered %d bytes where at least %d were due",
                                               method, received, reply_bytes));
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
