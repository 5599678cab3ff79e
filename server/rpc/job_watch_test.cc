// Watches that do not keep up, over real gRPC: a hub that cuts after two events, and a pool that is held up.
#include "server/rpc/job_watch.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "nibble/v1/job.grpc.pb.h"
#include "server/core/testing/driver.h"
#include "server/memory_history.h"
#include "server/rpc/services.h"
#include "server/store/memory_store.h"
#include "server/testing/served.h"

namespace nibble::server {
namespace {

using core::testing::Driver;

class JobWatchTest : public testing::Test {
 protected:
  JobWatchTest() {
    ControlLoop::Options options;
    options.timeline = "t";
    options.batch_us = 0;
    loop_ = std::make_unique<ControlLoop>(std::move(options), core::testing::CheapSpecFunctions(), &store_,
                                          &hub_, &RealClock::Get());
    EXPECT_TRUE(loop_->Start().ok());
    loop_->RunThread();
    history_ = NewMemoryHistory(loop_.get(), &store_, &metrics_);
    edge_.loop = loop_.get();
    edge_.hub = &hub_;
    edge_.history = history_.get();
    edge_.metrics = &metrics_;
    edge_.io = &io_;
    edge_.ticker = &ticker_;
    edge_.authorizer = &authorizer_;
    edge_.clock = &RealClock::Get();
    service_ = NewJobService(edge_);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    jobs_ = v1::JobService::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
    core::RegisterModel model;
    model.model.id = "base";
    model.model.digest = "d";
    model.model.root_path = "/base";
    model.model.files = {{"config.json", std::string(64, 'c'), 1}};
    Do(model);
    core::CreateDataset dataset;
    dataset.dataset.id = "data";
    dataset.dataset.path = "/data";
    Do(dataset);
    Do(Driver::JobOf("a"));
  }
  ~JobWatchTest() override {
    loop_->Stop();
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
    io_.Stop();
  }

  void Do(core::CommandBody body) {
    const auto id = loop_->Call(std::move(body));
    EXPECT_TRUE(id.ok()) << id.status();
  }
  // More events than a subscription holds.
  void OverflowIt() {
    for (int i = 0; i < 10; ++i) {
      Do(core::PauseJob{"a"});
      Do(core::ResumeJob{"a"});
    }
  }
  // A watch of "a" that has its snapshot, and nothing else until the pool goes on.
  void Watch() {
    ASSERT_TRUE(io_.Post([held = held_.get_future().share()] { held.wait(); }));
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::WatchJobRequest request;
    request.set_name("jobs/a");
    watch_ = jobs_->WatchJob(&context_, request);
    v1::WatchJobResponse update;
    ASSERT_TRUE(watch_->Read(&update));
    ASSERT_TRUE(update.has_snapshot());
  }
  // How it ended: OK, or the reason.
  std::string ReadToTheEnd() {
    held_.set_value();
    v1::WatchJobResponse update;
    while (watch_->Read(&update)) {
      EXPECT_FALSE(update.has_snapshot()) << "one is enough";
      if (update.has_event()) sequences_.push_back(update.event().sequence());
    }
    const grpc::Status ended = watch_->Finish();
    return ended.ok() ? "OK" : DetailsOf(ended).info.reason();
  }

  store::MemoryStore store_;
  store::MemoryMetricStore metrics_;
  WatchHub hub_{2, 2};
  std::unique_ptr<ControlLoop> loop_;
  std::unique_ptr<store::History> history_;
  IoPool io_{1, 1000};
  Ticker ticker_;
  const Authorizer authorizer_{false, nullptr, &RealClock::Get()};
  Edge edge_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::promise<void> held_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WatchJobResponse>> watch_;
  std::vector<int64_t> sequences_;
};

TEST_F(JobWatchTest, OneThatWasCutHearsOfEveryEventOnce) {
  Watch();
  OverflowIt();
  Do(core::CancelJob{"a"});
  EXPECT_EQ(ReadToTheEnd(), "OK");
  ASSERT_GT(sequences_.size(), 20u);
  for (size_t i = 1; i < sequences_.size(); ++i) EXPECT_EQ(sequences_[i], sequences_[i - 1] + 1);
}

// Else it would say for ever that nothing happens.
TEST_F(JobWatchTest, OneThatWasCutEndsWhenItsJobWasRemovedMeanwhile) {
  Watch();
  OverflowIt();
  Do(core::CancelJob{"a"});
  Do(core::DeleteJob{"a"});
  EXPECT_EQ(ReadToTheEnd(), "JOB_NOT_FOUND");
}

TEST_F(JobWatchTest, OneThatWasCutIsNotGivenAnotherJobOfThatName) {
  Watch();
  OverflowIt();
  Do(core::CancelJob{"a"});
  Do(core::DeleteJob{"a"});
  Do(Driver::JobOf("a"));
  OverflowIt();
  OverflowIt();
  EXPECT_EQ(ReadToTheEnd(), "JOB_NOT_FOUND");
}

}  // namespace
}  // namespace nibble::server
