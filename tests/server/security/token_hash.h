// What a line of --auth-token-file says of a token.
#ifndef GRADCLIP_TESTS_SERVER_SECURITY_TOKEN_HASH_H_
#define GRADCLIP_TESTS_SERVER_SECURITY_TOKEN_HASH_H_

#include <openssl/sha.h>

#include <string>

#include "absl/strings/escaping.h"

namespace gradclip {

// SHA-256, in hexadecimal.
inline std::string HashOf(const std::string& token) {
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), hash);
  return absl::BytesToHexString({reinterpret_cast<const char*>(hash), sizeof(hash)});
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SECURITY_TOKEN_HASH_H_
