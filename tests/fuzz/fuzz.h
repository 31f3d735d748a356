// What the fuzz targets share.
#ifndef GRADCLIP_TESTS_FUZZ_FUZZ_H_
#define GRADCLIP_TESTS_FUZZ_FUZZ_H_

#include <cstdio>
#include <cstdlib>

// Ends the process where `condition` does not hold, whatever the build type.
#define FUZZ_CHECK(condition)                                                            \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

#endif  // GRADCLIP_TESTS_FUZZ_FUZZ_H_
