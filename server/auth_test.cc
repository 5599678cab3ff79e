#include "server/auth.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>
#include <thread>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "nibble/v1/adapter.pb.h"
#include "nibble/v1/blob.pb.h"
#include "nibble/v1/dataset.pb.h"
#include "nibble/v1/fleet.pb.h"
#include "nibble/v1/job.pb.h"
#include "nibble/v1/model.pb.h"
#include "nibble/worker/v1/worker.pb.h"

namespace nibble::server {
namespace {

constexpr char kGetJob[] = "/nibble.v1.JobService/GetJob";
constexpr char kDrain[] = "/nibble.v1.FleetService/DrainWorker";
constexpr char kSynchronize[] = "/nibble.worker.v1.WorkerService/Synchronize";

TEST(RolesOf, CoversEveryMethod) {
  const google::protobuf::FileDescriptor* files[] = {
      v1::Job::descriptor()->file(),          v1::UploadStatus::descriptor()->file(),
      v1::Dataset::descriptor()->file(),      v1::Model::descriptor()->file(),
      v1::Adapter::descriptor()->file(),      v1::Worker::descriptor()->file(),
      worker::v1::Fence::descriptor()->file()};
  int methods = 0;
  for (const auto* file : files) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const auto* method = file->service(s)->method(m);
        const std::string path = "/" + file->service(s)->full_name() + "/" + method->name();
        EXPECT_NE(RolesOf(path), 0) << path << " is in no role's reach; add it to the table";
        ++methods;
      }
    }
  }
  EXPECT_EQ(methods, 42);
  EXPECT_EQ(RolesOf("/nibble.v1.JobService/DropEverything"), 0);
  EXPECT_EQ(RolesOf(""), 0);
}

class AuthTest : public testing::Test {
 protected:
  std::string Bearer(Role role, int64_t expire_unix_us = 0) {
    return "Bearer " + tokens_.Create("someone", role, expire_unix_us, clock_.NowUnixUs()).value();
  }
  Reason Refusal(std::string_view method, std::string_view authorization,
                 std::string_view certificate = "") {
    auto caller = authorizer_.Check(method, authorization, certificate);
    return caller.ok() ? Reason::kUnspecified : StatusReason(caller.status());
  }

  TempDir directory_;
  SimClock clock_;
  TokenFile tokens_{directory_.Join("tokens.json")};
  Authorizer authorizer_{true, &tokens_, &clock_};
};

TEST_F(AuthTest, RolesOpenTheirMethodsOnly) {
  const std::string client = Bearer(Role::kClient);
  const std::string worker = Bearer(Role::kWorker);
  const std::string admin = Bearer(Role::kAdmin);
  EXPECT_EQ(Refusal(kGetJob, client), Reason::kUnspecified);
  EXPECT_EQ(Refusal(kDrain, client), Reason::kRoleNotAllowed);
  const std::string said(authorizer_.Check(kDrain, client, "").status().message());
  EXPECT_NE(said.find("that takes a token of the role admin"), std::string::npos) << said;
  EXPECT_EQ(Refusal(kSynchronize, client), Reason::kRoleNotAllowed);
  EXPECT_EQ(Refusal(kSynchronize, worker), Reason::kUnspecified);
  EXPECT_EQ(Refusal(kGetJob, worker), Reason::kRoleNotAllowed);
  EXPECT_EQ(Refusal(kDrain, admin), Reason::kUnspecified);
  EXPECT_EQ(Refusal(kSynchronize, admin), Reason::kRoleNotAllowed);
  EXPECT_EQ(Refusal("/other.Service/Method", admin), Reason::kRoleNotAllowed);
}

TEST_F(AuthTest, TheProjectComesFromTheName) {
  const auto tenant_of = [&](const std::string& name) {
    const std::string token =
        tokens_.Create(name, Role::kClient, 0, clock_.NowUnixUs()).value();
    return authorizer_.Identify("Bearer " + token, "").value().tenant;
  };
  EXPECT_EQ(tenant_of("alice"), "default");
  EXPECT_EQ(tenant_of("research/alice"), "research");
  EXPECT_EQ(authorizer_.Identify("", "client:research/bob").value().tenant, "research");
  EXPECT_EQ(authorizer_.Identify("", "client:bob").value().tenant, "default");
  for (const char* bad : {"/alice", "research/", "a/b/c", "Research/alice"}) {
    EXPECT_FALSE(tokens_.Create(bad, Role::kClient, 0, clock_.NowUnixUs()).ok()) << bad;
  }
}

TEST_F(AuthTest, RefusesWhatIsNoToken) {
  const std::string good = Bearer(Role::kClient);
  for (const std::string& bad : {std::string(), std::string("Bearer "), std::string("Bearer nbl_x_y"),
                                 good + "0", good.substr(0, good.size() - 1), good.substr(7),
                                 "Basic " + good.substr(7)}) {
    EXPECT_EQ(Refusal(kGetJob, bad), Reason::kTokenInvalid) << bad;
  }
  EXPECT_EQ(authorizer_.refusals(), 7);
}

