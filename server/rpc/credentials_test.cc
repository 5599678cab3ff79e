// Real handshakes: which authority's clients can speak to the server, before and after its files change.
#include "server/rpc/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/grpcpp.h"
#include "server/server.h"
#include "server/tls_files.h"

namespace nibble::server {
namespace {

// An authority of its own, with certificates for a server and a worker.
struct Authority {
  Authority() {
    EXPECT_TRUE(InitTls(directory.path(), {"127.0.0.1"}).ok());
    EXPECT_TRUE(IssueClientCertificate(directory.path(), Role::kWorker, "w1").ok());
  }
  std::string Pem(const std::string& name) const { return ReadFile(directory.Join(name)).value(); }
  TempDir directory;
};

// A channel over a connection of its own that trusts `trusted` and shows `shown`'s certificate, if any.
std::shared_ptr<grpc::Channel> ChannelTo(int port, const Authority& trusted,
                                         const Authority* shown = nullptr) {
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = trusted.Pem("ca.crt");
  if (shown != nullptr) {
    ssl.pem_private_key = shown->Pem("worker-w1.key");
    ssl.pem_cert_chain = shown->Pem("worker-w1.crt");
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::SslCredentials(ssl), arguments);
}

bool Connects(grpc::Channel& channel) {
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(30);
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) return false;
    if (!channel.WaitForStateChange(state, deadline)) return false;
  }
}

bool Connects(int port, const Authority& trusted, const Authority* shown = nullptr) {
  return Connects(*ChannelTo(port, trusted, shown));
}

class TlsCredentialsTest : public testing::Test {
 protected:
  void SetUp() override {
    Put("server.crt", a_.Pem("server.crt"));
    Put("server.key", a_.Pem("server.key"));
    Put("ca.crt", a_.Pem("ca.crt"));
  }
  void Put(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomic(files_.Join(name), text).ok());
  }
  ServerCertificate::Paths Paths(bool asks_clients) const {
    return {files_.Join("server.crt"), files_.Join("server.key"), asks_clients ? files_.Join("ca.crt") : ""};
  }
  // A port that has nothing but handshakes.
  std::unique_ptr<grpc::Server> Serve(const ServerCertificate& certificate, int& port) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", NewTlsCredentials(&certificate, &authorizer_), &port);
    builder.RegisterAsyncGenericService(&nothing_);
    queue_ = builder.AddCompletionQueue();
    auto server = builder.BuildAndStart();
    polls_ = std::thread([this] {
      void* tag = nullptr;
      bool ok = false;
      while (queue_->Next(&tag, &ok)) {
      }
    });
    return server;
  }
  // After the server has gone.
  void TearDown() override {
    if (queue_) queue_->Shutdown();
    if (polls_.joinable()) polls_.join();
  }

  const Authority a_, b_;
  TempDir files_;
  Authorizer authorizer_{true, nullptr, &RealClock::Get()};
  grpc::AsyncGenericService nothing_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::thread polls_;
};

TEST_F(TlsCredentialsTest, NewConnectionsAreShownTheCertificateThatWasTakenLast) {
  ServerCertificate certificate(Paths(false), &RealClock::Get());
  ASSERT_TRUE(certificate.Refresh().value());
  int port = 0;
  const auto server = Serve(certificate, port);
  ASSERT_NE(server, nullptr);
  const auto early = ChannelTo(port, a_);
  EXPECT_TRUE(Connects(*early));
  EXPECT_FALSE(Connects(port, b_));
  EXPECT_FALSE(certificate.Refresh().value()) << "the same as before";

  // One half of it, a file that is cut off, none at all: all goes on as it was.
  Put("server.crt", b_.Pem("server.crt"));
  EXPECT_THAT(std::string(certificate.Refresh().status().message()),
              testing::HasSubstr("--tls-key is not the key of --tls-cert"));
  Put("server.crt", b_.Pem("server.crt") + b_.Pem("ca.crt").substr(0, 100));
  Put("server.key", b_.Pem("server.key"));
  EXPECT_THAT(std::string(certificate.Refresh().status().message()),
              testing::HasSubstr("is the file cut off?"));
  ASSERT_TRUE(RemoveFile(files_.Join("server.crt")).ok());
  EXPECT_FALSE(certificate.Refresh().ok());
  EXPECT_TRUE(Connects(port, a_));
  EXPECT_FALSE(Connects(port, b_));

  // With the authority behind it, as a chain stands in one file.
  Put("server.crt", b_.Pem("server.crt") + b_.Pem("ca.crt"));
  EXPECT_TRUE(certificate.Refresh().value());
  EXPECT_TRUE(Connects(port, b_));
  EXPECT_FALSE(Connects(port, a_));
  EXPECT_EQ(early->GetState(false), GRPC_CHANNEL_READY) << "what is connected stays so";
  server->Shutdown();
}

