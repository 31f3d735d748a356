// A gradient in a .safetensors or .npy file: its tensors in memory, to be clipped in place, and the
// file written again with everything around their elements as it was. An object belongs to one
// thread at a time; its tensors may be used by several.
#ifndef GRADCLIP_CLIENT_FILES_GRADIENT_FILE_H_
#define GRADCLIP_CLIENT_FILES_GRADIENT_FILE_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/files/staged_file.h"
#include "gradclip/client.h"

namespace gradclip {

class GradientFile {
 public:
  // Maps the file into memory of this process alone: pages are read when they are touched, and
  // copied when they are written to; the file itself never changes. Nobody may shorten it in the
  // meantime (the system ends a process that touches a page that is gone). The ending of the
  // name says the format. Errors name the path: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT.
  static absl::StatusOr<GradientFile> Read(const std::string& path);

  // Whether the path ends in .safetensors or .npy; INVALID_ARGUMENT otherwise.
  static absl::Status CheckName(const std::string& path);

  // The tensors in the order of their data, with the names of the file (of a .npy file its
  // stem, in which bytes that are not UTF-8 stand as \\xff).
  // They point into this object, wherever it is moved to, at any alignment.
  std::span<Tensor> tensors() { return tensors_; }
  std::span<const Tensor> tensors() const { return tensors_; }

  const std::string& path() const { return path_; }

  // Writes the file as it is in memory, whole or not at all; `path` may be the one it came from.
  absl::Status Write(const std::string& path) const;

  // The first half of Write(), for several files that are written all or none.
  absl::StatusOr<StagedFile> Stage(const std::string& path,
                                   const StagedFile::Written& written = nullptr) const;

  // Of the file.
  uint64_t bytes() const { return bytes_.size(); }

  ~GradientFile();
  GradientFile(GradientFile&& other) noexcept;
  GradientFile& operator=(GradientFile&&) = delete;

 private:
  GradientFile(std::string path, std::span<std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}
  absl::Status Parse();

  std::string path_;
  std::span<std::byte> bytes_;  // mapped; empty where the file is, or moved from
  std::vector<Tensor> tensors_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_FILES_GRADIENT_FILE_H_
