#include "server/security/tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/security/file_lines.h"

namespace gradclip {
namespace {

constexpr absl::string_view kFlag = "auth-token-file";
constexpr size_t kLongestName = 64;

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kLongestName &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) ||
                  absl::string_view("-_.@").find(static_cast<char>(c)) != absl::string_view::npos;
         });
}

}  // namespace

Tokens::Hash Tokens::HashOf(absl::string_view token) {
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), hash.data());
  return hash;
}

absl::StatusOr<Tokens> Tokens::Parse(absl::string_view text) {
  Tokens tokens;
  for (const FileLine& line : FileLines(text)) {
    const std::vector<absl::string_view>& words = line.words;
    if (words.size() != 2) {
      return Malformed(line.number, "does not consist of a name and the SHA-256 of its token");
    }
    if (!IsName(words[0])) {
      return Malformed(line.number,
                       absl::StrCat("begins with no name: letters, digits and -_.@, at "
                                    "most ",
                                    kLongestName));
    }
    Entry entry = {std::string(words[0]), {}};
    if (words[1].size() != 2 * entry.hash.size() ||
        !std::all_of(words[1].begin(), words[1].end(), absl::ascii_isxdigit)) {
      return Malformed(line.number, "has no SHA-256 after the name: 64 hexadecimal digits");
    }
    const std::string hash = absl::HexStringToBytes(words[1]);
    std::copy(hash.begin(), hash.end(), entry.hash.begin());
    if (entry.hash == HashOf("")) {
      return Malformed(line.number, "has the SHA-256 of nothing: the token was empty");
    }
    for (const Entry& other : tokens.entries_) {
      if (other.hash == entry.hash) {
        return Malformed(line.number, absl::StrCat("has the token of ", other.name, " again"));
      }
    }
    tokens.entries_.push_back(std::move(entry));
  }
  if (tokens.entries_.empty()) {
    return absl::InvalidArgumentError("has no token, so that nobody could call");
  }
  return tokens;
}

const std::string* Tokens::Find(absl::string_view token) const {
  const Hash hash = HashOf(token);
  const std::string* found = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.hash.data(), hash.data(), hash.size()) == 0) found = &entry.name;
  }
  return found;
}

absl::StatusOr<std::unique_ptr<Callers>> Callers::Make(const std::string& auth_token_file,
                                                       Log& log) {
  auto tokens = FollowedValue<Tokens>::Make("tokens", std::string(kFlag), auth_token_file, log);
  if (!tokens.ok()) return tokens.status();
  return std::unique_ptr<Callers>(new Callers(*std::move(tokens)));
}

absl::StatusOr<std::string> Callers::Authenticate(
    std::optional<absl::string_view> authorization) const {
  constexpr absl::string_view kScheme = "bearer ";
  if (!authorization.has_value()) {
    return absl::UnauthenticatedError(
        "the call has no token, and this server wants one: send the metadata authorization: Bearer "
        "TOKEN (the client's token_file, the command's --token-file)");
  }
  if (!absl::StartsWithIgnoreCase(*authorization, kScheme)) {
    return absl::UnauthenticatedError(
        "the metadata authorization is not of the form Bearer TOKEN, which this server wants");
  }
  const std::shared_ptr<const Tokens> tokens = tokens_->now();
  const std::string* const name = tokens->Find(authorization->substr(kScheme.size()));
  if (name == nullptr) {
    return absl::UnauthenticatedError(
        "the call's token is not known here: it may be mistyped, another server's or withdrawn; "
        "ask who runs the server for one");
  }
  return *name;
}

}  // namespace gradclip
