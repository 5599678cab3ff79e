// A server in this process that keeps nothing, on a port of its own, and a channel to it: for tests over real
// gRPC.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "server/server.h"

namespace nibble::server {

class ServedTest : public testing::Test {
 protected:
  void SetUp() override {
    ServerOptions options;
    options.data_dir = directory_.Join("data");
    options.listen = "127.0.0.1:0";
    options.http_listen = "";
    options.in_memory = true;
    options.model_root = directory_.Join("models");
    options.blobs.min_free_bytes = 0;
    options.heartbeat_us = 1'000'000;
    SetLease(6'000'000, &options.core);
    ASSERT_TRUE(MakeDirs(options.model_root).ok());
    auto server = StartServer(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
  }

  TempDir directory_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// What travels with a refusal.
struct Details {
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
};
inline Details DetailsOf(const grpc::Status& status) {
  Details details;
  EXPECT_TRUE(details.status.ParseFromString(status.error_details())) << status.error_message();
  for (const auto& detail : details.status.details()) {
    if (!detail.UnpackTo(&details.info)) detail.UnpackTo(&details.bad);
  }
  return details;
}

}  // namespace nibble::server
