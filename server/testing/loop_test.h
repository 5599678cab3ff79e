// For tests of the control loop: one over a store in memory that fails on request, driven by hand.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/control_loop.h"
#include "server/core/testing/driver.h"
#include "server/store/memory_store.h"

namespace nibble {

// Whose wall clock somebody sets.
class SkewedClock : public SimClock {
 public:
  int64_t NowUnixUs() const override { return NowMonotonicUs() + skew_us; }
  int64_t skew_us = 0;
};

class ControlLoopTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  // It answers whom it holds, into what is below.
  void TearDown() override { loop_.reset(); }
  void Open() {
    loop_.reset();
    ControlLoop::Options options;
    options.core.token_secret = "secret";
    options.batch_us = 0;
    options.core.sleep_us = sleep_us_;
    options.retain_events_us = retain_events_us_;
    options.on_load = [this](core::State&) { clock_.AdvanceUs(load_us_); };
    options.timeline = "t";
    options.on_fatal = [this](const absl::Status& status) { fatal_.push_back(status); };
    loop_ = std::make_unique<ControlLoop>(options, core::testing::CheapSpecFunctions(), &store_,
                                          &hub_, &clock_);
    ASSERT_TRUE(loop_->Start().ok());
  }
  void Post(core::CommandBody body) {
    ASSERT_TRUE(loop_->Post(std::move(body),
                            [this](absl::Status status, const ControlLoop::Outcome& outcome) {
                              statuses_.push_back(std::move(status));
                              ids_.push_back(outcome.id);
                            }));
  }
  void AddThings() {
    core::RegisterModel model;
    model.model.id = "base";
    model.model.digest = "d";
    model.model.root_path = "/base";
    model.model.files = {{"config.json", std::string(64, 'c'), 1}};
    Post(model);
    core::CreateDataset dataset;
    dataset.dataset.id = "data";
    dataset.dataset.path = "/data";
    Post(dataset);
    Post(core::testing::Driver::WorkerOf("w1", "i1", 1'000 * core::testing::kMB));
    loop_->RunOnce(0);
    statuses_.clear();
    ids_.clear();
  }
  void PostSync(int64_t known_revision, const std::string& incarnation = "i1") {
    core::Synchronize sync;
    sync.worker_id = "w1";
    sync.incarnation = incarnation;
    sync.known_revision = known_revision;
    const core::Worker& worker = loop_->state().workers.at("w1");
    for (const core::Assignment& a :
         core::DesiredFor(loop_->state(), worker, loop_->core().options).assignments) {
      sync.attempts.push_back({a.job->id, a.attempt->epoch, a.attempt->device_id});
    }
    ASSERT_TRUE(loop_->PostSynchronize(
        sync, [this](absl::Status status, const ControlLoop::Outcome& outcome) {
          syncs_.push_back(std::move(status));
          revision_ = outcome.state.workers.at("w1").revision;
        }));
    loop_->RunOnce(0);
  }

  int64_t retain_events_us_ = 0;
  int64_t load_us_ = 0;   // that reading the store takes
  int64_t sleep_us_ = 0;  // most tests let hours pass between two turns
  SkewedClock clock_;
  store::MemoryStore store_;
  WatchHub hub_{4, 4};
  std::unique_ptr<ControlLoop> loop_;
  std::vector<absl::Status> statuses_;
  std::vector<std::string> ids_;
  std::vector<absl::Status> syncs_;
  std::vector<absl::Status> fatal_;
  int64_t revision_ = 0;
};

}  // namespace nibble
