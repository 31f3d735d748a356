#include "client/gradclip/payload.h"

#include <algorithm>
#include <utility>

namespace gradclip {
namespace {

// Below this many bytes a copy costs less than a slice of its own.
constexpr uint64_t kCopiedBelow = 8192;

// Of both requests: length-delimited fields, number << 3 | 2.
constexpr char kStartTag = 0x0a;
constexpr char kDataTag = 0x12;

void AppendHeader(char tag, uint64_t length, std::string& out) {
  out.push_back(tag);
  for (; length >= 0x80; length >>= 7) out.push_back(static_cast<char>(length | 0x80));
  out.push_back(static_cast<char>(length));
}

}  // namespace

grpc::Slice Ledger::Lend(const std::shared_ptr<Ledger>& ledger, const std::byte* data,
                         size_t bytes) {
  {
    std::lock_guard lock(ledger->mutex_);
    ++ledger->lent_;
    ledger->self_ = ledger;
  }
  // gRPC only reads what it sends.
  return grpc::Slice(const_cast<std::byte*>(data), bytes, &GiveBack, ledger.get());
}

void Ledger::GiveBack(void* ledger) {
  auto* const self = static_cast<Ledger*>(ledger);
  std::shared_ptr<Ledger> last;  // which may destroy the ledger, after the lock is released
  std::lock_guard lock(self->mutex_);
  if (--self->lent_ > 0) return;
  last = std::move(self->self_);
  self->returned_.notify_all();
}

bool Ledger::AwaitReturn(absl::Duration patience) {
  std::unique_lock lock(mutex_);
  const auto returned = [this] { return lent_ == 0; };
  if (patience != absl::InfiniteDuration()) {
    return returned_.wait_for(lock, absl::ToChronoNanoseconds(patience), returned);
  }
  returned_.wait(lock, returned);
  return true;
}

Payload::Payload(std::span<const Tensor> tensors, uint64_t total_bytes, uint64_t message_bytes)
    : tensors_(tensors), total_bytes_(total_bytes), message_bytes_(message_bytes) {}

grpc::ByteBuffer Payload::Next() {
  uint64_t left = std::min(message_bytes_, total_bytes_ - cut_bytes_);
  cut_bytes_ += left;
  slices_.clear();
  AppendHeader(kDataTag, left, copied_);
  while (left > 0) {
    const Tensor& tensor = tensors_[tensor_];
    const uint64_t tensor_left = tensor.bytes() - tensor_offset_;
    const uint64_t run = std::min(left, tensor_left);
    const std::byte* data = static_cast<const std::byte*>(tensor.data) + tensor_offset_;
    if (run == 0) {
      // An empty tensor; its data may be null.
    } else if (run < kCopiedBelow) {
      copied_.append(reinterpret_cast<const char*>(data), run);
    } else {
      FlushCopied();
      slices_.push_back(Ledger::Lend(ledger_, data, run));
    }
    left -= run;
    tensor_offset_ += run;
    if (run == tensor_left) {
      ++tensor_;
      tensor_offset_ = 0;
    }
  }
  FlushCopied();
  grpc::ByteBuffer message(slices_.data(), slices_.size());
  slices_.clear();
  return message;
}

void Payload::FlushCopied() {
  if (!copied_.empty()) slices_.emplace_back(copied_.data(), copied_.size());
  copied_.clear();
}

grpc::ByteBuffer StartMessage(std::span<const grpc::Slice> parts) {
  uint64_t length = 0;
  for (const grpc::Slice& part : parts) length += part.size();
  std::string header;
  AppendHeader(kStartTag, length, header);
  std::vector<grpc::Slice> slices = {grpc::Slice(header.data(), header.size())};
  slices.insert(slices.end(), parts.begin(), parts.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace gradclip
