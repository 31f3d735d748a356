#include "client/gradclip/call.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/status.h"
#include "server/wire/trace_context.h"

namespace gradclip {
namespace {

// How long after a call's end gRPC may take to let go of it before the connection is cut. A write
// that the server takes at all is through in less.
constexpr absl::Duration kGrace = absl::Milliseconds(100);

enum class Event : intptr_t { kWritten, kRead, kFinished };

absl::Status FromGrpc(const grpc::Status& status) {
  // gRPC's own words for a call that it ended; a server's say what the server waited for.
  if (status.error_message() == "Deadline Exceeded") {
    return absl::DeadlineExceededError("the call's timeout is over");
  }
  // The system could not read what it was to send. Another try would not change that.
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      status.error_message() == std::strerror(EFAULT)) {
    return absl::FailedPreconditionError(
        "the gradient was not sent: its memory can't be read; it was unmapped, or the file that is "
        "mapped there has become shorter");
  }
  // gRPC's at the server, for a message of many times the limit.
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
      absl::StartsWith(status.error_message(), "Received message larger than max")) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "a message of ClientOptions::message_bytes is many times what the server takes "
        "(--max-message-bytes there); it says: %s",
        status.error_message()));
  }
  // gRPC's at a server that stops, for a call that nobody there has seen (grpc/grpc#41785). It is
  // not ours: who cancels here returns another status.
  if (status.error_code() == grpc::StatusCode::CANCELLED && status.error_message() == "CANCELLED") {
    return absl::UnavailableError("the server stopped before it took the call");
  }
  // gRPC's for a connection that ended amid a call, sometimes, or on which nobody speaks gRPC.
  if (status.error_code() == grpc::StatusCode::UNKNOWN &&
      (absl::StartsWith(status.error_message(), "Stream removed") ||
       absl::StartsWith(status.error_message(), "Error in HTTP transport"))) {
    return absl::UnavailableError(
        "the connection ended before the answer; check that it is a gradclip-server that listens "
        "there");
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// gRPC ends the process over metadata that can't be sent.
absl::Status CheckTerms(const CallTerms& terms) {
  if (terms.traceparent.empty() || ParseTraceparent(terms.traceparent).has_value()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "CallOptions::traceparent is not as W3C Trace Context has it: 00-TRACE_ID-SPAN_ID-FLAGS, in "
      "lower-case hexadecimal");
}

// The events of one call. Outlives the reader and writer over it.
class CallEvents {
 public:
  CallEvents(Connection& connection, const CallTerms& terms)
      : connection_(connection), give_up_(terms.deadline + kGrace) {
    if (terms.deadline != absl::InfiniteFuture()) {
      context_.set_deadline(absl::ToChronoTime(terms.deadline));
    }
    if (!terms.traceparent.empty()) {
      context_.AddMetadata(kTraceparent, std::string(terms.traceparent));
    }
    if (!connection.token().empty()) {
      context_.AddMetadata("authorization", absl::StrCat("Bearer ", connection.token()));
    }
  }

  ~CallEvents() {
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  grpc::ClientContext& context() { return context_; }
  grpc::CompletionQueue& queue() { return queue_; }

  // The tag of an operation that is started now.
  void* Start(Event event) {
    ++under_way_;
    return reinterpret_cast<void*>(event);
  }

  void Cancel() {
    context_.TryCancel();
    give_up_ = std::min(give_up_, absl::Now() + kGrace);
  }

  // Ends all that is under way.
  void End() {
    if (under_way_ > 0) Cancel();
    for (bool ok = false; under_way_ > 0;) Next(ok);
  }

  // Waits for the next one. REQUIRES: something is under way.
  Event Next(bool& ok) {
    --under_way_;
    void* tag = nullptr;
    if (give_up_ != absl::InfiniteFuture()) {
      if (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(give_up_)) ==
          grpc::CompletionQueue::GOT_EVENT) {
        return static_cast<Event>(reinterpret_cast<intptr_t>(tag));
      }
      // The call is over, but gRPC sits on a write that the server does not take.
      connection_.Cut();
      give_up_ = absl::InfiniteFuture();
    }
    queue_.Next(&tag, &ok);
    return static_cast<Event>(reinterpret_cast<intptr_t>(tag));
  }

 private:
  Connection& connection_;
  absl::Time give_up_;
  int under_way_ = 0;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
};

absl::Status Stream(Connection& connection, const std::string& method,
                    const grpc::ByteBuffer& start, Outgoing& outgoing, const CallTerms& terms,
                    const StreamHandlers& handlers) {
  CallEvents events(connection, terms);
  // The call's headers leave with the start message. (Data can't leave with it: gRPC writes at once
  // where a stream begins, whatever the hints.)
  events.context().set_initial_metadata_corked(true);
  grpc::GenericStub stub(connection.channel());
  const auto stream = stub.PrepareCall(&events.context(), method, &events.queue());
  stream->StartCall(nullptr);
  grpc::ByteBuffer reply;
  grpc::Status status;
  // Handlers may throw: then too gRPC has to be done with all that is declared above.
  const absl::Cleanup end = [&events] { events.End(); };

  grpc::WriteOptions options;
  if (outgoing.done()) options.set_last_message();
  stream->Write(start, options, events.Start(Event::kWritten));
  bool writing = true;
  bool reads_begun = false;
  bool all_sent = false;
  bool finished = false;
  absl::Status broken;  // by a reply
  while (writing || !finished) {
    bool ok = false;
    switch (events.Next(ok)) {
      case Event::kWritten:
        writing = false;
        if (ok) {
          handlers.on_sent(outgoing.cut_bytes());
          all_sent = outgoing.done();
        }  // Else the server has ended the call; the reads find out how.
        if (ok && !all_sent && broken.ok()) {
          const grpc::ByteBuffer message = outgoing.Next();
          if (outgoing.done()) options.set_last_message();
          stream->Write(message, options, events.Start(Event::kWritten));
          writing = true;
        }
        if (!reads_begun) stream->Read(&reply, events.Start(Event::kRead));
        reads_begun = true;
        break;
      case Event::kRead:
        if (ok && broken.ok()) {
          broken = handlers.on_reply(reply, outgoing.cut_bytes());
          if (!broken.ok()) events.Cancel();
        }
        if (ok) {
          stream->Read(&reply, events.Start(Event::kRead));
        } else {
          stream->Finish(&status, events.Start(Event::kFinished));
        }
        break;
      case Event::kFinished:
        finished = true;
        break;
    }
  }
  if (!broken.ok()) return broken;
  if (status.ok() && !all_sent) {
    return absl::InternalError(
        absl::StrFormat("the server ended the call with OK before it had taken the gradient's %d "
                        "bytes",
                        outgoing.total_bytes()));
  }
  return FromGrpc(status);
}

}  // namespace

absl::Status RunStream(Connection& connection, const std::string& method,
                       const grpc::ByteBuffer& start, Outgoing& outgoing, const CallTerms& terms,
                       const StreamHandlers& handlers) {
  if (absl::Status sound = CheckTerms(terms); !sound.ok()) return sound;
  // What was never written goes with the call. What the socket was taking comes back within
  // moments, or by force.
  const absl::Cleanup take_back = [&] {
    if (outgoing.AwaitReturn(kGrace)) return;
    connection.Cut();
    outgoing.AwaitReturn(absl::InfiniteDuration());
  };
  return Stream(connection, method, start, outgoing, terms, handlers);
}

absl::Status RunUnary(Connection& connection, const std::string& method,
                      const grpc::ByteBuffer& request, const CallTerms& terms,
                      grpc::ByteBuffer& response) {
  if (absl::Status sound = CheckTerms(terms); !sound.ok()) return sound;
  CallEvents events(connection, terms);
  grpc::GenericStub stub(connection.channel());
  const auto call = stub.PrepareUnaryCall(&events.context(), method, request, &events.queue());
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, events.Start(Event::kFinished));
  bool ok = false;
  events.Next(ok);
  return FromGrpc(status);
}

}  // namespace gradclip