// Two operators at a time: what one made or took back is not undone by the other.
TEST_F(AuthTest, ChangesOfSeveralProcessesAreAllThere) {
  constexpr int kEach = 10;
  const auto make = [&] {
    TokenFile mine(directory_.Join("tokens.json"));  // as each process has its own
    for (int i = 0; i < kEach; ++i) {
      EXPECT_TRUE(mine.Create("a", Role::kClient, 0, 1).ok());
      EXPECT_TRUE(mine.Create("b", Role::kClient, 0, 1).ok());
      EXPECT_TRUE(mine.Revoke(mine.List().back().id).ok());
    }
  };
  std::thread other(make);
  make();
  other.join();
  ASSERT_TRUE(tokens_.Refresh().ok());
  EXPECT_EQ(tokens_.List().size(), 2u * kEach);
}

TEST_F(AuthTest, TokensExpireAndAreRevoked) {
  const std::string brief = Bearer(Role::kClient, clock_.NowUnixUs() + 1000);
  EXPECT_EQ(Refusal(kGetJob, brief), Reason::kUnspecified);
  clock_.AdvanceUs(1000);
  EXPECT_EQ(Refusal(kGetJob, brief), Reason::kTokenInvalid);

  const std::string token = Bearer(Role::kClient);
  // Another process revokes it; this one sees it at the next Refresh.
  TokenFile other(directory_.Join("tokens.json"));
  ASSERT_TRUE(other.Refresh().ok());
  ASSERT_EQ(other.List().size(), 2u);
  ASSERT_TRUE(other.Revoke(other.List()[1].id).ok());
  EXPECT_FALSE(other.Revoke("nothing").ok());
  EXPECT_EQ(Refusal(kGetJob, token), Reason::kUnspecified);
  ASSERT_TRUE(tokens_.Refresh().ok());
  EXPECT_EQ(Refusal(kGetJob, token), Reason::kTokenInvalid);
}

TEST_F(AuthTest, TheFileHoldsNoToken) {
  const std::string token = Bearer(Role::kAdmin).substr(7);
  const std::string content = ReadFile(directory_.Join("tokens.json")).value();
  EXPECT_EQ(content.find(token), std::string::npos);
  EXPECT_EQ(content.find(token.substr(13)), std::string::npos) << "the secret part";
  EXPECT_NE(content.find(Sha256Hex(token)), std::string::npos);
}

TEST_F(AuthTest, ABrokenFileIsAnError) {
  for (const char* text : {"{}", "not json", R"([{"id":"a"}])", R"([7])"}) {
    ASSERT_TRUE(WriteFileAtomic(directory_.Join("tokens.json"), text).ok());
    EXPECT_FALSE(tokens_.Refresh().ok()) << text;
  }
}

TEST_F(AuthTest, WhatCannotBeLookedAtIsNotGone) {
  const std::string folder = directory_.Join("folder");
  ASSERT_TRUE(MakeDirs(folder).ok());
  TokenFile tokens(JoinPath(folder, "tokens.json"));
  const std::string token = tokens.Create("someone", Role::kClient, 0, 1).value();
  ASSERT_TRUE(Rename(folder, folder + ".away").ok());
  ASSERT_EQ(symlink(folder.c_str(), folder.c_str()), 0);
  EXPECT_FALSE(tokens.Refresh().ok());
  EXPECT_TRUE(tokens.Find(token, 1).ok());
  ASSERT_TRUE(RemoveFile(folder).ok());
  EXPECT_TRUE(tokens.Refresh().ok());
  EXPECT_FALSE(tokens.Find(token, 1).ok()) << "a file that is gone holds none";
}

TEST_F(AuthTest, CertificatesNameTheirRole) {
  EXPECT_EQ(Refusal(kSynchronize, "", "worker:w1"), Reason::kUnspecified);
  EXPECT_EQ(Refusal(kGetJob, "", "worker:w1"), Reason::kRoleNotAllowed);
  EXPECT_EQ(Refusal(kGetJob, "", "king:arthur"), Reason::kTokenInvalid);
  EXPECT_EQ(Refusal(kGetJob, "", "somebody"), Reason::kTokenInvalid);
}

TEST(Authorizer, LoopbackTakesEverybodyForItsOwner) {
  SimClock clock;
  Authorizer authorizer(false, nullptr, &clock);
  EXPECT_TRUE(authorizer.Check(kGetJob, "", "").ok());
  EXPECT_TRUE(authorizer.Check(kSynchronize, "", "").ok());
  EXPECT_FALSE(authorizer.Check("/other.Service/Method", "", "").ok());
}

TEST(IsLoopback, KnowsItsOwn) {
  for (const char* yes : {"127.0.0.1:7070", "127.1.2.3:0", "localhost:1", "[::1]:7070", "unix:/run/n.sock"}) {
    EXPECT_TRUE(IsLoopback(yes)) << yes;
  }
  for (const char* no : {"0.0.0.0:7070", "10.0.0.1:7070", "[::]:7070", "127.0.0.1.example.org:7070",
                         "example.org:1", "localhost", "", ":7070"}) {
    EXPECT_FALSE(IsLoopback(no)) << no;
  }
}

}  // namespace
}  // namespace nibble::server
