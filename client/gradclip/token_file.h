// The bearer token that a client shows with each call. A pure function but for reading the file;
// thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TOKEN_FILE_H_
#define GRADCLIP_CLIENT_GRADCLIP_TOKEN_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace gradclip {

// The token in the file, which is read anew each time: what stands in it but for white space around
// it. INVALID_ARGUMENT, naming the file and never the token, where it can't be read, is empty, has
// more than 4 KiB, or anything but printable ASCII.
absl::StatusOr<std::string> ReadToken(const std::string& token_file);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TOKEN_FILE_H_
