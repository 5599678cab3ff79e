// The whole worker but the network: the real agent, loop, caches and processes, a fake engine, and
// a server that is a map.
#include "worker/agent_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <future>
#include <mutex>
#include <set>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"

namespace nibble::worker {
namespace {

using testing::HasSubstr;

class FakeServer : public ServerLink {
 public:
  RegisterReply Register(const DoRegister&) override {
    std::lock_guard lock(mutex_);
    ++registrations_;
    return {true, false, "t", 1, 120'000'000};
  }

  SynchronizeReply Synchronize(const DoSynchronize& action) override {
    std::unique_lock lock(mutex_);
    listing_.clear();
    for (const auto& a : action.request.attempts) listing_.insert(a.key);
    faults_.clear();
    for (const auto& d : action.request.devices) {
      if (!d.fault.empty()) faults_[d.device_id] = d.fault;
    }
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::milliseconds(200), [&] {
      return down_ || action.request.draining || action.request.known_revision != revision_ ||
             action.request.id < newest_;
    });
    SynchronizeReply reply;
    reply.id = action.request.id;
    if (down_ || action.request.id < newest_) {
      reply.code = SynchronizeReply::Code::kUnavailable;
      return reply;
    }
    // A worker that wants to go is let go.
    if (action.request.draining) {
      for (auto& [key, assignment] : wanted_) assignment.want = Want::kRelease;
    }
    reply.timeline = "t";
    reply.generation = 1;
    reply.revision = revision_;
    for (const auto& [key, assignment] : wanted_) reply.assignments.push_back(assignment);
    return reply;
  }

  void CancelSynchronizeBefore(int64_t id) override {
    std::lock_guard lock(mutex_);
    newest_ = id;
    changed_.notify_all();
  }

  ReportReply Report(const DoReport& action) override {
    std::lock_guard lock(mutex_);
    const worker::Report& report = action.report;
    for (const StepMetric& m : report.metrics) steps_[report.key].insert(m.step);
    const auto it = wanted_.find(report.key);
    if (it == wanted_.end()) return {report.id, ReportReply::Code::kStale, "stale"};
    if (const auto* c = std::get_if<CheckpointReport>(&report.body)) {
      checkpoints_[report.key.job_id] = *c;
      for (const FileRef& file : c->files)
        EXPECT_TRUE(blobs_.contains(file.sha256)) << "reported before uploaded";
    }
    if (const auto* f = std::get_if<FinishedReport>(&report.body)) {
      results_[report.key.job_id] = *f;
      End(report.key);
    }
    if (const auto* f = std::get_if<FailedReport>(&report.body)) {
      failures_.emplace_back(report.key, *f);
      End(report.key);
    }
    if (const auto* c = std::get_if<CheckReport>(&report.body)) {
      checks_[report.key.job_id] = c->report_json;
      End(report.key);
    }
    if (std::holds_alternative<ReleasedReport>(report.body)) {
      released_.insert(report.key);
      End(report.key);
    }
    changed_.notify_all();
    return {report.id, ReportReply::Code::kOk, ""};
  }

  absl::Status FetchBlob(const std::string& sha256, int64_t offset,
                         const std::function<absl::Status(std::string_view)>& write,
                         const std::function<bool()>&) override {
    std::string content;
    {
      std::unique_lock lock(mutex_);
      if (!blobs_.contains(sha256)) return absl::NotFoundError("no such blob");
      content = blobs_[sha256];
      asked_for_.insert(sha256);
      changed_.notify_all();
      changed_.wait(lock, [&] { return !held_.contains(sha256) || down_; });
    }
    return write(std::string_view(content).substr(static_cast<size_t>(offset)));
  }

  absl::Status PutBlob(const AttemptKey&, const std::string&, const FileRef& file,
                       const std::string& path, const std::function<bool()>&) override {
    const auto content = ReadFile(path);
    if (!content.ok()) return content.status();
    std::lock_guard lock(mutex_);
    blobs_[file.sha256] = *content;
    return absl::OkStatus();
  }

  void Shutdown() override {
    std::lock_guard lock(mutex_);
    down_ = true;
    changed_.notify_all();
  }

