// What an operator's file says, read again whenever it changes. Thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_FOLLOWED_VALUE_H_
#define GRADCLIP_SERVER_SECURITY_FOLLOWED_VALUE_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/observe/log.h"
#include "server/security/followed_files.h"

namespace gradclip {

// Value: has a static Parse(text), whose error says what is wrong, and size().
template <typename Value>
class FollowedValue {
 public:
  // Follows the file of `flag`; `what` is in it, for the log: "tokens". Errors as Value::Parse and
  // ReadFlagFile, naming the flag. A new version that can't be used is reported in the log, and
  // changes nothing. `log` must outlive this.
  static absl::StatusOr<std::unique_ptr<FollowedValue>> Make(const std::string& what,
                                                             const std::string& flag,
                                                             const std::string& path, Log& log) {
    std::unique_ptr<FollowedValue> value(new FollowedValue);
    const auto take = [self = value.get(), what, flag, path, &log]() -> absl::StatusOr<absl::Time> {
      const absl::StatusOr<std::string> text = ReadFlagFile(flag, path);
      if (!text.ok()) return text.status();
      absl::StatusOr<Value> parsed = Value::Parse(*text);
      if (!parsed.ok()) return RefuseFlagFile(flag, path, parsed.status().message());
      log.Info(absl::StrCat(what, " in use"), {{"count", parsed->size()}});
      const auto shared = std::make_shared<const Value>(*std::move(parsed));
      const std::lock_guard lock(self->mutex_);
      self->value_ = shared;
      return absl::InfiniteFuture();
    };
    auto followed = FollowedFiles::Follow(what, {path}, take, log);
    if (!followed.ok()) return followed.status();
    value->followed_ = *std::move(followed);
    return value;
  }

  // As it is now; never null.
  std::shared_ptr<const Value> now() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }

 private:
  FollowedValue() = default;

  mutable std::mutex mutex_;
  std::shared_ptr<const Value> value_;       // guarded by mutex_
  std::unique_ptr<FollowedFiles> followed_;  // last: reads the file again
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_FOLLOWED_VALUE_H_
