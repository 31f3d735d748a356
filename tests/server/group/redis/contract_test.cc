#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "server/group/redis/redis_store.h"
#include "tests/server/group/redis/redis_server.h"
#include "tests/server/group/store_contract.h"

namespace gradclip {
namespace {

std::vector<std::unique_ptr<Store>> MakeStores(const GroupTimes& times, int servers) {
  // One for all tests, whose jobs differ.
  static const RedisServer server;
  RedisOptions options;
  options.endpoints = {server.address()};
  std::vector<std::unique_ptr<Store>> stores;
  for (int i = 0; i < servers; ++i) {
    absl::StatusOr<std::unique_ptr<RedisStore>> store = RedisStore::Make(options, times, nullptr);
    EXPECT_TRUE(store.ok()) << store.status();
    stores.push_back(*std::move(store));
  }
  return stores;
}

INSTANTIATE_TEST_SUITE_P(Redis, StoreContract,
                         testing::Values(StoreKind{
                             MakeStores, "redis",
                             [](Store& store) {
                               static_cast<RedisStore&>(store).WaitUntilIdle();
                             }}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gradclip
