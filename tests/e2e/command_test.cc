// The server and the command as their users run them, on real gradients.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "tests/e2e/command_fixture.h"
#include "tests/e2e/process.h"
#include "tests/model/answer.h"
#include "tests/model/golden.h"
#include "tests/model/model.h"

namespace gradclip {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST_F(Command, MeasuresRealGradients) {
  for (const std::string stem : {"step-001", "step-060", "step-060-bf16", "step-090"}) {
    const Ran ran = Run({"norm", kGradients + stem + ".safetensors", "--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const json answer = json::parse(ran.out);
    const double exact = ReadGoldenGradient(stem).total_norm;
    EXPECT_NEAR(answer["total_norm"].get<double>(), exact, 1e-12 * exact) << stem;
    EXPECT_EQ(answer["nonfinite_elements"], 0);
    EXPECT_EQ(answer["first_nonfinite"], "");
    EXPECT_TRUE(answer.contains("backend"));
    EXPECT_TRUE(answer.contains("tensors"));
    EXPECT_TRUE(answer.contains("group_nonfinite_elements"));
  }
}

TEST_F(Command, TellsTheServerWhichTraceItRunsIn) {
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
  for (const std::string& variable :
       {"TRACEPARENT=00-" + trace + "-01", std::string("TRACEPARENT=not one")}) {
    Process process("gradclip", WithServer({"norm", kGradients + "step-001.safetensors"}),
                    {variable});
    EXPECT_EQ(process.Wait(), 0) << process.err();
  }
  server_.process().Signal(SIGTERM);
  EXPECT_EQ(server_.process().Wait(), 0);
  const std::string& log = server_.process().err();
  const std::string says = "trace 4bf92f3577b34da6a3ce929d0e0e4736 span 00f067aa0ba902b7, ";
  EXPECT_THAT(log, HasSubstr(says));
  EXPECT_EQ(log.find("trace "), log.rfind("trace "));
}

// A .safetensors file as a call: the head that no call changes, and what the head declares.
struct RealGradient {
  explicit RealGradient(const std::string& file) {
    size_t head_bytes = 0;
    std::memcpy(&head_bytes, file.data(), sizeof(head_bytes));
    head_bytes += sizeof(head_bytes);
    head = file.substr(0, head_bytes);
    data = file.substr(head_bytes);
    std::map<size_t, v1::TensorSpec> by_offset;
    const json header = json::parse(head.substr(sizeof(head_bytes)));
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      v1::TensorSpec& tensor = by_offset[entry["data_offsets"][0]];
      tensor.set_dtype(entry["dtype"] == "BF16" ? v1::DTYPE_BFLOAT16 : v1::DTYPE_FLOAT32);
      for (const json& extent : entry["shape"]) tensor.add_shape(extent);
    }
    for (const auto& [offset, tensor] : by_offset) *start.add_tensors() = tensor;
  }

  std::string head;
  std::string data;
  v1::ClipGradNormStart start;
};

TEST_F(Command, ClipsRealGradientsInEveryReplyModeToTheModelsBytes) {
  struct Case {
    std::string stem;
    double max_norm;
  };
  for (const auto& [stem, max_norm] : std::vector<Case>{{"step-001", 1},
                                                        {"step-060", 1},
                                                        {"step-060", 0.25},
                                                        {"step-060-bf16", 1},
                                                        {"step-060-bf16", 0.25},
                                                        {"step-090", 1}}) {
    const std::string file = kGradients + stem + ".safetensors";
    RealGradient real(ReadFile(file));
    real.start.set_max_norm(max_norm);
    const GoldenGradient golden = ReadGoldenGradient(stem);
    const v1::ClipResult expected = ModelDecide(real.start, golden.total_norm);
    if (max_norm == golden.max_norm) {
      EXPECT_DOUBLE_EQ(expected.coefficient(), golden.coefficient);
    }
    const std::string clipped = real.head + ModelScale(real.start, expected, real.data);
    for (const std::string reply : {"coefficient", "gradient", "if-changed"}) {
      SCOPED_TRACE(testing::Message() << stem << " to " << max_norm << ", reply " << reply);
      const std::string out = Out("clipped.safetensors");
      const Ran ran = Run({"clip", file, "--max-norm", std::to_string(max_norm), "-o", out,
                           "--reply", reply, "--json"});
      ASSERT_EQ(ran.status, 0) << ran.err;
      const json answer = json::parse(ran.out);
      EXPECT_NEAR(answer["norm"]["total_norm"].get<double>(), golden.total_norm,
                  1e-12 * golden.total_norm);
      EXPECT_NEAR(answer["coefficient"].get<double>(), expected.coefficient(),
                  1e-12 * expected.coefficient());
      EXPECT_EQ(answer["clipped"], expected.clipped());
      EXPECT_EQ(answer["skipped"], false);
      EXPECT_EQ(answer["gradient_follows"],
                reply == "gradient" || (reply == "if-changed" && expected.clipped()));
      // Compared as a whole: a difference would print megabytes.
      EXPECT_TRUE(ReadFile(out) == clipped);
    }
  }
}

TEST_F(Command, ClipsALossSpikeToTheLimit) {
  const std::string out = Out("clipped.safetensors");
  ASSERT_EQ(Run({"clip", kGradients + "step-090.safetensors", "--max-norm", "1", "-o", out}).status,
            0);
  // But for the rounding of its elements.
  const json again = json::parse(Run({"norm", out, "--json"}).out);
  EXPECT_NEAR(again["total_norm"].get<double>(), 1, 1e-6);
}

TEST_F(Command, LeavesAGradientWithinTheLimitAsItIs) {
  const std::string file = kGradients + "step-060.safetensors";
  const Ran ran = Run({"clip", file, "--max-norm", "1", "-o", Out("same.safetensors")});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(ReadFile(Out("same.safetensors")), ReadFile(file));
}

TEST_F(Command, TakesSeveralFilesAsOneGradient) {
  const json one = json::parse(Run({"norm", kGradients + "step-060.safetensors",
                                    kGradients + "step-090.safetensors", "--json"})
                                   .out);
  const double a = ReadGoldenGradient("step-060").total_norm;
  const double b = ReadGoldenGradient("step-090").total_norm;
  EXPECT_NEAR(one["total_norm"].get<double>(), std::hypot(a, b), 1e-12 * b);
}

TEST_F(Command, AnswersPerTensorInJson) {
  const json answer =
      json::parse(Run({"norm", kGradients + "step-001.safetensors", "--per-tensor", "--json"}).out);
  ASSERT_EQ(answer["tensors"].size(), 41u);
  double squares = 0;
  for (const json& tensor : answer["tensors"]) {
    squares += std::pow(tensor["norm"].get<double>(), 2);
    EXPECT_TRUE(tensor.contains("nonfinite_elements"));
    EXPECT_TRUE(tensor.contains("zero_elements"));
  }
  EXPECT_NEAR(std::sqrt(squares), answer["total_norm"].get<double>(), 1e-12);
}

TEST_F(Command, TellsHealthAndInfo) {
  EXPECT_EQ(Run({"health"}).status, 0);
  const json info = json::parse(Run({"info", "--json"}).out);
  EXPECT_TRUE(info["backends"][0]["usable"].get<bool>());
  EXPECT_EQ(info["memory_socket"], "");
}

TEST_F(Command, FailsInOneLine) {
  const Ran ran = Run({"clip", kGradients + "step-090.safetensors", "--max-norm", "-1", "-o",
                       Out("never.safetensors")});
  EXPECT_EQ(ran.status, 1);
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr("max"));
  EXPECT_FALSE(std::filesystem::exists(Out("never.safetensors")));
}

TEST_F(Command, ServerDrainsOnSigterm) {
  server_.process().Signal(SIGTERM);
  EXPECT_EQ(server_.process().Wait(), 0);
  EXPECT_THAT(server_.process().err(), HasSubstr("draining"));
  EXPECT_EQ(Run({"health"}).status, 1);
}

TEST(ServerCommand, DrainsOnEitherSignal) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServerProcess server;
    server.process().Signal(signal);
    EXPECT_EQ(server.process().Wait(), 0);
    EXPECT_THAT(server.process().err(), HasSubstr("signal=" + std::to_string(signal)));
  }
}

