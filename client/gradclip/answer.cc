#include "client/gradclip/answer.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"

namespace gradclip {
namespace {

using google::protobuf::internal::WireFormatLite;

void Fill(const NormOptions& options, v1::NormOptions& out) {
  out.set_norm_type(options.norm_type);
  out.set_per_tensor(options.per_tensor);
  out.set_pre_scale(options.pre_scale);
}

v1::NonfinitePolicy PolicyOf(NonfinitePolicy policy) {
  switch (policy) {
    case NonfinitePolicy::kPropagate:
      return v1::NONFINITE_PROPAGATE;
    case NonfinitePolicy::kError:
      return v1::NONFINITE_ERROR;
    case NonfinitePolicy::kSkip:
      return v1::NONFINITE_SKIP;
    case NonfinitePolicy::kZero:
      return v1::NONFINITE_ZERO;
  }
  return static_cast<v1::NonfinitePolicy>(policy);  // the server's to refuse
}

v1::ReplyMode ModeOf(ReplyMode mode) {
  switch (mode) {
    case ReplyMode::kCoefficient:
    case ReplyMode::kFastest:  // replaced before a call
      return v1::REPLY_COEFFICIENT;
    case ReplyMode::kGradient:
      return v1::REPLY_GRADIENT;
    case ReplyMode::kGradientIfChanged:
      return v1::REPLY_GRADIENT_IF_CHANGED;
  }
  return static_cast<v1::ReplyMode>(mode);
}

}  // namespace

grpc::Slice SerialiseStartOptions(const NormOptions& options) {
  v1::ComputeNormStart start;
  Fill(options, *start.mutable_norm());
  return grpc::Slice(start.SerializeAsString());
}

grpc::Slice SerialiseStartOptions(const ClipOptions& options) {
  v1::ClipGradNormStart start;
  Fill(options.norm, *start.mutable_norm());
  start.set_max_norm(options.max_norm);
  start.set_epsilon(options.epsilon);
  start.set_nonfinite(PolicyOf(options.nonfinite));
  start.set_reply(ModeOf(options.reply));
  if (options.total_norm.has_value()) start.set_total_norm(*options.total_norm);
  return grpc::Slice(start.SerializeAsString());
}

absl::Status Parse(grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message) {
  grpc::ProtoBufferReader slices(&bytes);
  if (!slices.status().ok() || !message.ParseFromZeroCopyStream(&slices)) {
    return absl::InternalError(
        absl::StrCat("the server sent a message that is no ", message.GetTypeName()));
  }
  return absl::OkStatus();
}

NormAnswer AnswerOf(const v1::NormResult& result) {
  NormAnswer answer;
  answer.total_norm = result.total_norm();
  answer.nonfinite_elements = result.nonfinite_elements();
  answer.first_nonfinite = result.first_nonfinite();
  answer.tensors.reserve(result.tensors_size());
  for (const v1::TensorNorm& tensor : result.tensors()) {
    answer.tensors.push_back({tensor.norm(), tensor.nonfinite_elements(), tensor.zero_elements()});
  }
  answer.backend = result.backend();
  answer.group_nonfinite_elements = result.group_nonfinite_elements();
  return answer;
}

ClipAnswer AnswerOf(const v1::ClipResult& result) {
  return {AnswerOf(result.norm()), result.coefficient(), result.clipped(), result.skipped(),
          result.gradient_follows()};
}

ServerInfo AnswerOf(const v1::GetServerInfoResponse& response) {
  ServerInfo info;
  info.version = response.version();
  for (const v1::Backend& backend : response.backends()) {
    info.backends.push_back({backend.name(), backend.usable(), backend.detail()});
  }
  info.max_message_bytes = response.max_message_bytes();
  info.max_call_bytes = response.max_call_bytes();
  info.memory_budget_bytes = response.memory_budget_bytes();
  info.memory_socket = response.memory_socket();
  info.max_tensors = response.max_tensors();
  info.instance = response.instance();
  return info;
}

absl::Status HealthOf(grpc::ByteBuffer& response) {
  // HealthCheckResponse { enum status = 1; }, UNKNOWN (0) where it is left out.
  constexpr uint32_t kStatusTag = WireFormatLite::MakeTag(1, WireFormatLite::WIRETYPE_VARINT);
  uint32_t status = 0;
  bool readable = true;
  grpc::ProtoBufferReader slices(&response);
  if (!slices.status().ok()) return absl::InternalError("the server sent no health");
  google::protobuf::io::CodedInputStream in(&slices);
  while (const uint32_t tag = in.ReadTag()) {
    readable = tag == kStatusTag ? in.ReadVarint32(&status) : WireFormatLite::SkipField(&in, tag);
    if (!readable) break;
  }
  if (!readable || !in.ConsumedEntireMessage()) {
    return absl::InternalError("the server sent a message that is no HealthCheckResponse");
  }
  switch (status) {
    case 1:
      return absl::OkStatus();
    case 2:
      return absl::UnavailableError("its health is NOT_SERVING: it is starting or draining");
    case 3:
      return absl::UnavailableError("its health is SERVICE_UNKNOWN");
    default:
      return absl::UnavailableError(absl::StrCat("its health is ", status, " (1 is SERVING)"));
  }
}

}  // namespace gradclip
