// Who a bearer token belongs to. Tokens are kept, and written down by operators, as hashes: who
// reads the file, or this memory, can't call with what is in it.
// Tokens is a value, Callers thread-safe.
#ifndef GRADCLIP_SERVER_SECURITY_TOKENS_H_
#define GRADCLIP_SERVER_SECURITY_TOKENS_H_

#include <array>
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

class Tokens {
 public:
  // Lines of a name and the SHA-256 of its token in hexadecimal, with blanks between; empty lines
  // and those that begin with # mean nothing. A name (letters, digits and -_.@) may have several
  // tokens, so that the next can be handed out before the last is withdrawn. INVALID_ARGUMENT,
  // with the line's number and never its hash, for anything else, for the same hash twice and
  // where there is no token at all.
  static absl::StatusOr<Tokens> Parse(absl::string_view text);

  // The name of the token; null for an unknown one. Takes the same time whichever it is.
  const std::string* Find(absl::string_view token) const;

  size_t size() const { return entries_.size(); }

 private:
  using Hash = std::array<unsigned char, 32>;
  struct Entry {
    std::string name;
    Hash hash;
  };

  static Hash HashOf(absl::string_view token);

  std::vector<Entry> entries_;
};

// Tokens of a file that is followed while the server runs.
class Callers {
 public:
  // Errors as Tokens::Parse and ReadFlagFile, naming --auth-token-file. `log` must outlive this.
  static absl::StatusOr<std::unique_ptr<Callers>> Make(const std::string& auth_token_file,
                                                       Log& log);

  // Who calls with this `authorization` metadata, if there was any. UNAUTHENTICATED, with
  // what to do and nothing about others, for anything but "Bearer TOKEN" with a known token.
  absl::StatusOr<std::string> Authenticate(std::optional<absl::string_view> authorization) const;

 private:
  explicit Callers(std::unique_ptr<FollowedValue<Tokens>> tokens) : tokens_(std::move(tokens)) {}

  const std::unique_ptr<FollowedValue<Tokens>> tokens_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SECURITY_TOKENS_H_
