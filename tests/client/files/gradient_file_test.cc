#include "client/files/gradient_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "nlohmann/json.hpp"
#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string DataPath(std::string_view name) {
  return std::string(GRADCLIP_TEST_DATA "/gradients/").append(name);
}

constexpr std::string_view kRealGradients[] = {"step-001.safetensors", "step-060.safetensors",
                                               "step-060-bf16.safetensors", "step-090.safetensors"};

TEST(GradientFile, WritesRealGradientsBackByteForByte) {
  const Folder folder;
  for (std::string_view name : kRealGradients) {
    const auto file = GradientFile::Read(DataPath(name));
    ASSERT_TRUE(file.ok()) << file.status();
    const std::string out = folder / name;
    ASSERT_TRUE(file->Write(out).ok());
    EXPECT_EQ(ReadFile(out), ReadFile(DataPath(name))) << name;
  }
  EXPECT_EQ(folder.entries(), std::size(kRealGradients));
}

TEST(GradientFile, HoldsTheTensorsOfRealGradients) {
  const auto expected = nlohmann::json::parse(std::ifstream(DataPath("expected.json")));
  for (std::string_view name : {"step-001", "step-060", "step-090"}) {
    const auto file = GradientFile::Read(DataPath(std::string(name) + ".safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    const nlohmann::json& truth = expected["files"][std::string(name)];
    EXPECT_EQ(file->tensors().size(), truth["tensors"]);
    EXPECT_EQ(file->tensors().front().name, "tok.weight");
    EXPECT_THAT(file->tensors().front().shape, ElementsAre(82, 96));

    uint64_t elements = 0;
    double squares = 0;
    for (const Tensor& tensor : file->tensors()) {
      ASSERT_EQ(tensor.dtype, DType::kFloat32);
      EXPECT_FALSE(tensor.replica);
      elements += tensor.elements();
      for (uint64_t i = 0; i < tensor.elements(); ++i) {
        float element = 0;
        std::memcpy(&element, static_cast<const std::byte*>(tensor.data) + i * sizeof(element),
                    sizeof(element));
        squares += static_cast<double>(element) * element;
      }
    }
    EXPECT_EQ(elements, truth["elements"]);
    EXPECT_NEAR(std::sqrt(squares), truth["total_norm_f64"].get<double>(), 1e-10);
  }
}

TEST(GradientFile, ChangesOnlyTheBytesOfTheTensorThatChanged) {
  const Folder folder;
  const std::string path = DataPath("step-001.safetensors");
  auto file = GradientFile::Read(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const Tensor& tensor = file->tensors()[1];
  ASSERT_EQ(tensor.name, "pos.weight");
  std::memset(tensor.data, 0x7f, tensor.bytes());
  ASSERT_TRUE(file->Write(folder / "out.safetensors").ok());

  const std::string before = ReadFile(path);
  const std::string after = ReadFile(folder / "out.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, before.data(), sizeof(header_bytes));
  std::string changed = before;  // the file itself is as it was
  changed.replace(8 + header_bytes + 31488, 56064 - 31488, 56064 - 31488, '\x7f');
  EXPECT_TRUE(after == changed);
  EXPECT_FALSE(after == before);
}

TEST(GradientFile, WritesOntoThePathItCameFrom) {
  const Folder folder;
  const std::string path = folder / "w.npy";
  const std::string header = "{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }\n";
  WriteFile(path, Npy(2, header, "12345678"));
  auto file = GradientFile::Read(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 1u);
  EXPECT_EQ(file->tensors()[0].name, "w");
  std::memcpy(file->tensors()[0].data, "abcdefgh", 8);
  ASSERT_TRUE(file->Write(path).ok());
  EXPECT_EQ(ReadFile(path), Npy(2, header, "abcdefgh"));
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(GradientFile, NamesATensorInUtf8WhateverTheFileIsCalled) {
  const Folder folder;
  const std::string file =
      Npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", "1234");
  for (const auto& [stem, name] :
       {std::pair("größe", "größe"), std::pair("gr\xff\x01x", "gr\\xff\\x01x")}) {
    const std::string path = folder / (std::string(stem) + ".npy");
    WriteFile(path, file);
    const auto read = GradientFile::Read(path);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->tensors()[0].name, name);
  }
}

TEST(GradientFile, KeepsItsTensorsWhereItIsMoved) {
  auto read = GradientFile::Read(DataPath("step-001.safetensors"));
  ASSERT_TRUE(read.ok()) << read.status();
  const void* data = read->tensors()[0].data;
  const GradientFile moved = *std::move(read);
  EXPECT_EQ(moved.tensors()[0].data, data);
  EXPECT_EQ(moved.tensors().size(), 41u);
}

TEST(GradientFile, NamesThePathOfAFileItCannotTake) {
  const Folder folder;
  const auto missing = GradientFile::Read(folder / "none.npy");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.status().message(),
            "can't read " + folder / "none.npy" + ": No such file or directory");

  WriteFile(folder / "bad.safetensors", "{}");
  EXPECT_EQ(
      GradientFile::Read(folder / "bad.safetensors").status().message(),
      folder / "bad.safetensors" + ": the file ends after 2 bytes, within the header's length");

  WriteFile(folder / "empty.npy", "");
  EXPECT_THAT(GradientFile::Read(folder / "empty.npy").status().message(),
              HasSubstr("empty.npy: it does not start as a .npy file does"));

  EXPECT_THAT(GradientFile::Read(folder / "w.pt").status().message(),
              HasSubstr("w.pt: the name must end in .safetensors or .npy"));

  std::filesystem::create_directory(folder / "folder.npy");
  EXPECT_THAT(GradientFile::Read(folder / "folder.npy").status().message(),
              HasSubstr("it is a folder"));

  ASSERT_EQ(mkfifo((folder / "pipe.npy").c_str(), 0600), 0);
  EXPECT_THAT(GradientFile::Read(folder / "pipe.npy").status().message(),
              HasSubstr("it is no regular file"));
}

}  // namespace
}  // namespace gradclip
