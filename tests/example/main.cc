// Clips a small gradient with the server at the address given: gradclip_example 127.0.0.1:50051
#include <cstdio>
#include <string>
#include <vector>

#include "gradclip/client.h"
#include "gradclip/cuda_gradient.h"
#include "gradclip/shared_gradient.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gradclip_example ADDRESS (host:port or unix:path)\n");
    return 2;
  }
  gradclip::ClientOptions once;
  once.max_retries = 0;
  gradclip::Client client(argv[1], once);

  std::vector<float> weight = {3, 0, 0, 4};
  std::vector<double> bias = {12};
  const std::vector<gradclip::Tensor> gradient = {
      {"weight", gradclip::DType::kFloat32, {2, 2}, weight.data()},
      {"bias", gradclip::DType::kFloat64, {1}, bias.data()}};
  gradclip::ClipOptions options;
  options.max_norm = 6.5;
  const absl::StatusOr<gradclip::ClipAnswer> answer = client.Clip(gradient, options);
  if (!answer.ok()) {
    std::fprintf(stderr, "%s\n", answer.status().ToString().c_str());
    return 1;
  }
  std::printf("norm %g, coefficient %g: weight %g %g %g %g, bias %g\n", answer->norm.total_norm,
              answer->coefficient, weight[0], weight[1], weight[2], weight[3], bias[0]);

  // The same in memory that the server shares: nothing is sent.
  auto shared = gradclip::SharedGradient::Make(client, {{{"w", gradclip::DType::kFloat32, {2}}}});
  if (!shared.ok()) return 1;
  float* const w = static_cast<float*>(shared->tensors()[0].data);
  w[0] = 5;
  w[1] = 12;
  if (!shared->Clip(options).ok()) return 1;
  std::printf("%s: %g %g\n", shared->shared() ? "shared" : "streamed", w[0], w[1]);

  // Memory of a GPU, which a server takes that was started with --allow-cuda-ipc.
  gradclip::CudaMemory memory;
  memory.bytes = 8;
  auto on_gpu = gradclip::CudaGradient::Make(client, memory,
                                             {{{"w", gradclip::DType::kFloat32, {2}}}}, {{0}});
  if (!on_gpu.ok()) return 1;
  const absl::Status refusal = on_gpu->ComputeNorm().status();
  std::printf("on a GPU: %s\n", absl::StatusCodeToString(refusal.code()).c_str());
  return 0;
}
