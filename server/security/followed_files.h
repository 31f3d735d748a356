// Files that an operator renews while the server runs: looks at them once a second, and has them
// read again where they have changed. Thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_FOLLOWED_FILES_H_
#define GRADCLIP_SERVER_SECURITY_FOLLOWED_FILES_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/observe/log.h"

namespace gradclip {

class FollowedFiles {
 public:
  // Takes over what is in the files; returns the moment from which on that is to be read again
  // though it has not changed.
  using Take = std::function<absl::StatusOr<absl::Time>()>;

  // Calls `take`, and returns its error. From then on it is called again, on a thread of this
  // object's, where one of the files has changed, at the moment that it named, and where it failed
  // the last time: what was missing may be a right, or a certificate's first day. A failure then is
  // logged, once for each reason, as a warning that begins with `what`: "TLS certificate". `log`
  // must outlive this.
  static absl::StatusOr<std::unique_ptr<FollowedFiles>> Follow(std::string what,
                                                               std::vector<std::string> paths,
                                                               Take take, Log& log);
  ~FollowedFiles();  // waits for `take`

  FollowedFiles(const FollowedFiles&) = delete;
  FollowedFiles& operator=(const FollowedFiles&) = delete;

 private:
  FollowedFiles(std::string what, std::vector<std::string> paths, Take take, Log& log);

  void Watch();
  void LookAgain();
  // Changes whenever one of the files does: which they are, when they changed, how long they are.
  std::string Stamp() const;

  const std::string what_;
  const std::vector<std::string> paths_;
  const Take take_;
  Log& log_;
  std::string seen_;       // Stamp() at the last look; the thread's, once it runs
  absl::Time good_until_;  // the last good look's; the same
  std::string complaint_;  // why the last look failed; the same

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

// The text of a file of an operator's. INVALID_ARGUMENT, naming flag, file and reason, where it
// can't be read, is no regular file or has more than 1 MiB.
absl::StatusOr<std::string> ReadFlagFile(absl::string_view flag, const std::string& path);

// INVALID_ARGUMENT for a flag that names a file: "--tls-key=key.pem: can't be read: ...".
absl::Status RefuseFlagFile(absl::string_view flag, const std::string& path, absl::string_view why);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_FOLLOWED_FILES_H_
