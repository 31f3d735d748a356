#include "client/gradclip/connection_pool.h"

#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/listener.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ConnectionPool, GivesEachCallAConnectionOfItsOwn) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  auto first = pool.Take(absl::InfiniteFuture());
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  const Connection* used_last = second->get();
  EXPECT_NE(first->get(), used_last);
  pool.GiveBack(*std::move(first));
  pool.GiveBack(*std::move(second));
  EXPECT_EQ(pool.Take(absl::InfiniteFuture())->get(), used_last);
}

TEST(ConnectionPool, ConnectsAnewWhereTheIdleOnesAreLostOrTheServerIs) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  const auto accept = [&] { return listener.Accept(); };
  pool.GiveBack(*pool.Take(absl::InfiniteFuture()));
  const int lost = accept();
  shutdown(lost, SHUT_RDWR);
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE((*second)->Alive());
  const int cleared = accept();  // returns only where it connected anew
  pool.GiveBack(*std::move(second));
  pool.Lose(listener.address());
  auto third = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(third.ok()) << third.status();
  for (const int one : {lost, cleared, accept()}) close(one);
}

TEST(ConnectionPool, KeepsAFewIdleOnes) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  std::vector<std::unique_ptr<Connection>> taken;
  for (int i = 0; i < 9; ++i) taken.push_back(*pool.Take(absl::InfiniteFuture()));
  std::set<const Connection*> kept;
  for (int i = 0; i < 9; ++i) {
    if (i < 8) kept.insert(taken[i].get());
    pool.GiveBack(std::move(taken[i]));
  }
  for (int i = 0; i < 8; ++i) taken[i] = *pool.Take(absl::InfiniteFuture());
  for (int i = 0; i < 8; ++i) EXPECT_EQ(kept.count(taken[i].get()), 1u) << i;
  EXPECT_EQ(kept.count(pool.Take(absl::InfiniteFuture())->get()), 0u);
}

// An address at which nobody listens, any more.
std::string Deserted() {
  const Listener listener;
  return listener.address();
}

TEST(ConnectionPool, TriesItsAddressesInOrderFromTheOneReachedLast) {
  const Listener one;
  const Listener two;
  const std::string deserted = Deserted();
  ConnectionPool pool(absl::StrCat(deserted, ",", one.address(), ",", two.address()));
  const auto next = [&] {
    auto taken = pool.Take(absl::InfiniteFuture());
    return taken.ok() ? (*taken)->address() : taken.status().ToString();
  };
  EXPECT_EQ(next(), one.address());
  EXPECT_EQ(next(), one.address());
  pool.PassOver(deserted);  // not the one that is in use
  EXPECT_EQ(next(), one.address());
  pool.Lose(one.address());  // it may be back
  EXPECT_EQ(next(), one.address());
  pool.PassOver(one.address());
  EXPECT_EQ(next(), two.address());
  EXPECT_EQ(next(), two.address());
  pool.PassOver(two.address());  // after it comes the first, where nobody is
  EXPECT_EQ(next(), one.address());
}

TEST(ConnectionPool, StartsOverWithTheFirstAddress) {
  const Listener one;
  const Listener two;
  ConnectionPool pool(absl::StrCat(one.address(), ",", two.address()));
  auto first = pool.Take(absl::InfiniteFuture());
  pool.PassOver(one.address());
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ((*second)->address(), two.address());
  const Connection* const kept = first->get();
  pool.GiveBack(*std::move(first));
  pool.GiveBack(*std::move(second));
  pool.StartOver();
  first = pool.Take(absl::InfiniteFuture());
  EXPECT_EQ(first->get(), kept);
  EXPECT_EQ((*pool.Take(absl::InfiniteFuture()))->address(), one.address());
}

TEST(ConnectionPool, LosesTheIdleOnesToOneAddressAlone) {
  const Listener one;
  const Listener two;
  ConnectionPool pool(absl::StrCat(one.address(), ",", two.address()));
  auto first = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(first.ok()) << first.status();
  pool.PassOver(one.address());
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(second.ok()) << second.status();
  const Connection* const kept = second->get();
  pool.GiveBack(*std::move(first));
  pool.GiveBack(*std::move(second));
  pool.Lose(one.address());
  EXPECT_EQ(pool.Take(absl::InfiniteFuture())->get(), kept);
}

TEST(ConnectionPool, NamesEachAddressWhereNobodyAnswers) {
  const std::string one = Deserted();
  ConnectionPool pool(absl::StrCat(one, ",unix:/no/such/socket"));
  const absl::Status status = pool.Take(absl::InfiniteFuture()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr(one + ": can't connect: Connection refused"));
  EXPECT_THAT(status.message(), HasSubstr("; unix:/no/such/socket: can't connect"));
}

TEST(ConnectionPool, RefusesAListWithAnAddressThatCantBeRead) {
  const Listener listener;
  for (const char* rest : {",", ",nowhere", ",localhost:0"}) {
    ConnectionPool pool(listener.address() + rest);
    EXPECT_EQ(pool.Take(absl::InfiniteFuture()).status().code(), absl::StatusCode::kInvalidArgument)
        << rest;
  }
}

TEST(ConnectionPool, LeavesEachAddressAShareOfTheTime) {
  const Listener one;
  const Listener two;
  ConnectionPool pool(absl::StrCat(one.address(), ",", two.address()), TlsOptions());  // no answer
  const absl::Status status = pool.Take(absl::Now() + absl::Seconds(1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(one.address() + ": no answer within its share of the call's timeout"),
                    HasSubstr(two.address() + ": no TLS handshake before the call's timeout")));
}

}  // namespace
}  // namespace gradclip