  FileRef AddBlob(const std::string& name, const std::string& content) {
    std::lock_guard lock(mutex_);
    const std::string digest = Sha256Hex(content);
    blobs_[digest] = content;
    return {name, digest, static_cast<int64_t>(content.size())};
  }

  void Give(const Assignment& assignment) {
    std::lock_guard lock(mutex_);
    wanted_[assignment.key] = assignment;
    ++revision_;
    changed_.notify_all();
  }
  void Drop(const AttemptKey& key) {
    std::lock_guard lock(mutex_);
    End(key);
  }
  // Who asks for this blob waits, until nobody does any more.
  void Hold(const std::string& sha256) {
    std::lock_guard lock(mutex_);
    held_.insert(sha256);
  }
  void HoldNothing() {
    std::lock_guard lock(mutex_);
    held_.clear();
    changed_.notify_all();
  }

  template <typename Condition>
  bool WaitUntil(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
  }

  // Read inside WaitUntil, or when the loop has ended.
  std::map<AttemptKey, std::set<int64_t>> steps_;
  std::map<std::string, CheckpointReport> checkpoints_;
  std::map<std::string, FinishedReport> results_;
  std::vector<std::pair<AttemptKey, FailedReport>> failures_;
  std::map<std::string, std::string> checks_;
  std::set<AttemptKey> released_;
  std::set<AttemptKey> listing_;
  std::map<std::string, std::string> faults_;
  std::map<std::string, std::string> blobs_;
  std::set<std::string> asked_for_;
  int registrations_ = 0;

 private:
  void End(const AttemptKey& key) {
    wanted_.erase(key);
    ++revision_;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<AttemptKey, Assignment> wanted_;
  int64_t revision_ = 1;
  int64_t newest_ = 0;
  bool down_ = false;
  std::set<std::string> held_;
};

class AgentLoopTest : public testing::Test {
 protected:
  void SetUp() override {
    AgentLoopOptions options;
    options.work_dir = dir_.Join("w");
    options.engine_binary = NIBBLE_FAKE_ENGINE;
    options.agent.metrics_interval_us = 10'000;
    options.agent.retry_min_us = 10'000;
    options.agent.retry_max_us = 50'000;
    options.agent.probed_devices = {"cpu0"};
    options.agent.probe_min_us = options.agent.probe_max_us = 50'000;
    options.agent.numerics = numerics_;
    options.max_log_bytes = max_log_bytes_;
    options.log_look_us = 10'000;
    if (cache_max_bytes_ >= 0) options.cache_max_bytes = cache_max_bytes_;
    (void)!setenv("NIBBLE_FAKE_DEAD_FILE", DeadFile().c_str(), 1);
    ASSERT_FALSE(FileExists(DeadFile()));
    loop_ = std::make_unique<AgentLoop>(options, server_);
    thread_ = std::thread([this] { outcome_ = loop_->Run(); });
  }
  void TearDown() override {
    if (loop_ != nullptr) EndLoop();
  }
  // Everything the loop began has been done when this returns.
  void EndLoop() {
    loop_->RequestDrain();
    thread_.join();
    EXPECT_TRUE(outcome_.ok()) << outcome_;
    loop_.reset();
  }
  Assignment Job(const std::string& id, int64_t epoch, int64_t steps,
                 const std::string& wish = "") {
    Assignment a;
    a.key = {id, epoch};
    a.token = "token-of-" + id + std::to_string(epoch);
    a.device_id = "cpu0";
    a.spec.max_steps = steps;
    a.spec.save_steps = 4;
    a.spec_json = spec::TrainSpecToJson(a.spec);
    a.base_digest = Sha256Hex("model");
    a.base_files = {server_.AddBlob("config.json", "{}"),
                    server_.AddBlob("model.safetensors", "weights")};
    a.dataset = server_.AddBlob("../odd name.jsonl", "{\"text\":\"a\"}\n");
    a.display_name = wish;
    return a;
  }
  // One for all tests: what starts the engines keeps the environment it began with.
  static std::string DeadFile() {
    return testing::TempDir() + "nibble-fake-dead-" + std::to_string(getpid());
  }
  TempDir dir_;
  FakeServer server_;
  int64_t cache_max_bytes_ = -1;  // -1: as usual
  std::map<std::string, std::string> numerics_;
  int64_t max_log_bytes_ = int64_t{1} << 20;
  std::unique_ptr<AgentLoop> loop_;
  std::thread thread_;
  absl::Status outcome_;
};

TEST_F(AgentLoopTest, TrainsAJobToItsEnd) {
  server_.Give(Job("a", 1, 10));
  ASSERT_TRUE(server_.WaitUntil(
      [&] { return server_.results_.contains("a") && server_.listing_.empty(); }));
  EXPECT_EQ(loop_->counts().uploads, 0) << "of its checkpoints and adapter none is kept in mind";
  EndLoop();
  EXPECT_EQ((server_.steps_[{"a", 1}].size()), 10u);
  EXPECT_EQ(server_.results_["a"].step, 10);
  ASSERT_EQ(server_.results_["a"].files.size(), 2u);
  EXPECT_EQ(server_.blobs_[server_.results_["a"].files[1].sha256], "adapter after 10");
  EXPECT_GE(server_.checkpoints_["a"].step, 4);
  EXPECT_TRUE(server_.failures_.empty());
  EXPECT_FALSE(FileExists(dir_.Join("w/attempts/a")));
}

TEST_F(AgentLoopTest, JobsOfOneBaseShareAnEngine) {
  server_.Give(Job("a", 1, 10));
  server_.Give(Job("b", 1, 12));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.results_.size() == 2; }));
  EXPECT_EQ(loop_->counts().engines_started, 1);
}

