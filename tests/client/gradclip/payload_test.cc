#include "client/gradclip/payload.h"

#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

std::vector<grpc::Slice> SlicesOf(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  return slices;
}

std::string BytesOf(const grpc::ByteBuffer& message) {
  std::string bytes;
  for (const grpc::Slice& slice : SlicesOf(message)) {
    bytes.append(slice.begin(), slice.end());
  }
  return bytes;
}

// Tensors of these many bytes, of different content.
class Gradient {
 public:
  explicit Gradient(const std::vector<size_t>& sizes) {
    for (size_t size : sizes) memory_.emplace_back(size, '\0');
    for (std::string& one : memory_) {
      std::iota(one.begin(), one.end(), static_cast<char>(all_.size()));
      all_ += one;
      tensors_.push_back(
          {"", DType::kBFloat16, {static_cast<int64_t>(one.size() / 2)}, one.data()});
    }
  }

  Payload Cut(uint64_t message_bytes) const {
    return Payload(tensors_, all_.size(), message_bytes);
  }
  const std::string& all() const { return all_; }
  const std::string& memory(size_t tensor) const { return memory_[tensor]; }

 private:
  std::vector<std::string> memory_;
  std::vector<Tensor> tensors_;
  std::string all_;
};

TEST(Payload, MakesTheBytesThatProtobufWouldForEveryMessageSize) {
  const Gradient gradient({2, 0, 6, 8192, 10, 30000, 4, 8190, 100000, 0});
  for (uint64_t message_bytes : {1, 2, 3, 5, 127, 128, 8191, 8192, 16384, 65536, 1 << 20}) {
    Payload payload = gradient.Cut(message_bytes);
    std::string seen;
    while (!payload.done()) {
      const grpc::ByteBuffer message = payload.Next();
      v1::ComputeNormRequest expected;
      expected.set_data(gradient.all().substr(seen.size(), message_bytes));
      ASSERT_EQ(BytesOf(message), expected.SerializeAsString()) << message_bytes;
      seen += expected.data();
      ASSERT_EQ(payload.cut_bytes(), seen.size());
    }
    EXPECT_EQ(seen, gradient.all());
  }
}

TEST(Payload, PointsIntoLargeTensorsAndCopiesSmallOnesTogether) {
  const Gradient gradient({100, 200, 8192, 100, 300, 20000});
  Payload payload = gradient.Cut(1 << 20);
  const std::vector<grpc::Slice> slices = SlicesOf(payload.Next());
  ASSERT_EQ(slices.size(), 4u);  // header and two tensors, one, two, one
  const auto start_of = [&](size_t tensor) {
    return reinterpret_cast<const uint8_t*>(gradient.memory(tensor).data());
  };
  EXPECT_EQ(slices[1].begin(), start_of(2));
  EXPECT_EQ(slices[2].size(), 400u);
  EXPECT_EQ(slices[3].begin(), start_of(5));
}

TEST(Payload, MakesOneSliceOfFourThousandSmallTensors) {
  const Gradient gradient(std::vector<size_t>(4000, 256));
  Payload payload = gradient.Cut(1 << 20);
  EXPECT_EQ(SlicesOf(payload.Next()).size(), 1u);
  EXPECT_TRUE(payload.done());
}

TEST(Payload, KnowsWhichSlicesAreStillHeld) {
  const Gradient gradient({100000});
  Payload payload = gradient.Cut(50000);
  EXPECT_TRUE(payload.ledger().AwaitReturn(absl::ZeroDuration()));
  grpc::ByteBuffer first = payload.Next();
  grpc::ByteBuffer second = payload.Next();
  grpc::ByteBuffer copy = first;
  first.Clear();
  second.Clear();
  EXPECT_FALSE(payload.ledger().AwaitReturn(absl::Milliseconds(1)));
  copy.Clear();
  EXPECT_TRUE(payload.ledger().AwaitReturn(absl::ZeroDuration()));
}

TEST(Payload, IsDoneAtOnceWithoutElements) {
  EXPECT_TRUE(Gradient({0, 0}).Cut(10).done());
}

TEST(StartMessage, IsTheRequestThatProtobufWouldMake) {
  v1::ComputeNormRequest expected;
  expected.mutable_start()->add_tensors()->set_name(std::string(300, 'n'));
  expected.mutable_start()->mutable_norm()->set_norm_type(3);
  v1::ComputeNormStart tensors = expected.start();
  tensors.clear_norm();
  v1::ComputeNormStart options = expected.start();
  options.clear_tensors();
  const grpc::Slice parts[] = {grpc::Slice(tensors.SerializeAsString()),
                               grpc::Slice(options.SerializeAsString())};
  EXPECT_EQ(BytesOf(StartMessage(parts)), expected.SerializeAsString());
}

}  // namespace
}  // namespace gradclip
