// Which identity may do what, as an operator's file says it (--allow). An identity is the name of a
// token or of a certificate, or uid:N for a user of a unix socket; callers without a name have
// the empty one.
// Permission and AllowList are values, the checks pure functions, Permissions is thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_ALLOW_LIST_H_
#define GRADCLIP_SERVER_SECURITY_ALLOW_LIST_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/observe/log.h"
#include "server/security/followed_value.h"

namespace gradclip {

// What one identity may do.
struct Permission {
  // It may use the jobs whose names begin with one of these. Absent: all; empty: none.
  std::optional<std::vector<std::string>> jobs = std::nullopt;
  bool shared_memory = true;
  uint64_t max_gradient_bytes = std::numeric_limits<uint64_t>::max();  // of one call
};

// PERMISSION_DENIED, with the numbers and what to do, for what `identity` may not do.
absl::Status CheckJob(const Permission& permission, absl::string_view identity,
                      absl::string_view job);
absl::Status CheckSharedMemory(const Permission& permission, absl::string_view identity);
absl::Status CheckGradientBytes(const Permission& permission, absl::string_view identity,
                                uint64_t bytes);

class AllowList {
 public:
  // A line for each identity, of words with blanks between:
  //
  //   IDENTITY [jobs=PREFIX[,PREFIX]...] [shared-memory=yes|no] [max-gradient-bytes=BYTES]
  //
  // Without a key there is no limit of its kind. "jobs=" with nothing after it is no job at all.
  // BYTES is what ParseBytes() takes, without blanks: 512MiB. The identity * is whoever has no line
  // of its own; where there is none, those may do nothing. Lines do not add up: who has one of its
  // own has nothing of the line of *. Empty lines and those that begin with # mean nothing. A name
  // with blanks, or one that begins with #, can have no line but that of *.
  //
  // INVALID_ARGUMENT, with the line's number and what it should be, for anything else: a key or an
  // identity twice, a key that there is not. The same where there is no line at all.
  static absl::StatusOr<AllowList> Parse(absl::string_view text);

  // Null: it may do nothing.
  const Permission* Find(absl::string_view identity) const;

  size_t size() const { return by_identity_.size(); }

 private:
  std::map<std::string, Permission, std::less<>> by_identity_;
};

// The list of a file that is followed while the server runs. A new version that can't be used is
// reported in the log, and changes nothing.
class Permissions {
 public:
  // Errors as AllowList::Parse and ReadFlagFile, naming --allow. `log` must outlive this.
  static absl::StatusOr<std::unique_ptr<Permissions>> Make(const std::string& allow, Log& log);

  // What `identity` may do by the list as it is now; never null. PERMISSION_DENIED, with what to do
  // and nothing about others, for one that may do nothing.
  absl::StatusOr<std::shared_ptr<const Permission>> Of(absl::string_view identity) const;

 private:
  explicit Permissions(std::unique_ptr<FollowedValue<AllowList>> list) : list_(std::move(list)) {}

  const std::unique_ptr<FollowedValue<AllowList>> list_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_ALLOW_LIST_H_
