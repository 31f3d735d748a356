#include "server/security/allow_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/client/files/file_bytes.h"
#include "tests/server/security/tls_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uint64_t kNoLimit = UINT64_MAX;

AllowList Parsed(const std::string& text) {
  absl::StatusOr<AllowList> list = AllowList::Parse(text);
  EXPECT_TRUE(list.ok()) << list.status();
  return list.ok() ? *std::move(list) : AllowList();
}

// What the identity may do by this text; it is there.
Permission Of(const AllowList& list, const std::string& identity) {
  const Permission* const permission = list.Find(identity);
  EXPECT_NE(permission, nullptr) << identity;
  return permission == nullptr ? Permission() : *permission;
}

std::string Error(const std::string& text) {
  const absl::StatusOr<AllowList> list = AllowList::Parse(text);
  if (list.ok()) return "no error";
  EXPECT_TRUE(absl::IsInvalidArgument(list.status()));
  return std::string(list.status().message());
}

bool MayUse(const Permission& permission, const std::string& job) {
  const absl::Status status = CheckJob(permission, "trainer", job);
  EXPECT_TRUE(status.ok() || absl::IsPermissionDenied(status)) << status;
  return status.ok();
}

TEST(AllowListTest, SaysWhatEachIdentityMayDo) {
  const AllowList list = Parsed(
      "# who may do what\n"
      "\n"
      "  trainer-1\tjobs=llama-,eval/  shared-memory=no max-gradient-bytes=512MiB\r\n"
      "spiffe://example.org/trainer?a=b\n"
      "uid:1000 max-gradient-bytes=0\n"
      "   # jobs=none\n"
      "reader jobs=");
  EXPECT_EQ(list.size(), 4);

  const Permission trainer = Of(list, "trainer-1");
  ASSERT_TRUE(trainer.jobs.has_value());
  EXPECT_THAT(*trainer.jobs, ElementsAre("llama-", "eval/"));
  EXPECT_FALSE(trainer.shared_memory);
  EXPECT_EQ(trainer.max_gradient_bytes, uint64_t{512} << 20);

  const Permission all = Of(list, "spiffe://example.org/trainer?a=b");
  EXPECT_FALSE(all.jobs.has_value());
  EXPECT_TRUE(all.shared_memory);
  EXPECT_EQ(all.max_gradient_bytes, kNoLimit);

  EXPECT_EQ(Of(list, "uid:1000").max_gradient_bytes, 0);
  const Permission reader = Of(list, "reader");
  ASSERT_TRUE(reader.jobs.has_value());
  EXPECT_THAT(*reader.jobs, IsEmpty());
}

TEST(AllowListTest, KnowsNobodyWithoutALineWhereThereIsNoneForEverybodyElse) {
  const AllowList list = Parsed("trainer\nuid:1000\n");
  for (const char* other : {"", "trainer-1", "traine", "Trainer", "uid:100", "1000", "*", "#"}) {
    EXPECT_EQ(list.Find(other), nullptr) << other;
  }
}

TEST(AllowListTest, PrefersALineOfOnesOwnToThatOfEverybodyElse) {
  for (const char* text : {"* jobs=guest- shared-memory=no\ntrainer max-gradient-bytes=1k\n",
                           "trainer max-gradient-bytes=1k\n* jobs=guest- shared-memory=no\n"}) {
    const AllowList list = Parsed(text);
    for (const char* other : {"", "trainer-1", "uid:0", "*"}) {
      const Permission permission = Of(list, other);
      EXPECT_FALSE(permission.shared_memory) << other;
      EXPECT_TRUE(permission.jobs.has_value()) << other;
    }
    // Nothing of the other line is added.
    const Permission own = Of(list, "trainer");
    EXPECT_TRUE(own.shared_memory);
    EXPECT_FALSE(own.jobs.has_value());
    EXPECT_EQ(own.max_gradient_bytes, 1000);
  }
}

