#include "client/command/gradient.h"

#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/command/output.h"

namespace gradclip {

absl::StatusOr<Gradient> Gradient::Read(const std::vector<std::string>& paths) {
  Gradient gradient;
  for (const std::string& path : paths) {
    absl::StatusOr<GradientFile> file = GradientFile::Read(path);
    if (!file.ok()) return file.status();
    const std::span<Tensor> tensors = file->tensors();
    gradient.tensors_.insert(gradient.tensors_.end(), tensors.begin(), tensors.end());
    gradient.files_.push_back(*std::move(file));
  }
  return gradient;
}

uint64_t Gradient::bytes() const {
  uint64_t bytes = 0;
  for (const Tensor& tensor : tensors_) bytes += tensor.bytes();
  return bytes;
}

std::string Gradient::ElementsText() const {
  uint64_t elements = 0;
  for (const Tensor& tensor : tensors_) elements += tensor.elements();
  return absl::StrCat(CountText(elements), " in ", CountText(tensors_.size()),
                      tensors_.size() == 1 ? " tensor, " : " tensors, ", BytesText(bytes()));
}

void AppendFields(const Gradient& gradient, const NormAnswer& answer, absl::Duration time,
                  std::vector<std::pair<std::string, std::string>>& fields) {
  fields.emplace_back("elements", gradient.ElementsText());
  if (answer.nonfinite_elements > 0) {
    fields.emplace_back("non-finite", absl::StrCat(CountText(answer.nonfinite_elements), ", first ",
                                                   answer.first_nonfinite));
  }
  if (!answer.backend.empty()) fields.emplace_back("backend", answer.backend);
  fields.emplace_back("time",
                      absl::StrCat(DurationText(time), ", ", RateText(gradient.bytes(), time)));
}

std::ostream* ProgressTerminal(bool quiet) {
  const char* kind = std::getenv("TERM");
  const bool erases = kind != nullptr && absl::string_view(kind) != "dumb";
  return !quiet && erases && isatty(STDERR_FILENO) ? &std::cerr : nullptr;
}

}  // namespace gradclip
