#include "server/session/device_pieces.h"

#include <algorithm>

#include "absl/functional/function_ref.h"
#include "server/session/device_findings.h"

namespace gradclip {
namespace {

// As much of some pieces as a device takes at once. runs[i] has elements of pieces[from[i].piece],
// from from[i].element on.
struct Batch {
  struct From {
    size_t piece = 0;
    uint64_t element = 0;
  };
  std::vector<DeviceRun> runs;
  std::vector<From> from;
};

absl::Status ForEachBatch(std::span<const Piece> pieces,
                          absl::FunctionRef<absl::Status(const Batch&)> visit) {
  Batch batch;
  uint64_t blocks = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    for (uint64_t element = 0; element < piece.count;) {
      const uint64_t most = (DeviceMemory::kMostBlocks - blocks) * kBlockElements;
      const uint64_t elements = std::min<uint64_t>(piece.count - element, most);
      batch.runs.push_back({.address = reinterpret_cast<uint64_t>(piece.elements) +
                                       element * ElementSize(piece.dtype),
                            .elements = elements,
                            .first_block = blocks,
                            .dtype = piece.dtype,
                            .counted = piece.counted});
      batch.from.push_back({i, element});
      blocks += BlocksOf(elements);
      element += elements;
      if (batch.runs.size() < DeviceMemory::kMostRuns && blocks < DeviceMemory::kMostBlocks) {
        continue;
      }
      if (absl::Status visited = visit(batch); !visited.ok()) return visited;
      batch = Batch();
      blocks = 0;
    }
  }
  return batch.runs.empty() ? absl::OkStatus() : visit(batch);
}

// Adds what was found in elements of a piece, from `element` on.
void AddFound(const TensorSummary& found, uint64_t element, TensorSummary& summary) {
  if (summary.nonfinite == 0 && found.nonfinite > 0) {
    summary.first_nonfinite = element + found.first_nonfinite;
  }
  summary.nonfinite += found.nonfinite;
  summary.zeros += found.zeros;
}

absl::StatusOr<PiecesNorm> MeasureOnHost(DeviceMemory& memory, const Backend& host,
                                         const CallSpec& spec, std::span<const Piece> pieces) {
  GradientNorm norm(host, spec.norm_type, spec.per_tensor, spec.rule.pre_scale);
  std::vector<TensorSummary> summaries;
  std::vector<std::byte> bytes;
  for (const Piece& piece : pieces) {
    norm.BeginTensor(piece.dtype, piece.counted);
    for (size_t byte = 0; byte < piece.bytes(); byte += bytes.size()) {
      bytes.resize(std::min(piece.bytes() - byte, DeviceQueue::kSlotBytes));
      const absl::Status came =
          memory.Fetch(reinterpret_cast<uint64_t>(piece.elements) + byte, bytes);
      if (!came.ok()) return came;
      norm.Add(bytes.data(), bytes.size() / ElementSize(piece.dtype));
    }
    summaries.push_back(norm.EndTensor());
  }
  return PiecesNorm{norm.total(), std::move(summaries)};
}

}  // namespace

absl::StatusOr<PiecesNorm> MeasureOnDevice(DeviceMemory& memory, const Backend& host,
                                           const CallSpec& spec, std::span<const Piece> pieces) {
  if (!DevicesMeasure(spec.norm_type)) return MeasureOnHost(memory, host, spec, pieces);
  PiecesNorm norm = {NormPartial(spec.norm_type), std::vector<TensorSummary>(pieces.size())};
  NormPartial sum(spec.norm_type);  // per_tensor: of the piece at hand
  const auto take = [&](const Batch& batch, const DeviceFound& found) {
    if (!spec.per_tensor) norm.sum.AddTally(*found.tally);
    for (size_t i = 0; i < batch.runs.size(); ++i) {
      const DeviceRun& run = batch.runs[i];
      const Batch::From from = batch.from[i];
      TensorSummary& summary = norm.pieces[from.piece];
      if (!spec.per_tensor) {
        AddFound(NonfiniteIn(*found.tally, run), from.element, summary);
        continue;
      }
      AddFound(AddBlocksOf(found, run, sum), from.element, summary);
      if (from.element + run.elements < pieces[from.piece].count) continue;
      summary.norm = sum.Norm(spec.rule.pre_scale);
      if (run.counted) norm.sum.Merge(sum);
      sum.Clear();
    }
  };
  const absl::Status measured = ForEachBatch(pieces, [&](const Batch& batch) {
    return memory.Measure(batch.runs, KindOf(spec.norm_type), spec.per_tensor,
                          [&](const DeviceFound& found) { take(batch, found); });
  });
  if (!measured.ok()) return measured;
  return norm;
}

absl::Status ScaleOnDevice(DeviceMemory& memory, std::span<const Piece> pieces, double coefficient,
                           bool assign_zero) {
  const bool changes = std::any_of(pieces.begin(), pieces.end(), [&](const Piece& piece) {
    return assign_zero || !LeavesUnchanged(piece.dtype, coefficient);
  });
  if (!changes) return absl::OkStatus();
  return ForEachBatch(pieces, [&](const Batch& batch) {
    return memory.Scale(batch.runs, coefficient, assign_zero);
  });
}

absl::StatusOr<std::vector<std::byte>> FetchFromDevice(DeviceMemory& memory, const Piece& piece) {
  std::vector<std::byte> bytes(piece.bytes());
  const absl::Status came = memory.Fetch(reinterpret_cast<uint64_t>(piece.elements), bytes);
  if (!came.ok()) return came;
  return bytes;
}

}  // namespace gradclip