TEST_F(AgentLoopTest, AnEngineThatDiesFailsItsAttemptAndTheNextResumes) {
  server_.Give(Job("a", 1, 10, "crash-at-6"));
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_TRUE(server_.failures_[0].second.infrastructure);
  EXPECT_THAT(server_.failures_[0].second.message, HasSubstr("signal 6"));
  // Whether the checkpoint of step 4 was reported before the crash of step 6 is a race, as in life.
  Assignment again = Job("a", 2, 10);
  again.checkpoint_files = server_.checkpoints_["a"].files;
  again.checkpoint_step = server_.checkpoints_["a"].step;
  server_.Give(again);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.results_.contains("a"); }));
  const std::set<int64_t>& steps = server_.steps_[{"a", 2}];
  EXPECT_EQ(*steps.begin(), again.checkpoint_step + 1);
  EXPECT_EQ(*steps.rbegin(), 10);
  EXPECT_EQ(static_cast<int64_t>(steps.size()), 10 - again.checkpoint_step);
  EXPECT_EQ(loop_->counts().engines_lost, 1);
}

// From the death of a device through its withdrawal to new work on it.
TEST_F(AgentLoopTest, ADeadDeviceIsWithdrawnUntilItAnswers) {
  server_.Give(Job("dier", 1, 8, "dies-at-5"));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.failures_.size() == 1; }));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.faults_.count("cpu0") == 1; }));
  EXPECT_THAT(server_.faults_["cpu0"], HasSubstr("the fake device has fallen off the bus"));
  server_.Give(Job("next", 1, 3));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.failures_.size() == 2; }));
  EXPECT_EQ(server_.failures_[1].second.reason, "DEVICE_FAULT");
  EXPECT_TRUE(server_.failures_[1].second.neighbour_fault);
  ASSERT_TRUE(RemoveFile(DeadFile()).ok());
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.faults_.empty(); }));
  server_.Give(Job("next", 2, 3));
  EXPECT_TRUE(server_.WaitUntil([&] { return server_.results_.count("next") == 1; }));
}

TEST_F(AgentLoopTest, AnEngineThatTalksNonsenseIsEnded) {
  server_.Give(Job("a", 1, 100, "nonsense-at-3"));
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_THAT(server_.failures_[0].second.message, HasSubstr("hello there"));
}

TEST_F(AgentLoopTest, AFailedJobSaysWhy) {
  server_.Give(Job("a", 1, 10, "fail-at-3"));
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_EQ(server_.failures_[0].second.reason, "LOSS_NOT_FINITE");
  EXPECT_FALSE(server_.failures_[0].second.infrastructure);
}

TEST_F(AgentLoopTest, WhatIsNoLongerWantedStops) {
  server_.Give(Job("a", 1, 100'000, "slow"));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.steps_[{"a", 1}].size() > 2; }));
  server_.Drop({"a", 1});
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.listing_.empty(); }));
}

