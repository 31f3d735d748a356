#include "client/gradclip/start_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/gradclip/utf8.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

constexpr size_t kKept = 4;
constexpr size_t kShownNameBytes = 120;
constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();

// What precedes a tensor's extents and name in the key.
struct KeyHead {
  uint8_t dtype;
  uint8_t replica;
  uint16_t zero;
  uint32_t name_bytes;
  uint64_t rank;
};

KeyHead HeadOf(const Tensor& tensor) {
  return {static_cast<uint8_t>(tensor.dtype), tensor.replica, 0,
          static_cast<uint32_t>(tensor.name.size()), tensor.shape.size()};
}

template <typename Value>
absl::string_view BytesOf(const Value* values, size_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(Value)};
}

// Takes `expected` off the front of `key`; false where something else stands there.
bool Consume(absl::string_view expected, absl::string_view& key) {
  if (key.size() < expected.size() ||
      (!expected.empty() && std::memcmp(key.data(), expected.data(), expected.size()) != 0)) {
    return false;
  }
  key.remove_prefix(expected.size());
  return true;
}

absl::StatusOr<uint64_t> CheckedBytes(const Tensor& tensor, size_t index) {
  if (!IsUtf8(tensor.name)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor #%d: name \"%s\" is not UTF-8", index,
                        absl::CHexEscape(tensor.name.substr(0, kShownNameBytes))));
  }
  const uint64_t element_size = ElementSize(tensor.dtype);
  if (element_size == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s: dtype is %d; it must be F32 (1), F16 (2), BF16 (3) or F64 (4)",
                        DescribeTensor(tensor, index), static_cast<int>(tensor.dtype)));
  }
  const auto describe_shape = [&] {
    return absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]");
  };
  for (int64_t extent : tensor.shape) {
    if (extent < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: shape %s has the negative extent %d",
                          DescribeTensor(tensor, index), describe_shape(), extent));
    }
  }
  if (std::count(tensor.shape.begin(), tensor.shape.end(), 0) > 0) return uint64_t{0};
  uint64_t bytes = element_size;
  for (int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes) || bytes > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: shape %s declares more than 2^63 - 1 bytes of %s",
                          DescribeTensor(tensor, index), describe_shape(), Name(tensor.dtype)));
    }
  }
  return bytes;
}

}  // namespace

std::string DescribeTensor(const Tensor& tensor, size_t index) {
  if (tensor.name.empty()) return absl::StrCat("#", index);
  const std::string shown = absl::Utf8SafeCEscape(tensor.name.substr(0, kShownNameBytes));
  return tensor.name.size() <= kShownNameBytes ? absl::StrCat("\"", shown, "\"")
                                               : absl::StrCat("\"", shown, "...\" (#", index, ")");
}

absl::StatusOr<std::shared_ptr<const Declaration>> Declaration::Make(
    std::span<const Tensor> tensors) {
  const std::shared_ptr<Declaration> made(new Declaration);
  made->tensors_ = tensors.size();
  v1::ComputeNormStart start;
  start.mutable_tensors()->Reserve(static_cast<int>(tensors.size()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    const absl::StatusOr<uint64_t> bytes = CheckedBytes(tensor, i);
    if (!bytes.ok()) return bytes.status();
    made->gradient_bytes_ += *bytes;
    if (made->gradient_bytes_ > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: the gradient up to here has more than 2^63 - 1 bytes",
                          DescribeTensor(tensor, i)));
    }
    v1::TensorSpec& spec = *start.add_tensors();
    spec.set_name(tensor.name);
    spec.set_dtype(static_cast<v1::DType>(tensor.dtype));
    spec.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    spec.set_replica(tensor.replica);

    const KeyHead head = HeadOf(tensor);
    absl::StrAppend(&made->key_, BytesOf(&head, 1),
                    BytesOf(tensor.shape.data(), tensor.shape.size()), tensor.name);
  }
  made->serialised_ = grpc::Slice(start.SerializeAsString());
  return made;
}

bool Declaration::Matches(std::span<const Tensor> tensors) const {
  if (tensors.size() != tensors_) return false;
  absl::string_view key = key_;
  for (const Tensor& tensor : tensors) {
    const KeyHead head = HeadOf(tensor);
    if (!Consume(BytesOf(&head, 1), key) ||
        !Consume(BytesOf(tensor.shape.data(), tensor.shape.size()), key) ||
        !Consume(tensor.name, key)) {
      return false;
    }
  }
  return true;
}

absl::StatusOr<std::shared_ptr<const Declaration>> StartCache::Get(
    std::span<const Tensor> tensors) {
  std::vector<std::shared_ptr<const Declaration>> kept;
  {
    std::lock_guard lock(mutex_);
    kept = kept_;
  }
  for (auto one = kept.rbegin(); one != kept.rend(); ++one) {
    if ((*one)->Matches(tensors)) return *one;
  }
  absl::StatusOr<std::shared_ptr<const Declaration>> made = Declaration::Make(tensors);
  if (!made.ok()) return made;
  std::lock_guard lock(mutex_);
  if (kept_.size() == kKept) kept_.erase(kept_.begin());
  kept_.push_back(*made);
  return made;
}

}  // namespace gradclip
