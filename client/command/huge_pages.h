// Whether shared gradients get huge pages, which is up to who runs the machine. Thread-safe:
// functions only.
#ifndef GRADCLIP_CLIENT_COMMAND_HUGE_PAGES_H_
#define GRADCLIP_CLIENT_COMMAND_HUGE_PAGES_H_

#include <string>

#include "absl/strings/string_view.h"

namespace gradclip {

// The system's setting for memfds; what it may be and means is in the kernel's
// Documentation/admin-guide/mm/transhuge.rst.
inline constexpr char kShmemEnabled[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

// What it says, and what to set where that is not enough; `setting` is the file's text, such as
// "always within_size advise [never] deny force". Empty where it can't be read.
std::string HugePagesText(absl::string_view setting);

// The file's text; empty where there is none.
std::string ReadHugePagesSetting();

// Whether there is a socket at `path`, as far as this process sees.
bool IsSocketHere(const std::string& path);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_HUGE_PAGES_H_
