// The files of one command line as one gradient, and what is printed about it. Belongs to one
// thread.
#ifndef GRADCLIP_CLIENT_COMMAND_GRADIENT_H_
#define GRADCLIP_CLIENT_COMMAND_GRADIENT_H_

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/files/gradient_file.h"

namespace gradclip {

class Gradient {
 public:
  // All or an error. REQUIRES: at least one path.
  static absl::StatusOr<Gradient> Read(const std::vector<std::string>& paths);

  // Of all files, one file's after another's; they point into this object.
  std::span<const Tensor> tensors() const { return tensors_; }
  std::span<const GradientFile> files() const { return files_; }
  uint64_t bytes() const;

  // "357,600 in 41 tensors, 1.36 MiB"
  std::string ElementsText() const;

 private:
  std::vector<GradientFile> files_;
  std::vector<Tensor> tensors_;
};

// The lines that norm and clip have in common: elements, non-finite elements, backend, time.
void AppendFields(const Gradient& gradient, const NormAnswer& answer, absl::Duration time,
                  std::vector<std::pair<std::string, std::string>>& fields);

// Standard error where it is a terminal that can erase a line, null otherwise: for Progress.
std::ostream* ProgressTerminal(bool quiet);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_GRADIENT_H_
