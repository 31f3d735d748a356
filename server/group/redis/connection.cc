#include "server/group/redis/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// No reply that is asked for comes near: a step of 100,000 ranks is some 6 MB.
constexpr size_t kMaxReplyBytes = size_t{512} << 20;
constexpr int kMaxElements = 1 << 22;

const redisReplyObjectFunctions& UsualFunctions() {
  static const redisReplyObjectFunctions functions = [] {
    redisReader* const reader = redisReaderCreate();
    const redisReplyObjectFunctions usual = *reader->fn;
    redisReaderFree(reader);
    return usual;
  }();
  return functions;
}

// hiredis makes room for as many elements as the other side says will come.
redisReplyObjectFunctions* BoundedFunctions() {
  static redisReplyObjectFunctions functions = [] {
    redisReplyObjectFunctions bounded = UsualFunctions();
    bounded.createArray = [](const redisReadTask* task, int elements) {
      return elements > kMaxElements ? nullptr : UsualFunctions().createArray(task, elements);
    };
    return bounded;
  }();
  return &functions;
}

}  // namespace

std::optional<std::string_view> TextOf(const redisReply& reply) {
  if (reply.type != REDIS_REPLY_STRING && reply.type != REDIS_REPLY_STATUS) return std::nullopt;
  return std::string_view(reply.str, reply.len);
}

std::optional<std::string_view> ErrorOf(const redisReply& reply) {
  if (reply.type != REDIS_REPLY_ERROR) return std::nullopt;
  return std::string_view(reply.str, reply.len);
}

std::optional<std::vector<std::string_view>> TextsOf(const redisReply& reply) {
  if (reply.type != REDIS_REPLY_ARRAY) return std::nullopt;
  std::vector<std::string_view> texts;
  texts.reserve(reply.elements);
  for (size_t i = 0; i < reply.elements; ++i) {
    const std::optional<std::string_view> text = TextOf(*reply.element[i]);
    if (!text.has_value()) return std::nullopt;
    texts.push_back(*text);
  }
  return texts;
}

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::Start(
    const RedisAddress& address) {
  Context context(redisConnectNonBlock(address.host.c_str(), address.port));
  if (context == nullptr) return absl::UnavailableError("no memory");
  if (context->err != 0) return absl::UnavailableError(context->errstr);
  context->reader->fn = BoundedFunctions();
  return std::unique_ptr<RedisConnection>(new RedisConnection(std::move(context)));
}

short RedisConnection::events() const {
  if (!connected_) return POLLOUT;
  return static_cast<short>(unsent_bytes() > 0 ? POLLIN | POLLOUT : POLLIN);
}

void RedisConnection::Send(const std::vector<std::string_view>& words) {
  std::string command = absl::StrCat("*", words.size(), "\r\n");
  for (const std::string_view word : words) {
    absl::StrAppend(&command, "$", word.size(), "\r\n");
    command.append(word);
    command.append("\r\n");
  }
  redisAppendFormattedCommand(context_.get(), command.data(), command.size());
}

size_t RedisConnection::unsent_bytes() const {
  return sdslen(context_->obuf);
}

absl::Status RedisConnection::Move(short revents) {
  redisContext* const context = context_.get();
  const auto failed = [context] {
    return absl::UnavailableError(context->errstr[0] != '\0' ? context->errstr
                                                             : "the connection was lost");
  };
  if (!connected_) {
    if (revents == 0) return absl::OkStatus();
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(context->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) return absl::UnavailableError(std::strerror(error));
    connected_ = true;
  }
  if ((revents & (POLLIN | POLLERR | POLLHUP)) != 0) {
    if (redisBufferRead(context) != REDIS_OK) return failed();
    if (context->reader->len > kMaxReplyBytes) {
      return absl::UnavailableError(
          absl::StrCat("a reply is longer than ", kMaxReplyBytes, " bytes"));
    }
  }
  if (unsent_bytes() > 0) {
    int done = 0;
    if (redisBufferWrite(context, &done) != REDIS_OK) return failed();
  }
  return absl::OkStatus();
}

absl::StatusOr<RedisReply> RedisConnection::Next() {
  void* reply = nullptr;
  if (redisGetReplyFromReader(context_.get(), &reply) != REDIS_OK) {
    return absl::UnavailableError(absl::StrCat("what came is no reply: ", context_->errstr));
  }
  return RedisReply(static_cast<redisReply*>(reply));
}

}  // namespace gradclip