TEST(AllowListTest, ErrorsNameTheLineAndWhatItShouldBe) {
  EXPECT_EQ(Error(""), "has no line, so that nobody could do anything");
  EXPECT_EQ(Error("# nothing\n\n"), "has no line, so that nobody could do anything");
  EXPECT_EQ(Error("a\n\n a"), "line 3 has the identity \"a\" again, which line 1 has");
  EXPECT_EQ(Error("*\n* jobs=x"), "line 2 has the identity \"*\" again, which line 1 has");

  EXPECT_EQ(Error("jobs=x shared-memory=no"),
            "line 1 begins with \"jobs=x\"; it wants an identity first");
  EXPECT_EQ(Error("a\nshared-memory=no"),
            "line 2 begins with \"shared-memory=no\"; it wants an identity first");
  EXPECT_EQ(Error("jobs"), "line 1 begins with \"jobs\"; it wants an identity first");
  for (const char* user : {"uid:", "uid:root", "uid:-1", "uid:007", "uid:+1", "uid:4294967296"}) {
    EXPECT_EQ(Error(user), absl::StrCat("line 1 begins with \"", user,
                                        "\"; it wants uid: and the number of a user: uid:1000"));
  }
  EXPECT_EQ(Parsed("uid:0\nuid:4294967295").size(), 2);

  EXPECT_EQ(Error("a jobs=x jobs=y"), "line 1 has jobs= twice");
  EXPECT_EQ(Error("a shared-memory=no jobs= shared-memory=no"), "line 1 has shared-memory= twice");
  EXPECT_EQ(Error("a job=x"),
            "line 1 has \"job\", which is no key (did you mean jobs?); there are jobs, "
            "shared-memory, max-gradient-bytes");
  EXPECT_THAT(Error("a share-memory=no"), HasSubstr("did you mean shared-memory?"));
  EXPECT_THAT(Error("a max_gradient_bytes=1"), HasSubstr("did you mean max-gradient-bytes?"));
  EXPECT_EQ(Error("a colour=red"),
            "line 1 has \"colour\", which is no key; there are jobs, shared-memory, "
            "max-gradient-bytes");
  EXPECT_THAT(Error("a =x"), StartsWith("line 1 has \"\", which is no key"));
  for (const char* word : {"b", "jobs", "# why"}) {
    EXPECT_THAT(Error(absl::StrCat("a ", word)),
                AllOf(StartsWith("line 1 has \""), HasSubstr("it wants KEY=VALUE"),
                      HasSubstr("a comment on a line of its own")));
  }

  for (const char* jobs : {",", "x,", ",x", "x,,y"}) {
    EXPECT_THAT(Error(absl::StrCat("a jobs=", jobs)),
                AllOf(StartsWith(absl::StrCat("line 1 has jobs=\"", jobs, "\"; it wants prefixes")),
                      HasSubstr("none of them empty")));
  }
  for (const char* shared : {"", "Yes", "true", "1", "yes,no"}) {
    EXPECT_EQ(Error(absl::StrCat("a shared-memory=", shared)),
              absl::StrCat("line 1 has shared-memory=\"", shared, "\"; it wants yes or no"));
  }
  for (const char* bytes : {"", "x", "-1", "1.5GiB", "1=2"}) {
    EXPECT_THAT(Error(absl::StrCat("a max-gradient-bytes=", bytes)),
                StartsWith(absl::StrCat("line 1 has max-gradient-bytes=\"", bytes,
                                        "\"; it wants a whole number of bytes")));
  }
  EXPECT_THAT(Error("a max-gradient-bytes=64 KiB"), HasSubstr("has \"KiB\" after the identity"));
  EXPECT_THAT(Error("a max-gradient-bytes=99999999999999999999"), HasSubstr("less than 2^64"));
}

