// The contract's messages to and from the library's own values. Pure functions.
#ifndef GRADCLIP_CLIENT_GRADCLIP_ANSWER_H_
#define GRADCLIP_CLIENT_GRADCLIP_ANSWER_H_

#include "absl/status/status.h"
#include "google/protobuf/message_lite.h"
#include "gradclip/client.h"
#include "gradclip/v1/gradclip.pb.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace gradclip {

// ComputeNormStart and ClipGradNormStart without their tensors; behind the serialised tensors they
// make the whole message.
grpc::Slice SerialiseStartOptions(const NormOptions& options);
grpc::Slice SerialiseStartOptions(const ClipOptions& options);

// INTERNAL where `bytes` are no such message.
absl::Status Parse(grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message);

NormAnswer AnswerOf(const v1::NormResult& result);
ClipAnswer AnswerOf(const v1::ClipResult& result);
ServerInfo AnswerOf(const v1::GetServerInfoResponse& response);

// A grpc.health.v1.HealthCheckResponse: OK for SERVING, UNAVAILABLE with the reason for any other.
absl::Status HealthOf(grpc::ByteBuffer& response);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_ANSWER_H_
