#include "server/group/redis/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gradclip {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(RedisUrl, NamesHostPortDatabaseAndUser) {
  const absl::StatusOr<RedisAddress> address = ParseRedisUrl("redis://clip@redis-1.example:6380/3");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "redis-1.example");
  EXPECT_EQ(address->port, 6380);
  EXPECT_EQ(address->database, 3u);
  EXPECT_EQ(address->user, "clip");
  EXPECT_EQ(address->Describe(), "redis-1.example:6380/3");
}

TEST(RedisUrl, TakesRedissOwnDefaults) {
  for (const char* url : {"redis://10.0.0.1", "redis://10.0.0.1/", "redis://10.0.0.1:6379/0"}) {
    const absl::StatusOr<RedisAddress> address = ParseRedisUrl(url);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->Describe(), "10.0.0.1:6379/0");
    EXPECT_EQ(address->user, "");
  }
}

TEST(RedisUrl, TakesAnIpv6AddressInBrackets) {
  const absl::StatusOr<RedisAddress> address = ParseRedisUrl("redis://[::1]:7000/2");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "::1");
  EXPECT_EQ(address->Describe(), "[::1]:7000/2");
}

TEST(RedisUrl, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {"", "does not begin with redis://"},
      {"memory", "does not begin with redis://"},
      {"rediss://h", "does not begin with redis://"},
      {"redis://", "there is no host"},
      {"redis://:6379", "there is no host"},
      {"redis://h:0", "the port"},
      {"redis://h:65536", "the port"},
      {"redis://h:", "the port"},
      {"redis://h:x", "the port"},
      {"redis://::1", "there is no host"},
      {"redis://[::1", "is not closed"},
      {"redis://[::1]x", "the port"},
      {"redis://h/x", "number of a database"},
      {"redis://h/-1", "number of a database"},
      {"redis://@h", "the user before @ is empty"},
  };
  for (const auto& [url, why] : wrong) {
    const absl::Status status = ParseRedisUrl(url).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << url;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why)) << url;
  }
}

TEST(RedisUrl, RefusesAPasswordAndDoesNotRepeatIt) {
  for (const char* url : {"redis://clip:hunter2@h", "redis://:hunter2@h:6379/0"}) {
    const absl::Status status = ParseRedisUrl(url).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("put it into a file"));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("hunter2")));
  }
}

TEST(RedisUrl, SeveralStandWithCommasBetween) {
  const auto addresses = ParseRedisUrls("redis://a,redis://b:7000/1");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  ASSERT_EQ(addresses->size(), 2u);
  EXPECT_EQ((*addresses)[1].Describe(), "b:7000/1");
  EXPECT_EQ(ParseRedisUrls("redis://a,").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ParseRedisUrls("redis://a,redis://a:6379/0").status().message()),
              HasSubstr("a:6379/0 is named twice"));
}

}  // namespace
}  // namespace gradclip
