#include "server/group/participant.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace gradclip {
namespace {

constexpr size_t kShownJobBytes = 64;

void PutLittleEndian(uint64_t value, size_t bytes, std::string& out) {
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> 8 * i));
}

// Takes `bytes` bytes off the front of `in`. REQUIRES: they are there.
uint64_t TakeLittleEndian(size_t bytes, std::string_view& in) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= uint64_t{static_cast<uint8_t>(in[i])} << 8 * i;
  in.remove_prefix(bytes);
  return value;
}

}  // namespace

std::string StepId::Describe() const {
  const std::string shown =
      job.size() <= kShownJobBytes ? job : absl::StrCat(job.substr(0, kShownJobBytes), "...");
  return absl::StrFormat("job \"%s\", step %d, attempt %d, generation %d",
                         absl::Utf8SafeCEscape(shown), step, attempt, generation);
}

std::optional<std::string> Disagreement(const Terms& mine, uint32_t my_rank, const Terms& others,
                                        uint32_t other_rank) {
  for (size_t i = 0; i < mine.size() && i < others.size(); ++i) {
    if (mine[i] == others[i]) continue;
    return absl::StrFormat("%s is %s at rank %d and %s at rank %d", mine[i].field, mine[i].value,
                           my_rank, others[i].value, other_rank);
  }
  if (mine.size() == others.size()) return std::nullopt;
  return absl::StrFormat("rank %d and rank %d call servers of different versions", my_rank,
                         other_rank);
}

// u64 nonfinite_elements, u32 length of the partial norm, the partial norm, first_nonfinite.
std::string Contribution::Serialize() const {
  const std::string norm = partial.Serialize();
  std::string bytes;
  bytes.reserve(12 + norm.size() + first_nonfinite.size());
  PutLittleEndian(nonfinite_elements, 8, bytes);
  PutLittleEndian(norm.size(), 4, bytes);
  bytes += norm;
  bytes += first_nonfinite;
  return bytes;
}

absl::StatusOr<Contribution> Contribution::Parse(std::string_view bytes) {
  constexpr size_t kHead = 12;
  if (bytes.size() < kHead) {
    return absl::InvalidArgumentError(
        absl::StrCat("contribution: cut off after ", bytes.size(), " bytes"));
  }
  Contribution contribution;
  contribution.nonfinite_elements = TakeLittleEndian(8, bytes);
  const uint64_t length = TakeLittleEndian(4, bytes);
  if (length > bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("contribution: a partial norm of ", length,
                                                   " bytes, of which ", bytes.size(),
                                                   " are there"));
  }
  absl::StatusOr<NormPartial> partial = NormPartial::Parse(bytes.substr(0, length));
  if (!partial.ok()) return partial.status();
  contribution.partial = *std::move(partial);
  contribution.first_nonfinite = std::string(bytes.substr(length));
  return contribution;
}

absl::StatusOr<Outcome> Merge(const std::map<uint32_t, std::string>& contributions) {
  Outcome outcome;
  bool first = true;
  for (const auto& [rank, serialised] : contributions) {
    const absl::StatusOr<Contribution> contribution = Contribution::Parse(serialised);
    if (!contribution.ok()) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, ": ", contribution.status().message()));
    }
    if (first) outcome.total = NormPartial(contribution->partial.norm_type());
    first = false;
    if (contribution->partial.norm_type() != outcome.total.norm_type()) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, ": a partial norm of p = ", contribution->partial.norm_type(),
                       " among p = ", outcome.total.norm_type()));
    }
    outcome.total.Merge(contribution->partial);
    outcome.nonfinite_elements += contribution->nonfinite_elements;
    if (outcome.first_nonfinite.empty() && !contribution->first_nonfinite.empty()) {
      outcome.first_nonfinite = absl::StrCat(contribution->first_nonfinite, " of rank ", rank);
    }
  }
  return outcome;
}

std::string ListRanks(const std::vector<uint32_t>& first, uint64_t count) {
  std::string list = absl::StrJoin(first, ", ");
  if (count > first.size()) absl::StrAppend(&list, " and ", count - first.size(), " more");
  return list;
}

}  // namespace gradclip
