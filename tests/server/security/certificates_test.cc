#include "server/security/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/server/security/tls_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CertificatesTest : public testing::Test {
 protected:
  // The message, which never holds the key.
  std::string Error(const TlsFiles& files) {
    const absl::StatusOr<Certificates> loaded = LoadCertificates(files);
    if (loaded.ok()) return "no error";
    EXPECT_TRUE(absl::IsInvalidArgument(loaded.status()));
    const std::string key = ReadFile(files.tls_key);
    if (key.size() > 80) {
      EXPECT_THAT(loaded.status().ToString(), Not(HasSubstr(key.substr(40, 40))));
    }
    return std::string(loaded.status().message());
  }

  TlsFolder folder_;
};

TEST_F(CertificatesTest, AreReadWithTheirChainAndAuthorities) {
  const CertificateFiles files =
      folder_.Server({.common_name = "gradclip.example", .through_intermediate = true});
  const absl::StatusOr<Certificates> loaded =
      LoadCertificates(TlsFolder::Files(files, folder_.authority.ca_file()));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->subject, HasSubstr("CN=gradclip.example"));
  EXPECT_GT(loaded->expires, absl::Now());
  EXPECT_LT(loaded->expires, absl::Now() + absl::Hours(2));
  EXPECT_EQ(loaded->key_and_chain, ReadFile(files.key) + ReadFile(files.cert));
  EXPECT_EQ(loaded->client_ca, ReadFile(folder_.authority.ca_file()));
}

TEST_F(CertificatesTest, ErrorsNameTheFlagTheFileAndTheReason) {
  const CertificateFiles good = folder_.Server();
  const std::string missing = folder_.path("missing");
  EXPECT_EQ(Error({missing, good.key, ""}),
            absl::StrCat("--tls-cert=", missing, ": can't be read: No such file or directory"));
  EXPECT_EQ(Error({good.cert, missing, ""}),
            absl::StrCat("--tls-key=", missing, ": can't be read: No such file or directory"));
  EXPECT_EQ(
      Error({good.cert, good.key, missing}),
      absl::StrCat("--tls-client-ca=", missing, ": can't be read: No such file or directory"));
  EXPECT_THAT(Error({folder_.path(""), good.key, ""}), HasSubstr("is no regular file"));
  EXPECT_THAT(Error({good.key, good.key, ""}), HasSubstr("has no certificate in PEM form"));
  EXPECT_THAT(Error({good.cert, good.cert, ""}), HasSubstr("has no private key in PEM form"));
  EXPECT_THAT(Error({good.cert, good.key, good.key}),
              AllOf(HasSubstr("--tls-client-ca="), HasSubstr("has no certificate in PEM form")));
  EXPECT_THAT(Error({good.cert, folder_.Server().key, ""}),
              AllOf(HasSubstr("--tls-key="), HasSubstr("is not the key of the first certificate")));
}

TEST_F(CertificatesTest, TakeTheKeyAloneFromAFileThatAlsoHoldsCertificates) {
  const CertificateFiles good = folder_.Server();
  const std::string combined = folder_.path("combined");
  WriteFile(combined, ReadFile(good.key) + ReadFile(folder_.Server().cert));
  const absl::StatusOr<Certificates> loaded = LoadCertificates({good.cert, combined, ""});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->key_and_chain, ReadFile(good.key) + ReadFile(good.cert));
}

TEST_F(CertificatesTest, RefusePipesWhichWouldBeWaitedFor) {
  const std::string pipe = folder_.path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(Error({pipe, folder_.Server().key, ""}),
            absl::StrCat("--tls-cert=", pipe, ": is no regular file"));
}

TEST_F(CertificatesTest, RefuseADamagedOneAmongGoodOnes) {
  const CertificateFiles good = folder_.Server();
  std::string chain = ReadFile(good.cert) + ReadFile(good.cert);
  chain[ReadFile(good.cert).size() + std::string("-----BEGIN CERTIFICATE-----\n").size()] = '*';
  WriteFile(folder_.path("damaged"), chain);
  EXPECT_THAT(Error({folder_.path("damaged"), good.key, ""}),
              HasSubstr("certificate 2 of the file is damaged"));
}

TEST_F(CertificatesTest, RefuseAFileThatIsTooLong) {
  const CertificateFiles good = folder_.Server();
  WriteFile(folder_.path("long"), std::string((1 << 20) + 1, '\n'));
  EXPECT_THAT(Error({folder_.path("long"), good.key, ""}), HasSubstr("has more than 1 MiB"));
}

TEST_F(CertificatesTest, RefuseWhatIsNotValidNow) {
  EXPECT_THAT(Error(TlsFolder::Files(folder_.Server({.valid_until = -absl::Minutes(1)}))),
              HasSubstr("has expired at "));
  EXPECT_THAT(Error(TlsFolder::Files(folder_.Server({.valid_from = absl::Minutes(1)}))),
              HasSubstr("is valid only from "));
}

}  // namespace
}  // namespace gradclip
