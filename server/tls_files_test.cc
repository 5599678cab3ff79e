#include "server/tls_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"

namespace nibble::server {
namespace {

X509* Read(const std::string& path) {
  const std::string text = ReadFile(path).value();
  BIO* memory = BIO_new_mem_buf(text.data(), static_cast<int>(text.size()));
  X509* certificate = PEM_read_bio_X509(memory, nullptr, nullptr, nullptr);
  BIO_free(memory);
  return certificate;
}

bool Verifies(X509* certificate, X509* authority) {
  X509_STORE* store = X509_STORE_new();
  X509_STORE_add_cert(store, authority);
  X509_STORE_CTX* context = X509_STORE_CTX_new();
  X509_STORE_CTX_init(context, store, certificate, nullptr);
  const bool good = X509_verify_cert(context) == 1;
  X509_STORE_CTX_free(context);
  X509_STORE_free(store);
  return good;
}

TEST(InitTls, MakesAnAuthorityAndCertificates) {
  TempDir directory;
  ASSERT_TRUE(InitTls(directory.path(), {"localhost", "127.0.0.1", "::1"}).ok());
  ASSERT_TRUE(IssueClientCertificate(directory.path(), Role::kWorker, "w1").ok());
  X509* authority = Read(directory.Join("ca.crt"));
  X509* server = Read(directory.Join("server.crt"));
  X509* worker = Read(directory.Join("worker-w1.crt"));
  ASSERT_TRUE(authority && server && worker);
  EXPECT_TRUE(Verifies(server, authority));
  EXPECT_TRUE(Verifies(worker, authority));
  EXPECT_EQ(X509_check_host(server, "localhost", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_ip_asc(server, "127.0.0.1", 0), 1);
  EXPECT_EQ(X509_check_host(server, "example.org", 0, 0, nullptr), 0);
  char name[64];
  X509_NAME_get_text_by_NID(X509_get_subject_name(worker), NID_commonName, name, sizeof name);
  EXPECT_STREQ(name, "worker:w1");
  for (const char* key : {"ca.key", "server.key", "worker-w1.key"}) {
    struct stat info;
    ASSERT_EQ(stat(directory.Join(key).c_str(), &info), 0) << key;
    EXPECT_EQ(info.st_mode & 077, 0u) << key;
  }
  X509_free(authority);
  X509_free(server);
  X509_free(worker);
}

TEST(InitTls, MakesCertificatesOfProjects) {
  TempDir directory;
  EXPECT_EQ(IssueClientCertificate(directory.path(), Role::kClient, "research/alice").value(),
            "client-research_alice");
  X509* alice = Read(directory.Join("client-research_alice.crt"));
  ASSERT_TRUE(alice);
  char name[100];
  X509_NAME_get_text_by_NID(X509_get_subject_name(alice), NID_commonName, name, sizeof name);
  X509_free(alice);
  EXPECT_STREQ(name, "client:research/alice");
  const Authorizer authorizer(true, nullptr, &RealClock::Get());
  const auto caller = authorizer.Identify("", name);
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->tenant, "research");
  EXPECT_EQ(caller->role, Role::kClient);
  // A common name has 64 bytes; one that is longer would be left out of the certificate.
  const std::string longest = std::string(40, 'p') + "/" + std::string(16, 'n');
  EXPECT_TRUE(IssueClientCertificate(directory.path(), Role::kClient, longest).ok());
  const std::string full(63, 'n');
  for (const std::string& bad : std::vector<std::string>{longest + "n", full, "a/b/c", "/a", "a/", "../a",
                                                         "a_b", ""}) {
    const auto refused = IssueClientCertificate(directory.path(), Role::kClient, bad);
    EXPECT_EQ(StatusReason(refused.status()), Reason::kNameInvalid) << bad;
  }
}

TEST(TlsProblems, SaysWhichFilesDoNotBelongTogether) {
  TempDir directory, other;
  EXPECT_THAT(ServerTlsFiles(directory.path()), testing::IsEmpty());
  EXPECT_THAT(TlsProblems(directory.path()), testing::IsEmpty());
  ASSERT_TRUE(InitTls(directory.path(), {"a"}).ok());
  ASSERT_TRUE(InitTls(other.path(), {"a"}).ok());
  ASSERT_TRUE(IssueClientCertificate(directory.path(), Role::kWorker, "w1").ok());
  EXPECT_THAT(ServerTlsFiles(directory.path()),
              testing::ElementsAre("ca.crt", "ca.key", "server.crt", "server.key"));
  EXPECT_THAT(TlsProblems(directory.path()), testing::IsEmpty());
  ASSERT_EQ(chmod(directory.Join("ca.key").c_str(), 0640), 0);
  EXPECT_THAT(TlsProblems(directory.path()), testing::ElementsAre(testing::HasSubstr("ca.key can be read")));
  ASSERT_EQ(chmod(directory.Join("ca.key").c_str(), 0600), 0);
  const auto take = [&](const char* name) {
    ASSERT_TRUE(WriteFileAtomic(directory.Join(name), ReadFile(other.Join(name)).value()).ok());
  };
  take("server.crt");
  EXPECT_THAT(TlsProblems(directory.path()),
              testing::ElementsAre("server.key is not the key of server.crt",
                                   "server.crt is not signed by ca.crt"));
  ASSERT_TRUE(WriteFileAtomic(directory.Join("ca.crt"), "cut").ok());
  ASSERT_TRUE(RemoveFile(directory.Join("server.crt")).ok());
  EXPECT_THAT(TlsProblems(directory.path()),
              testing::ElementsAre("ca.crt holds no certificate", "server.crt is missing beside its key"));
}

TEST(InitTls, KeepsTheAuthority) {
  TempDir directory;
  ASSERT_TRUE(InitTls(directory.path(), {"a"}).ok());
  const std::string authority = ReadFile(directory.Join("ca.crt")).value();
  const std::string server = ReadFile(directory.Join("server.crt")).value();
  ASSERT_TRUE(InitTls(directory.path(), {"b"}).ok());
  EXPECT_EQ(ReadFile(directory.Join("ca.crt")).value(), authority);
  EXPECT_NE(ReadFile(directory.Join("server.crt")).value(), server);
}

TEST(InitTls, RefusesBadNames) {
  TempDir directory;
  EXPECT_FALSE(InitTls(directory.path(), {}).ok());
  EXPECT_FALSE(InitTls(directory.path(), {"a,DNS:evil"}).ok());
  EXPECT_FALSE(IssueClientCertificate(directory.path(), Role::kAdmin, "../x").ok());
}

TEST(CheckServerCertificate, RefusesWhatNobodyCouldSpeakTo) {
  TempDir directory;
  ASSERT_TRUE(InitTls(directory.path(), {"a"}).ok());
  ASSERT_TRUE(IssueClientCertificate(directory.path(), Role::kWorker, "w1").ok());
  const auto file = [&](const char* name) { return ReadFile(directory.Join(name)).value(); };
  const std::string certificate = file("server.crt"), key = file("server.key");
  constexpr int64_t kDayUs = int64_t{86'400} * 1'000'000;
  const int64_t now_us = RealClock::Get().NowUnixUs();
  const auto end_us = CheckServerCertificate(certificate, key, now_us);
  ASSERT_TRUE(end_us.ok()) << end_us.status();
  EXPECT_NEAR(static_cast<double>(*end_us - now_us), 825.0 * kDayUs, 0.1 * kDayUs);
  const auto why = [&](const std::string& c, const std::string& k, int64_t at_us) {
    const auto checked = CheckServerCertificate(c, k, at_us);
    return checked.ok() ? "fine" : std::string(checked.status().message());
  };
  EXPECT_THAT(why(certificate, key, *end_us + 2 * kDayUs),
              testing::HasSubstr("--tls-cert ended 2 days ago"));
  EXPECT_THAT(why(certificate, key, now_us - kDayUs), testing::HasSubstr("not valid yet"));
  EXPECT_THAT(why(certificate, file("worker-w1.key"), now_us),
              testing::HasSubstr("--tls-key is not the key of"));
  EXPECT_THAT(why("", key, now_us), testing::HasSubstr("--tls-cert holds no certificate"));
  EXPECT_THAT(why(certificate, certificate, now_us), testing::HasSubstr("--tls-key holds no key"));
}

}  // namespace
}  // namespace nibble::server