TEST(ServerCommand, TakesOptionsFromTheEnvironmentAndFlagsWin) {
  ServerProcess server({"--backend=cpu/baseline"},
                       {"GRADCLIP_BACKEND=nonsense", "GRADCLIP_MAX_TENSORS=77"});
  Process info("gradclip", {"info", "--json", "--server", server.address()});
  ASSERT_EQ(info.Wait(), 0) << info.err();
  const json answer = json::parse(info.out());
  EXPECT_EQ(answer["backends"][0]["name"], "cpu/baseline");
  EXPECT_EQ(answer["max_tensors"], 77);
}

TEST(ServerCommand, SaysInOneLineWhyItDoesNotStart) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"--lisen=127.0.0.1:0"},
                                             {"--memory-budget=lots"},
                                             {"--backend=gpu"},
                                             {"--listen=unix:/no/such/folder/x.sock"}}) {
    Process server("gradclip-server", arguments);
    EXPECT_EQ(server.Wait(), 1);
    EXPECT_EQ(server.out(), "");
    const std::string err = server.err();
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  }
}

TEST(ServerCommand, ASecondSignalEndsItAtOnce) {
  ServerProcess server({"--drain-timeout=10m"});
  // A call that sends nothing more keeps the drain from ending.
  const auto stub = v1::GradClip::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto stream = stub->ClipGradNorm(&context);
  v1::ClipGradNormRequest start;
  start.mutable_start()->set_max_norm(1);
  start.mutable_start()->set_total_norm(1);
  stream->Write(start);
  v1::ClipGradNormResponse result;
  ASSERT_TRUE(stream->Read(&result));

  server.process().Signal(SIGTERM);
  while (true) {  // until new calls are refused
    Process health("gradclip", {"health", "--server", server.address()});
    if (health.Wait() != 0) break;
  }
  server.process().Signal(SIGINT);
  EXPECT_EQ(server.process().Wait(), 1);
  EXPECT_FALSE(stream->Finish().ok());
}

}  // namespace
}  // namespace gradclip
