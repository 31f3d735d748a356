// UTF-8 as protobuf and terminals take it. Pure functions.
#ifndef GRADCLIP_CLIENT_GRADCLIP_UTF8_H_
#define GRADCLIP_CLIENT_GRADCLIP_UTF8_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace gradclip {

// How many bytes the first character of `text` takes; 0 where they are none (RFC 3629: no overlong
// form, no surrogate, nothing above U+10FFFF). REQUIRES: text is not empty.
size_t Utf8CharacterBytes(absl::string_view text);

bool IsUtf8(absl::string_view text);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_UTF8_H_