class UpgradedTest : public AgentLoopTest {
 protected:
  UpgradedTest() { numerics_ = {{"cpu0", "older/cpu/fake"}}; }
};

TEST_F(UpgradedTest, AWorkerWhoseEngineWasReplacedEndsToBeStartedAgain) {
  server_.Give(Job("a", 1, 10));
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_TRUE(server_.failures_[0].second.neighbour_fault);
  thread_.join();
  EXPECT_EQ(StatusReason(outcome_), Reason::kNumericsChanged) << outcome_;
  loop_.reset();
}

class NoCacheTest : public AgentLoopTest {
 protected:
  NoCacheTest() {
    cache_max_bytes_ = 0;
    for (const std::string& path : {old_blob_, old_base_}) {
      const bool made = MakeDirs(DirName(path)).ok() && WriteFileAtomic(path, "old").ok();
      EXPECT_TRUE(made) << path;
    }
  }
  static bool GoesAway(const std::string& path) {
    for (int i = 0; i < 3'000 && FileExists(path); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return !FileExists(path);
  }
  // Of a worker that had a larger cache.
  const std::string old_blob_ = dir_.Join("w/cache/blobs/" + Sha256Hex("old"));
  const std::string old_base_ = dir_.Join("w/cache/base/base-" + Sha256Hex("old"));
};

// Nobody has to come and fetch something first.
TEST_F(NoCacheTest, ShrinksWhenTheWorkerStartsAndWhenAJobHasEnded) {
  EXPECT_TRUE(GoesAway(old_blob_));
  EXPECT_TRUE(GoesAway(old_base_));
  const Assignment a = Job("a", 1, 4);
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.results_.contains("a"); }));
  for (const FileRef& file : {a.base_files[1], *a.dataset})
    EXPECT_TRUE(GoesAway(dir_.Join("w/cache/blobs/" + file.sha256))) << file.name;
}

// Files that come when the attempt is over already must not stay pinned for it.
TEST_F(NoCacheTest, AFetchThatIsGivenUpKeepsNothing) {
  Assignment a = Job("a", 1, 10);
  a.base_digest = Sha256Hex("another model");
  a.base_files = {server_.AddBlob("config.json", "{ }"), server_.AddBlob("model.safetensors", "others")};
  const std::string first = a.base_files[0].sha256, second = a.base_files[1].sha256;
  server_.Hold(first);
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil(
      [&] { return server_.asked_for_.contains(first) && server_.listing_.contains(a.key); }));
  server_.Drop(a.key);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.listing_.empty(); }));
  server_.HoldNothing();
  EndLoop();
  for (const std::string& sha256 : {first, second})
    EXPECT_FALSE(FileExists(dir_.Join("w/cache/blobs/" + sha256)));
  EXPECT_FALSE(FileExists(dir_.Join("w/attempts/a")));
}

class ShortLogTest : public AgentLoopTest {
 protected:
  ShortLogTest() { max_log_bytes_ = 1000; }
};

