#include "tests/bench/pytorch_process.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace gradclip::bench {

absl::StatusOr<PyTorch> PyTorch::Start(const ScratchFolder& folder,
                                       std::span<const Tensor> tensors) {
  std::vector<std::string> arguments = {GRADCLIP_BENCH_PYTORCH,
                                        std::string(Name(tensors.front().dtype))};
  // A run of tensors of one shape is one argument: thousands would make a long command line.
  for (size_t i = 0; i < tensors.size();) {
    size_t next = i;
    while (next < tensors.size() && tensors[next].shape == tensors[i].shape) ++next;
    arguments.push_back(absl::StrCat(next - i, ":", absl::StrJoin(tensors[i].shape, "x")));
    i = next;
  }
  absl::Status missing;
  // The first may be one of the user's own, without PyTorch; the other has Debian's packages.
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    absl::StatusOr<std::unique_ptr<Child>> process =
        Child::Start(python, arguments, folder.path() + "/python.log");
    if (!process.ok()) return process.status();
    absl::StatusOr<std::string> version = (*process)->ReadLine();
    if (version.ok()) return PyTorch(*std::move(process), *std::move(version));
    missing = version.status();
  }
  return missing;
}

absl::StatusOr<double> PyTorch::Clip(double max_norm) {
  if (absl::Status asked = process_->WriteLine(absl::StrCat(max_norm)); !asked.ok()) return asked;
  const absl::StatusOr<std::string> answer = process_->ReadLine();
  if (!answer.ok()) return answer.status();
  double seconds = 0;
  if (!absl::SimpleAtod(*answer, &seconds)) return absl::InternalError(*answer);
  return seconds;
}

}  // namespace gradclip::bench