TEST(AllowListTest, ErrorsShowLittleOfALineAndNothingThatIsNotPrintable) {
  const std::string error = Error(absl::StrCat("a \x1b[31m\xff=", std::string(10000, 'x')));
  EXPECT_THAT(error, StartsWith("line 1 has \"\\x1b[31m\\xff\", which is no key"));
  EXPECT_LT(Error(absl::StrCat("a ", std::string(100'000, 'x'))).size(), 300);
  EXPECT_LT(Error(absl::StrCat("a ", std::string(100'000, 'x'), "=")).size(), 300);
  EXPECT_LT(Error(absl::StrCat("a jobs=,", std::string(100'000, 'x'))).size(), 300);
}

TEST(AllowListTest, TakesWhateverComesWithoutCrashing) {
  const std::vector<std::string> words = {
      "trainer",  "*",   "uid:",     "uid:7", "jobs=",
      "jobs",     "a,b", ",",        "=",     "shared-memory=",
      "yes",      "no",  "1MiB",     "#",     "max-gradient-bytes=",
      "uid:4294", " ",   "\t",       "\r",    "\n",
      "\n",       "x",   "\x00\x01", "\xff"};
  std::mt19937 random(1);
  int parsed = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string text;
    for (size_t i = random() % 24; i > 0; --i) {
      if (random() % 16 == 0) {
        text += static_cast<char>(random());
      } else {
        text += words[random() % words.size()];
      }
    }
    const absl::StatusOr<AllowList> list = AllowList::Parse(text);
    if (list.ok()) {
      ++parsed;
      EXPECT_GE(list->size(), 1);
    } else {
      ASSERT_TRUE(absl::IsInvalidArgument(list.status())) << list.status();
      ASSERT_FALSE(list.status().message().empty());
    }
  }
  EXPECT_GT(parsed, 1000);  // it is not always the same error
  for (int round = 0; round < 1000; ++round) {
    std::string text(random() % 256, '\0');
    for (char& c : text) c = static_cast<char>(random());
    (void)AllowList::Parse(text).ok();
  }
}

TEST(PermissionTest, LimitsJobsByHowTheirNamesBegin) {
  EXPECT_TRUE(MayUse({}, "any"));
  EXPECT_TRUE(MayUse({}, ""));
  const Permission none = {.jobs = std::vector<std::string>()};
  EXPECT_FALSE(MayUse(none, "any"));
  EXPECT_FALSE(MayUse(none, ""));
  const Permission some = {.jobs = std::vector<std::string>{"llama-", "eval"}};
  for (const char* may : {"llama-", "llama-7b", "eval", "evaluation"}) {
    EXPECT_TRUE(MayUse(some, may)) << may;
  }
  for (const char* may_not : {"", "llama", "Llama-7b", "my-llama-7b", "eva"}) {
    EXPECT_FALSE(MayUse(some, may_not)) << may_not;
  }
}

TEST(PermissionTest, LimitsGradientBytesAndSharedMemory) {
  EXPECT_TRUE(CheckSharedMemory({}, "trainer").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(CheckSharedMemory({.shared_memory = false}, "trainer")));
  EXPECT_TRUE(CheckGradientBytes({}, "trainer", kNoLimit).ok());
  const Permission limited = {.max_gradient_bytes = 100};
  EXPECT_TRUE(CheckGradientBytes(limited, "trainer", 100).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(CheckGradientBytes(limited, "trainer", 101)));
}

TEST(PermissionTest, RefusalsSayWhatWhoAndWhatToDoAndNothingAboutOthers) {
  const Permission permission = {.jobs = std::vector<std::string>{"secret-plan"},
                                 .shared_memory = false,
                                 .max_gradient_bytes = 100};
  EXPECT_THAT(std::string(CheckJob(permission, "trainer", "llama\n").message()),
              AllOf(StartsWith("\"trainer\" may not use the job \"llama\\n\""),
                    HasSubstr("jobs= in the operator's --allow file"), Not(HasSubstr("secret"))));
  EXPECT_THAT(std::string(CheckSharedMemory(permission, "uid:7").message()),
              AllOf(StartsWith("\"uid:7\" may not share memory: send the gradient's bytes"),
                    HasSubstr("the operator's --allow file")));
  EXPECT_THAT(std::string(CheckGradientBytes(permission, "", 101).message()),
              AllOf(StartsWith("the gradient has 101 bytes; a caller without a name may have at "
                               "most 100"),
                    HasSubstr("max-gradient-bytes= in the operator's --allow file")));
}

// A file that is followed, and the log.
class PermissionsTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) {
    WriteFile(path_ + ".new", text);
    std::filesystem::rename(path_ + ".new", path_);
  }

  void Follow() {
    absl::StatusOr<std::unique_ptr<Permissions>> made = Permissions::Make(path_, log_.log());
    ASSERT_TRUE(made.ok()) << made.status();
    permissions_ = *std::move(made);
  }

  template <typename Condition>
  static bool Await(Condition condition) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (!condition() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(20));
    return condition();
  }

  const Folder folder_;
  const std::string path_ = folder_ / "allow";
  LogFile log_{folder_ / "log"};
  std::unique_ptr<Permissions> permissions_;
};

TEST_F(PermissionsTest, KnowsWhatTheFileSays) {
  Write("trainer max-gradient-bytes=100\n");
  Follow();
  const auto permission = permissions_->Of("trainer");
  ASSERT_TRUE(permission.ok()) << permission.status();
  EXPECT_EQ((*permission)->max_gradient_bytes, 100);
}

TEST_F(PermissionsTest, RefusesThoseWhoHaveNoneAndSaysWhatToDoAndNothingAboutOthers) {
  Write("trainer\n");
  Follow();
  const absl::Status unknown = permissions_->Of("uid:7").status();
  EXPECT_TRUE(absl::IsPermissionDenied(unknown)) << unknown;
  EXPECT_THAT(std::string(unknown.message()),
              AllOf(HasSubstr("\"uid:7\" may do nothing here"),
                    HasSubstr("add a line for it to the --allow file"), Not(HasSubstr("trainer")),
                    Not(HasSubstr(path_))));
  const absl::Status nobody = permissions_->Of("").status();
  EXPECT_TRUE(absl::IsPermissionDenied(nobody)) << nobody;
  EXPECT_THAT(std::string(nobody.message()), AllOf(HasSubstr("call with a token or a certificate"),
                                                   HasSubstr("(*)"), Not(HasSubstr("trainer"))));
}

TEST_F(PermissionsTest, DoesNotBeginWithAFileThatCannotBeUsed) {
  const absl::Status missing = Permissions::Make(path_, log_.log()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(missing)) << missing;
  EXPECT_THAT(std::string(missing.message()),
              StartsWith(absl::StrCat("--allow=", path_, ": can't be read")));
  Write("trainer\ntrainer\n");
  const absl::Status broken = Permissions::Make(path_, log_.log()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(broken)) << broken;
  EXPECT_EQ(std::string(broken.message()),
            absl::StrCat("--allow=", path_,
                         ": line 2 has the identity \"trainer\" again, which line 1 has"));
}

TEST_F(PermissionsTest, TakesAChangedFileOverAndLeavesWhatWasHandedOut) {
  Write("trainer max-gradient-bytes=100\n");
  Follow();
  const auto before = permissions_->Of("trainer");
  ASSERT_TRUE(before.ok());
  Write("trainer max-gradient-bytes=200\nother\n");
  EXPECT_TRUE(Await([&] { return permissions_->Of("other").ok(); }));
  EXPECT_EQ((*permissions_->Of("trainer"))->max_gradient_bytes, 200);
  EXPECT_EQ((*before)->max_gradient_bytes, 100);
  Write("other\n");
  EXPECT_TRUE(Await([&] { return !permissions_->Of("trainer").ok(); }));
  permissions_.reset();
  EXPECT_EQ((*before)->max_gradient_bytes, 100);
  EXPECT_THAT(log_.End(), HasSubstr("permissions in use count=2"));
}

TEST_F(PermissionsTest, StaysWithWhatItHasWhileTheFileCannotBeUsedAndSaysWhy) {
  Write("trainer max-gradient-bytes=100\n");
  Follow();
  const auto await_log = [&](const std::string& said) {
    EXPECT_TRUE(Await([&] { return absl::StrContains(log_.text(), said); })) << log_.text();
    EXPECT_TRUE(permissions_->Of("trainer").ok());
    EXPECT_FALSE(permissions_->Of("other").ok());
  };
  Write("other\ntrainer shared-memory=perhaps\n");
  await_log("line 2 has shared-memory=");
  EXPECT_THAT(log_.text(), HasSubstr("permissions not renewed; what is in use stays"));
  Write("");
  await_log("nobody could do anything");
  std::filesystem::remove(path_);
  await_log("No such file or directory");
  Write("other\n");
  EXPECT_TRUE(Await([&] { return permissions_->Of("other").ok(); }));
  EXPECT_FALSE(permissions_->Of("trainer").ok());
}

}  // namespace
}  // namespace gradclip