TEST_F(ShortLogTest, TheLogOfAnEngineThatGoesOnIsCut) {
  server_.Give(Job("a", 1, 100'000, "slow"));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.steps_[{"a", 1}].size() > 2; }));
  const std::string log = dir_.Join("w/log/engine-cpu0.log");
  {
    std::ofstream out(log, std::ios::app);
    out << std::string(2000, 'x');
  }
  ASSERT_TRUE(server_.WaitUntil([&] { return FileExists(log + ".1"); }));
  ASSERT_TRUE(server_.WaitUntil([&] { return *FileSizeBytes(log) < 2000; }));
  EXPECT_EQ(loop_->counts().engines_started, 1);
}

TEST_F(AgentLoopTest, LargeModelsOnTheirWayKeepNoSmallJobWaiting) {
  for (const char* name : {"large1", "large2", "large3", "large4"}) {
    Assignment large = Job(name, 1, 1);
    large.base_digest = Sha256Hex(name);
    large.base_files = {server_.AddBlob("model.safetensors", name)};
    server_.Hold(large.base_files[0].sha256);
    server_.Give(large);
    ASSERT_TRUE(server_.WaitUntil([&] { return server_.listing_.contains(large.key); }));
  }
  server_.Give(Job("small", 1, 1));
  EXPECT_TRUE(server_.WaitUntil([&] { return server_.results_.contains("small"); }));
  EXPECT_EQ(server_.results_.size(), 1u);
  server_.HoldNothing();
  EXPECT_TRUE(server_.WaitUntil([&] { return server_.results_.size() == 5; }));
}

TEST(TaskPoolTest, AsManyAtOnceAsItMayAndNoMore) {
  constexpr int kMost = 6;
  std::atomic<int> inside{0}, most{0}, done{0};
  {
    TaskPool pool(kMost);
    for (int i = 0; i < 3 * kMost; ++i) {
      ASSERT_TRUE(pool.Post([&, i] {
        const int now = ++inside;
        for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        // The first few wait for each other: they end only if all of them are there at once.
        while (i < kMost && most < kMost) std::this_thread::yield();
        --inside;
        ++done;
      }));
    }
  }
  EXPECT_EQ(done, 3 * kMost);
  EXPECT_EQ(most, kMost);
}

TEST_F(AgentLoopTest, ReleaseSavesFirst) {
  Assignment a = Job("a", 1, 100'000, "slow");
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.steps_[{"a", 1}].size() > 5; }));
  a.want = Want::kRelease;
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.released_.contains({"a", 1}); }));
  EXPECT_GT(server_.checkpoints_["a"].step, 4);
}

TEST_F(AgentLoopTest, ChecksBringAReportOrARefusal) {
  Assignment check = Job("c", 1, 10);
  check.kind = Kind::kCheck;
  server_.Give(check);
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.checks_.contains("c"); }));
  EXPECT_THAT(server_.checks_["c"], HasSubstr("\"rows\":1"));
  check = Job("d", 1, 10);
  check.kind = Kind::kCheck;
  check.dataset = server_.AddBlob("d", "{\"text\":\"nothing\"}\n");
  server_.Give(check);
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_EQ(server_.failures_[0].second.reason, "NO_SUPERVISED_TOKENS");
}

TEST_F(AgentLoopTest, AMissingBlobFailsTheAttempt) {
  Assignment a = Job("a", 1, 10);
  a.dataset->sha256 = Sha256Hex("never seen");
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
}

TEST_F(AgentLoopTest, ADamagedCheckpointIsNamedSoThatTheOneBeforeIsTaken) {
  Assignment a = Job("a", 2, 10);
  a.checkpoint_step = 4;
  a.checkpoint_files = {server_.AddBlob("state.bin", "what it was")};
  server_.blobs_[a.checkpoint_files[0].sha256] = "what it has";
  server_.Give(a);
  ASSERT_TRUE(server_.WaitUntil([&] { return !server_.failures_.empty(); }));
  EXPECT_EQ(server_.failures_[0].second.reason, "CHECKPOINT_INVALID");
  EXPECT_THAT(server_.failures_[0].second.message, HasSubstr("step 4 is damaged on the server"));
  EXPECT_TRUE(server_.failures_[0].second.infrastructure);
}

TEST_F(AgentLoopTest, AMappedBaseThatWasChangedIsRefused) {
  const std::string model = dir_.Join("model");
  ASSERT_TRUE(MakeDirs(model).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(model, "config.json"), "{}").ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(model, "model.safetensors"), "weights").ok());
  BlobCache cache(dir_.Join("c"), 1 << 20);
  ASSERT_TRUE(cache.Open().ok());
  const AttemptFiles files(dir_.Join("x"), true, cache, server_);
  Assignment a = Job("a", 1, 10);
  a.base_path = model;
  const auto same = files.Fetch(a, [] { return false; });
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->model_dir, model);
  ASSERT_TRUE(WriteFileAtomic(JoinPath(model, "model.safetensors"), "changed").ok());
  const auto other = files.Fetch(a, [] { return false; });
  EXPECT_EQ(StatusReason(other.status()), Reason::kModelFileInvalid) << other.status();
  EXPECT_THAT(std::string(other.status().message()),
              HasSubstr("has changed since the model was registered"));
}

