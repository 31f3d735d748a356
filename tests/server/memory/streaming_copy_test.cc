#include "server/memory/streaming_copy.h"

#include <gtest/gtest.h>

#include <vector>

namespace gradclip {
namespace {

TEST(StreamingCopy, CopiesEveryLengthBetweenAllAlignmentsAndNothingBeyond) {
  std::vector<std::byte> source(512);
  for (size_t i = 0; i < source.size(); ++i) source[i] = std::byte(i * 37 % 251);
  alignas(64) std::byte destination[512];
  for (size_t to : {0, 1, 15, 16, 63}) {
    for (size_t from : {0, 1, 7, 16}) {
      for (size_t bytes = 0; bytes <= 300; ++bytes) {
        for (std::byte& byte : destination) byte = std::byte{0xff};
        StreamingCopy(destination + to, source.data() + from, bytes);
        for (size_t i = 0; i < sizeof destination; ++i) {
          const bool copied = i >= to && i < to + bytes;
          ASSERT_EQ(destination[i], copied ? source[from + i - to] : std::byte{0xff})
              << bytes << " bytes from " << from << " to " << to << ", at " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gradclip
