// A gradient as messages: the flat byte stream of its tensors, cut into `data` messages whose
// slices point into the caller's memory, and a ledger of the slices that gRPC still holds.
#ifndef GRADCLIP_CLIENT_GRADCLIP_PAYLOAD_H_
#define GRADCLIP_CLIENT_GRADCLIP_PAYLOAD_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/gradclip/outgoing.h"
#include "gradclip/client.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace gradclip {

// Counts slices that point into the caller's memory until gRPC has let go of them. Thread-safe.
class Ledger {
 public:
  // `bytes` of memory that is not copied. The ledger lives as long as the slice.
  static grpc::Slice Lend(const std::shared_ptr<Ledger>& ledger, const std::byte* data,
                          size_t bytes);

  // False where slices are still out after `patience`.
  bool AwaitReturn(absl::Duration patience);

 private:
  static void GiveBack(void* ledger);

  std::mutex mutex_;
  std::condition_variable returned_;
  // Guarded by mutex_.
  int64_t lent_ = 0;
  std::shared_ptr<Ledger> self_;  // while slices are out
};

// Cuts one gradient into the messages of one call, once through. Not thread-safe. The tensors and
// their memory must outlive it and whatever its ledger counts.
class Payload : public Outgoing {
 public:
  // REQUIRES: message_bytes > 0; total_bytes is what the tensors hold together.
  Payload(std::span<const Tensor> tensors, uint64_t total_bytes, uint64_t message_bytes);

  uint64_t total_bytes() const override { return total_bytes_; }
  uint64_t cut_bytes() const override { return cut_bytes_; }  // in the messages made so far
  bool done() const override { return cut_bytes_ == total_bytes_; }

  // The next message: {field 2: the next bytes}. Runs of less than 8 KiB are copied together, so
  // that many small tensors make few slices. REQUIRES: !done().
  grpc::ByteBuffer Next() override;

  bool AwaitReturn(absl::Duration patience) override { return ledger_->AwaitReturn(patience); }
  Ledger& ledger() { return *ledger_; }

 private:
  void FlushCopied();

  const std::span<const Tensor> tensors_;
  const uint64_t total_bytes_;
  const uint64_t message_bytes_;
  uint64_t cut_bytes_ = 0;
  size_t tensor_ = 0;           // the next byte is in this tensor,
  uint64_t tensor_offset_ = 0;  // at this offset
  std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>();

  // Scratch of Next().
  std::string copied_;
  std::vector<grpc::Slice> slices_;
};

// The start message, {field 1: the concatenated parts}, of slices that are not copied.
grpc::ByteBuffer StartMessage(std::span<const grpc::Slice> parts);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_PAYLOAD_H_
