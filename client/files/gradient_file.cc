#include "client/files/gradient_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/files/layout.h"
#include "client/gradclip/utf8.h"

namespace gradclip {
namespace {

bool IsNpy(const std::string& path) {
  return std::filesystem::path(path).extension() == ".npy";
}

absl::Status Failed(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("can't read ", path));
}

// The whole file, mapped privately.
absl::StatusOr<std::span<std::byte>> Map(const std::string& path) {
  // O_NONBLOCK: a named pipe nobody writes to would block here; it has no meaning for files.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return Failed(path);
  struct stat info {};
  absl::StatusOr<std::span<std::byte>> mapped = std::span<std::byte>();
  if (fstat(file, &info) != 0) {
    mapped = Failed(path);
  } else if (!S_ISREG(info.st_mode)) {
    mapped = absl::InvalidArgumentError(absl::StrCat(
        "can't read ", path, ": it is ", S_ISDIR(info.st_mode) ? "a folder" : "no regular file"));
  } else if (info.st_size > 0) {
    const auto size = static_cast<size_t>(info.st_size);
    // MAP_NORESERVE: only what is clipped is copied, so no room for all of it is asked for.
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
    mapped = start == MAP_FAILED ? absl::StatusOr<std::span<std::byte>>(Failed(path))
                                 : std::span<std::byte>(static_cast<std::byte*>(start), size);
  }
  close(file);
  return mapped;
}

absl::StatusOr<std::vector<TensorPlace>> ParsePlaces(const std::string& path,
                                                     std::span<const std::byte> bytes) {
  if (!IsNpy(path)) return ParseSafetensors(bytes);
  // Paths are bytes, names are UTF-8.
  std::string name = std::filesystem::path(path).stem().string();
  if (!IsUtf8(name)) name = absl::CHexEscape(name);
  absl::StatusOr<TensorPlace> place = ParseNpy(bytes, std::move(name));
  if (!place.ok()) return place.status();
  return std::vector<TensorPlace>{*std::move(place)};
}

}  // namespace

absl::Status GradientFile::CheckName(const std::string& path) {
  if (IsNpy(path) || std::filesystem::path(path).extension() == ".safetensors") {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": the name must end in .safetensors or .npy"));
}

absl::StatusOr<GradientFile> GradientFile::Read(const std::string& path) {
  if (absl::Status status = CheckName(path); !status.ok()) return status;
  absl::StatusOr<std::span<std::byte>> bytes = Map(path);
  if (!bytes.ok()) return bytes.status();
  GradientFile file(path, *bytes);
  if (absl::Status status = file.Parse(); !status.ok()) return status;
  return file;
}

absl::Status GradientFile::Parse() {
  absl::StatusOr<std::vector<TensorPlace>> places = ParsePlaces(path_, bytes_);
  if (!places.ok()) {
    return absl::Status(places.status().code(),
                        absl::StrCat(path_, ": ", places.status().message()));
  }
  tensors_.reserve(places->size());
  for (TensorPlace& place : *places) {
    Tensor& tensor = tensors_.emplace_back();
    tensor.name = std::move(place.name);
    tensor.dtype = place.dtype;
    tensor.shape = std::move(place.shape);
    tensor.data = bytes_.data() + place.offset;
  }
  return absl::OkStatus();
}

absl::StatusOr<StagedFile> GradientFile::Stage(const std::string& path,
                                               const StagedFile::Written& written) const {
  return StagedFile::Create(path, bytes_, written);
}

absl::Status GradientFile::Write(const std::string& path) const {
  absl::StatusOr<StagedFile> staged = Stage(path);
  if (!staged.ok()) return staged.status();
  return staged->Commit();
}

GradientFile::~GradientFile() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
}

GradientFile::GradientFile(GradientFile&& other) noexcept
    : path_(std::move(other.path_)),
      bytes_(std::exchange(other.bytes_, {})),
      tensors_(std::move(other.tensors_)) {}

}  // namespace gradclip
