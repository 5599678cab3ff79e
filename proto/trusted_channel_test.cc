// What a channel trusts is what its file holds, once that is whole. The handshakes are in
// tests/integration/renewed_authority.py.
#include "proto/trusted_channel.h"

#include <gmock/gmock.h>
#include <grpcpp/channel.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/file.h"

namespace nibble {
namespace {

using testing::HasSubstr;

// Signed by itself.
std::string Certificate() {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* made = X509_new();
  X509_gmtime_adj(X509_getm_notBefore(made), 0);
  X509_gmtime_adj(X509_getm_notAfter(made), 3600);
  X509_set_pubkey(made, key);
  X509_sign(made, key, EVP_sha256());
  BIO* text = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(text, made);
  char* data = nullptr;
  const long size = BIO_get_mem_data(text, &data);
  const std::string pem(data, static_cast<size_t>(size));
  BIO_free(text);
  X509_free(made);
  EVP_PKEY_free(key);
  return pem;
}

class TrustedChannelTest : public testing::Test {
 protected:
  void Put(const std::string& pem) { ASSERT_TRUE(WriteFileAtomic(path_, pem).ok()); }
  absl::StatusOr<std::unique_ptr<TrustedChannel>> Open() {
    return TrustedChannel::Open("127.0.0.1:1", path_, grpc::ChannelArguments());
  }
  const TempDir dir_;
  const std::string path_ = dir_.Join("ca.crt");
};

TEST_F(TrustedChannelTest, AnotherFileIsAnotherChannelOnceItIsWhole) {
  const std::string first = Certificate(), second = Certificate();
  Put(first);
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  TrustedChannel& trusted = **opened;
  const auto before = trusted.Get();
  EXPECT_FALSE(trusted.Renew()) << "the same as before";
  for (const std::string& broken : {std::string(), second.substr(0, 100), first + second.substr(0, 100)}) {
    Put(broken);
    EXPECT_FALSE(trusted.Renew()) << broken;
  }
  ASSERT_TRUE(RemoveFile(path_).ok());
  EXPECT_FALSE(trusted.Renew());
  EXPECT_EQ(trusted.Get(), before);
  Put(first + second);  // both, for a change without a gap
  EXPECT_TRUE(trusted.Renew());
  EXPECT_NE(trusted.Get(), before);
  EXPECT_FALSE(trusted.Renew());
}

TEST_F(TrustedChannelTest, AFileWithoutCertificatesIsRefusedByName) {
  for (const char* text : {"", "{}", "-----BEGIN PRIVATE KEY-----"}) {
    Put(text);
    EXPECT_THAT(std::string(Open().status().message()), HasSubstr(path_ + " holds no certificate in PEM"));
  }
  Put(Certificate().substr(0, 100));
  EXPECT_FALSE(Open().ok());
}

TEST_F(TrustedChannelTest, WithoutAFileNothingIsRenewed) {
  const auto plain = TrustedChannel::Open("127.0.0.1:1", "", grpc::ChannelArguments());
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE((*plain)->Renew());
}

}  // namespace
}  // namespace nibble