TEST_F(TlsCredentialsTest, ClientsAreThoseOfTheAuthorityThatWasTakenLast) {
  ServerCertificate certificate(Paths(true), &RealClock::Get());
  ASSERT_TRUE(certificate.Refresh().value());
  int port = 0;
  const auto server = Serve(certificate, port);
  ASSERT_NE(server, nullptr);
  EXPECT_TRUE(Connects(port, a_, &a_));
  EXPECT_FALSE(Connects(port, a_, &b_));
  EXPECT_TRUE(Connects(port, a_)) << "one with a token";
  Put("ca.crt", b_.Pem("ca.crt").substr(0, 200));
  EXPECT_THAT(std::string(certificate.Refresh().status().message()), testing::HasSubstr("--client-ca"));
  EXPECT_TRUE(Connects(port, a_, &a_));
  Put("ca.crt", b_.Pem("ca.crt"));
  EXPECT_TRUE(certificate.Refresh().value());
  EXPECT_TRUE(Connects(port, a_, &b_));
  EXPECT_FALSE(Connects(port, a_, &a_));
  server->Shutdown();
}

// What GET /metrics answers.
std::string MetricsAt(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  constexpr std::string_view kRequest = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, kRequest.data(), kRequest.size()), static_cast<ssize_t>(kRequest.size()));
  std::string answer;
  char piece[4096];
  for (ssize_t got = 0; (got = read(fd, piece, sizeof piece)) > 0;)
    answer.append(piece, static_cast<size_t>(got));
  close(fd);
  return answer;
}

// The line of the metric that says when the certificate ends.
std::string EndLine(int http_port) {
  for (const absl::string_view line : absl::StrSplit(MetricsAt(http_port), '\n')) {
    if (absl::StartsWith(line, "nibble_tls_certificate_expiry_timestamp_seconds")) return std::string(line);
  }
  return "";
}

int64_t EndOf(const Authority& authority) {
  return CheckServerCertificate(authority.Pem("server.crt"), authority.Pem("server.key"),
                                RealClock::Get().NowUnixUs())
      .value();
}

// As it is run: nobody calls Refresh but the server itself.
TEST_F(TlsCredentialsTest, AServerTakesARenewedCertificate) {
  ServerOptions options;
  options.data_dir = files_.Join("data");
  options.listen = "127.0.0.1:0";
  options.http_listen = "127.0.0.1:0";
  options.in_memory = true;
  options.blobs.min_free_bytes = 0;
  options.tls_cert = files_.Join("server.crt");
  options.tls_key = files_.Join("server.key");
  options.client_ca = files_.Join("ca.crt");
  options.certificate_refresh_us = 10'000;
  auto server = StartServer(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_TRUE(Connects(port, a_));
  // Whole seconds: the next certificate is to end at another one.
  const std::string ends = EndLine((*server)->http_port());
  while (EndOf(b_) == EndOf(a_)) ASSERT_TRUE(InitTls(b_.directory.path(), {"127.0.0.1"}).ok());
  Put("server.key", b_.Pem("server.key"));
  Put("server.crt", b_.Pem("server.crt"));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!Connects(port, b_) && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(Connects(port, b_));
  EXPECT_FALSE(Connects(port, a_));
  const std::string renewed = EndLine((*server)->http_port());
  EXPECT_FALSE(ends.empty());
  EXPECT_FALSE(renewed.empty());
  EXPECT_NE(ends, renewed) << "alerts before the end go by this";
}

}  // namespace
}  // namespace nibble::server
