// What the ranks of a chaos run did and were told. Each rank writes its calls down in a file of its
// own, in two lines: one before a call begins, one after it has ended. A process that is killed
// amid a call leaves the first line alone: nobody knows what became of that call.
#ifndef GRADCLIP_TESTS_CHAOS_HISTORY_H_
#define GRADCLIP_TESTS_CHAOS_HISTORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace gradclip {

struct Call {
  enum class Kind {
    kOwn,       // the rank's gradient
    kUsurping,  // another gradient in its name, after its own was answered
    kMistaken,  // the rank's gradient with another max_norm than all ranks have
  };
  struct End {
    absl::Time at;
    absl::Status status = {};
    double total_norm = 0;  // where the status is OK
    double coefficient = 0;
  };

  uint32_t rank = 0;
  uint64_t step = 0;
  uint32_t attempt = 0;
  Kind kind = Kind::kOwn;
  uint64_t sum_of_squares = 0;  // of the gradient that was sent, whose elements are whole numbers
  absl::Time begun = {};
  std::optional<End> end = {};
};

// What a call's end says of its attempt.
enum class Told {
  kUnknown,     // nothing: it did not end, or ended with the caller's own deadline or a lost
                // connection
  kCommitted,   // OK
  kAborted,     // the attempt was aborted
  kOver,        // the attempt is none that can be committed: another has been, or is later
  kTaken,       // ALREADY_EXISTS
  kOtherTerms,  // the attempt was committed, and with other options
  kUnexpected,  // a status that no call of this kind may get
};
Told WhatIsTold(const Call& call);

// The attempt that committed the step, where the call was told that it was another one.
std::optional<uint32_t> CommittedBy(const Call& call);

// For messages: "rank 3, step 5, attempt 0, begun at 1.25s, ended at 1.5s: OK 17.5".
std::string Describe(const Call& call);

// One file. Not thread-safe.
class HistoryWriter {
 public:
  // Appends to what an earlier process of the rank wrote. Ends the process where it can't.
  explicit HistoryWriter(const std::string& path);
  ~HistoryWriter();
  HistoryWriter(const HistoryWriter&) = delete;
  HistoryWriter& operator=(const HistoryWriter&) = delete;

  void Begin(const Call& call);
  void End(const Call::End& end);

 private:
  void Write(const std::string& line) const;

  int file_ = -1;
};

// In the order in which they began; empty where there is no file. The rank may still be writing.
std::vector<Call> ReadHistory(const std::string& path);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CHAOS_HISTORY_H_
