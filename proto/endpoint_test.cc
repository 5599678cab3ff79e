#include "proto/endpoint.h"

#include <gmock/gmock.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(EndpointTest, AsPeopleWriteIt) {
  const struct {
    const char* server;
    const char* target;
    bool tls;
  } cases[] = {
      {"host:7070", "host:7070", false},          {"grpc://host:7070/", "host:7070", false},
      {"http://10.0.0.1:1", "10.0.0.1:1", false}, {"https://host:443//", "host:443", true},
      {"grpcs://[::1]:7070", "[::1]:7070", true},
  };
  for (const auto& c : cases) {
    const auto endpoint = EndpointOf(c.server, "");
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    EXPECT_EQ(endpoint->target, c.target);
    EXPECT_EQ(endpoint->tls, c.tls) << c.server;
    EXPECT_NE(endpoint->credentials, nullptr);
  }
}

TEST(EndpointTest, WithoutAPortItIsRefused) {
  for (const char* server : {"host", "https://host", "host:", "", "grpc://"}) {
    const absl::Status status = EndpointOf(server, "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << server;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("expected host:port"));
  }
}

TEST(EndpointTest, APortThatIsNoneIsRefused) {
  for (const char* server : {"host:99999", "host:0", "host:-1", "https://host:70a", "[::1]:65536"}) {
    EXPECT_THAT(std::string(EndpointOf(server, "").status().message()), testing::HasSubstr("from 1 to 65535"))
        << server;
  }
  EXPECT_TRUE(EndpointOf("host:65535", "").ok());
  EXPECT_TRUE(EndpointOf("unix:/run/nibble.sock", "").ok());
}

TEST(EndpointTest, CertificatesThatCannotBeReadAreNamed) {
  EXPECT_THAT(std::string(EndpointOf("host:1", "/nowhere/ca.pem").status().message()),
              testing::AllOf(testing::HasSubstr("--ca-file"), testing::HasSubstr("/nowhere/ca.pem")));
}

}  // namespace
}  // namespace nibble
