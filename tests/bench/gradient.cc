#include "tests/bench/gradient.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "server/wire/message.h"

namespace gradclip::bench {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

template <typename Start>
void Declare(std::span<const Tensor> tensors, Start& start) {
  for (const Tensor& tensor : tensors) {
    v1::TensorSpec& spec = *start.add_tensors();
    spec.set_name(tensor.name);
    spec.set_dtype(v1::DTYPE_FLOAT32);
    spec.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  }
}

}  // namespace

Pages::Pages(uint64_t bytes) : size_(bytes) {
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kHugePage, whole)));
  if (memory_ == nullptr) std::abort();  // a benchmark without memory has nothing to say
  madvise(memory_.get(), whole, MADV_HUGEPAGE);
}

void Pages::Free::operator()(std::byte* memory) const {
  std::free(memory);
}

Gradient::Gradient(const std::vector<std::vector<int64_t>>& shapes) {
  for (const std::vector<int64_t>& shape : shapes) {
    tensors_.push_back({.name = "tensor." + std::to_string(tensors_.size()),
                        .dtype = DType::kFloat32,
                        .shape = shape});
    bytes_ += tensors_.back().bytes();
  }
  pages_ = std::make_unique<Pages>((bytes_ + 7) / 8 * 8);
  FillElements(DType::kFloat32, pages_->bytes());
  std::byte* data = pages_->bytes().data();
  for (Tensor& tensor : tensors_) {
    tensor.data = data;
    data += tensor.bytes();
  }
}

v1::ComputeNormRequest Gradient::NormStart() const {
  v1::ComputeNormRequest request;
  Declare(tensors_, *request.mutable_start());
  return request;
}

v1::ClipGradNormRequest Gradient::ClipStart(v1::ReplyMode reply, double max_norm) const {
  v1::ClipGradNormRequest request;
  Declare(tensors_, *request.mutable_start());
  request.mutable_start()->set_max_norm(max_norm);
  request.mutable_start()->set_reply(reply);
  return request;
}

std::vector<grpc::ByteBuffer> Gradient::Messages(const google::protobuf::MessageLite& start,
                                                 uint64_t message_bytes) const {
  const grpc::Slice start_slice(start.SerializeAsString());
  std::vector<grpc::ByteBuffer> messages = {grpc::ByteBuffer(&start_slice, 1)};
  for (uint64_t at = 0; at < bytes_; at += message_bytes) {
    const uint64_t size = std::min(message_bytes, bytes_ - at);
    std::byte header[kMaxDataHeaderBytes];
    const size_t header_bytes = WriteDataHeader(size, header);
    const grpc::Slice slices[] = {grpc::Slice(header, header_bytes),
                                  grpc::Slice(pages_->bytes().data() + at, size, [](void*) {})};
    messages.emplace_back(slices, 2);
  }
  return messages;
}

Gradient LargeGradient(uint64_t bytes) {
  constexpr uint64_t kTensorBytes = uint64_t{16} << 20;
  std::vector<std::vector<int64_t>> shapes;
  for (uint64_t at = 0; at < bytes; at += kTensorBytes) {
    shapes.push_back({static_cast<int64_t>(std::min(kTensorBytes, bytes - at) / sizeof(float))});
  }
  return Gradient(shapes);
}

std::vector<std::vector<int64_t>> TransformerShapes() {
  std::vector<std::vector<int64_t>> shapes = {{82, 96}, {64, 96}};
  for (int block = 0; block < 3; ++block) {
    for (const std::vector<int64_t>& shape : std::initializer_list<std::vector<int64_t>>{{96},
                                                                                         {96},
                                                                                         {96},
                                                                                         {96},
                                                                                         {288, 96},
                                                                                         {288},
                                                                                         {96, 96},
                                                                                         {96},
                                                                                         {384, 96},
                                                                                         {384},
                                                                                         {96, 384},
                                                                                         {96}}) {
      shapes.push_back(shape);
    }
  }
  for (const std::vector<int64_t>& shape :
       std::initializer_list<std::vector<int64_t>>{{96}, {96}, {82, 96}}) {
    shapes.push_back(shape);
  }
  return shapes;
}

Gradient TransformerGradient() {
  return Gradient(TransformerShapes());
}

Gradient ManySmallTensors() {
  return Gradient(std::vector<std::vector<int64_t>>(4000, std::vector<int64_t>{64}));
}

Gradient OneElement() {
  return Gradient(std::vector<std::vector<int64_t>>{{1}});
}

}  // namespace gradclip::bench
