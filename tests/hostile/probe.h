// Another caller of the server under attack: whether it is still answered, and how soon.
#ifndef GRADCLIP_TESTS_HOSTILE_PROBE_H_
#define GRADCLIP_TESTS_HOSTILE_PROBE_H_

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradclip::hostile {

// Clips the gradient [3, 4] over a connection of its own, as the contract's example does. Returns
// how long it took from connecting to the end of the answer.
absl::StatusOr<absl::Duration> ClipOnce(const std::string& address, absl::Duration timeout);

// Does so ten times a second, on a thread of its own. Thread-safe.
class Probe {
 public:
  explicit Probe(std::string address);
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  struct Seen {
    int asked = 0;
    int answered = 0;
    absl::Duration longest;  // of those that were answered
  };
  Seen seen() const;

 private:
  void Run();

  const std::string address_;
  mutable std::mutex mutex_;
  Seen seen_;  // guarded by mutex_
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_PROBE_H_
