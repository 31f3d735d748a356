// SHA-256 of a text. A pure function.
#ifndef GRADCLIP_SERVER_GROUP_SHA256_H_
#define GRADCLIP_SERVER_GROUP_SHA256_H_

#include <openssl/sha.h>

#include <string>
#include <string_view>

namespace gradclip {

// Its 32 bytes.
inline std::string Sha256(std::string_view text) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_SHA256_H_
