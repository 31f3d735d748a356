#include "server/group/redis/options.h"

#include <set>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

constexpr absl::string_view kForm = "redis://[USER@]HOST[:PORT][/DB]";

}  // namespace

std::string RedisAddress::Describe() const {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return absl::StrCat(is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "", ":", port, "/", database);
}

absl::StatusOr<RedisAddress> ParseRedisUrl(std::string_view url) {
  const auto refuse = [url](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::Utf8SafeCEscape(absl::string_view(url.data(), url.size())),
                     "\" is not ", kForm, ": ", why));
  };
  constexpr std::string_view kScheme = "redis://";
  std::string_view rest = url;
  const size_t at = rest.rfind('@');
  if (at != std::string_view::npos) {
    const size_t user_begin = rest.starts_with(kScheme) ? kScheme.size() : 0;
    if (rest.substr(0, at).find(':', user_begin) != std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("a URL of Redis holds a password, which everybody who may list processes "
                       "would read: put it into a file or the environment. The form is ",
                       kForm));
    }
  }
  if (!rest.starts_with(kScheme)) return refuse("it does not begin with redis://");
  rest.remove_prefix(kScheme.size());

  RedisAddress address;
  if (at != std::string_view::npos) {
    const size_t user_bytes = at - kScheme.size();
    address.user = std::string(rest.substr(0, user_bytes));
    if (address.user.empty()) return refuse("the user before @ is empty");
    rest.remove_prefix(user_bytes + 1);
  }
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    const std::string database(rest.substr(slash + 1));
    if (!database.empty() && !absl::SimpleAtoi(database, &address.database)) {
      return refuse("what follows / is not the number of a database");
    }
    rest = rest.substr(0, slash);
  }
  size_t host_end = rest.find(':');
  if (rest.starts_with('[')) {
    const size_t bracket = rest.find(']');
    if (bracket == std::string_view::npos) return refuse("a [ is not closed");
    address.host = std::string(rest.substr(1, bracket - 1));
    host_end = bracket + 1;
  } else {
    address.host = std::string(rest.substr(0, host_end));
  }
  if (address.host.empty()) return refuse("there is no host");
  if (host_end >= rest.size()) return address;
  uint32_t port = 0;
  if (rest[host_end] != ':' || !absl::SimpleAtoi(std::string(rest.substr(host_end + 1)), &port) ||
      port == 0 || port > 65535) {
    return refuse("the port is not a number from 1 to 65535 (an IPv6 address stands in [ ])");
  }
  address.port = static_cast<uint16_t>(port);
  return address;
}

absl::StatusOr<std::vector<RedisAddress>> ParseRedisUrls(std::string_view urls) {
  std::vector<RedisAddress> addresses;
  std::set<std::string> known;
  for (const absl::string_view url :
       absl::StrSplit(absl::string_view(urls.data(), urls.size()), ',')) {
    absl::StatusOr<RedisAddress> address = ParseRedisUrl({url.data(), url.size()});
    if (!address.ok()) return address.status();
    if (!known.insert(address->Describe()).second) {
      return absl::InvalidArgumentError(absl::StrCat(address->Describe(), " is named twice"));
    }
    addresses.push_back(*std::move(address));
  }
  return addresses;
}

}  // namespace gradclip