// A job that went on with other rows would give up its checkpoints one after the other.
TEST_F(AgentLoopTest, MappedDataThatWasChangedIsRefused) {
  const std::string data = dir_.Join("train.jsonl"), eval = dir_.Join("eval.jsonl");
  ASSERT_TRUE(WriteFileAtomic(data, "rows").ok());
  ASSERT_TRUE(WriteFileAtomic(eval, "held back").ok());
  BlobCache cache(dir_.Join("c"), 1 << 20);
  ASSERT_TRUE(cache.Open().ok());
  const AttemptFiles files(dir_.Join("x"), true, cache, server_);
  Assignment a = Job("a", 1, 10);
  a.dataset = FileRef{"d", Sha256Hex("rows"), 4};
  a.dataset_path = data;
  a.eval_dataset = FileRef{"e", Sha256Hex("held back"), 9};
  a.eval_dataset_path = eval;
  const auto same = files.Fetch(a, [] { return false; });
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->dataset_path, data);
  EXPECT_EQ(same->eval_dataset_path, eval);
  for (const auto& [path, was] : {std::pair{data, "rows"}, {eval, "held back"}}) {
    for (const char* now : {"ROWS", "HELD BACK", "more than there was"}) {
      ASSERT_TRUE(WriteFileAtomic(path, now).ok());
      const auto other = files.Fetch(a, [] { return false; });
      EXPECT_EQ(StatusReason(other.status()), Reason::kDigestMismatch) << other.status();
      EXPECT_THAT(std::string(other.status().message()),
                  HasSubstr(path + " has changed since its data set was registered"));
    }
    ASSERT_TRUE(WriteFileAtomic(path, was).ok());
    EXPECT_TRUE(files.Fetch(a, [] { return false; }).ok());
  }
}

// Terabytes in the cache, begun, or to be sent, that take an hour to be read: who waits for that keeps the
// worker from its end.
TEST_F(AgentLoopTest, FilesAreReadNoFurtherThanTheyAreWanted) {
  BlobCache cache(dir_.Join("c"), 1 << 20);
  ASSERT_TRUE(cache.Open().ok() && MakeDirs(dir_.Join("up")).ok());
  const AttemptFiles files(dir_.Join("x"), false, cache, server_);
  Assignment a = Job("a", 1, 10);
  const FileRef vast{"model.safetensors", Sha256Hex("vast"), int64_t{1} << 42};
  a.base_files = {vast};
  for (const char* place : {"c/blobs/", "c/partial/", "up/"}) {
    const std::string path = dir_.Join(place + vast.sha256);
    ASSERT_TRUE(WriteFileAtomic(path, "").ok());
    ASSERT_EQ(truncate(path.c_str(), vast.size_bytes), 0);
    int asked = 0;
    const auto cancelled = [&] { return ++asked > 3; };
    const absl::Status status = place == std::string("up/")
                                    ? files.Upload(a.key, a.token, dir_.Join("up"), cancelled).status()
                                    : files.Fetch(a, cancelled).status();
    EXPECT_TRUE(absl::IsCancelled(status)) << place << ": " << status;
    EXPECT_TRUE(RemoveFile(path).ok()) << "it stays where it is";
  }
}

// More often than there is room for what nobody takes any more.
TEST_F(AgentLoopTest, WhoAsksForADrainWhenAllIsOverIsNotKeptWaiting) {
  loop_->RequestDrain();
  thread_.join();
  std::promise<void> asked;
  auto asking = std::make_unique<std::thread>([&] {
    for (int i = 0; i < 20'000; ++i) loop_->RequestDrain();
    asked.set_value();
  });
  if (asked.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready) {
    asking->join();
    loop_.reset();
    return;
  }
  ADD_FAILURE() << "it waits for room that nobody makes";
  (void)asking.release();  // it has the loop for ever
  (void)loop_.release();
}

TEST_F(AgentLoopTest, DrainSavesAndLeaves) {
  server_.Give(Job("a", 1, 100'000, "slow"));
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.steps_[{"a", 1}].size() > 5; }));
  loop_->RequestDrain();
  ASSERT_TRUE(server_.WaitUntil([&] { return server_.released_.contains({"a", 1}); }));
  EXPECT_TRUE(server_.checkpoints_.contains("a"));
}

}  // namespace
}  // namespace nibble::worker
