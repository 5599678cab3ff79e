// Keeper and Meter over a loop in memory.
#include "server/keeper.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "server/core/blob_references.h"
#include "server/http.h"
#include "server/meter.h"
#include "server/metrics_table.h"
#include "server/store/memory_store.h"

namespace nibble::server {
namespace {

constexpr int64_t kHourUs = int64_t{3600} * 1'000'000;
constexpr char kConfig[] = R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":64,
    "hidden_size":32,"intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":2,
    "num_key_value_heads":1,"max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0,
    "tie_word_embeddings":true,"hidden_act":"silu"})";

class KeeperTest : public testing::Test {
 protected:
  KeeperTest()
      : blobs_(NewMemoryBlobStore({}, clock_)), meter_({0, 2}, &clock_), lingering_({kHourUs, 2}, &clock_) {
    ControlLoop::Options options;
    options.timeline = "t";
    options.core.sleep_us = 0;  // hours pass between two turns
    options.batch_us = 0;
    options.on_commit = [this](const std::vector<core::EventRecord>& records, const core::State& state) {
      meter_.OnCommit(records, state);
      lingering_.OnCommit(records, state);
    };
    options.decide = [this](const core::State& state, const core::Command& command, core::Core& core) {
      if (const auto* forget = std::get_if<core::ForgetBlobs>(&command.body)) asked_ = forget->sha256s;
      return core::Decide(state, command, core);
    };
    loop_ = std::make_unique<ControlLoop>(std::move(options), core::RealSpecFunctions(), &store_,
                                          &hub_, &clock_);
    EXPECT_TRUE(loop_->Start().ok());
    loop_->RunThread();
    edge_.loop = loop_.get();
    edge_.hub = &hub_;
    edge_.metrics = &metrics_;
    edge_.blobs = blobs_.get();
    edge_.io = &io_;
    edge_.ticker = &ticker_;
    edge_.clock = &clock_;
    meter_.SetSources({loop_.get(), &hub_, blobs_.get(), nullptr, "", ""});
    lingering_.SetSources({loop_.get(), &hub_, blobs_.get(), nullptr, "", ""});
  }
  ~KeeperTest() override {
    io_.Stop();
    loop_->Stop();
  }

  std::string Put(const std::string& data) {
    const auto begun = blobs_->Begin(Sha256Hex(data), static_cast<int64_t>(data.size()));
    EXPECT_TRUE(blobs_->Append(begun->upload_id, 0, data).ok());
    EXPECT_TRUE(blobs_->Finish(begun->upload_id)->complete);
    return begun->sha256;
  }
  void Record(const std::string& sha256) {
    EXPECT_TRUE(loop_->Call(core::RecordBlob{sha256, blobs_->SizeBytes(sha256).value()}).ok());
  }
  // One round is: pool, loop (once for each part of what refers to blobs), pool. Each barrier waits for what
  // was posted before it.
  void RoundAndWait(Keeper& keeper) {
    keeper.Round();
    for (int i = 0; i < 5; ++i) {
      std::promise<void> done;
      ASSERT_TRUE(io_.Post([&] { done.set_value(); }));
      done.get_future().wait();
      ASSERT_TRUE(loop_->ReadAndWait([](const ControlLoop::Outcome&) {}));
    }
  }
  std::string MakeJob() {
    core::Model model;
    model.id = "m";
    model.root_path = "/models/m";
    model.files = {{"config.json", std::string(64, 'a'), 1}};
    model.digest = std::string(64, 'b');
    model.config_json = kConfig;
    model.config = spec::ParseModelConfig(kConfig).value();
    EXPECT_TRUE(loop_->Call(core::RegisterModel{model}).ok());
    core::Dataset dataset;
    dataset.id = "d";
    dataset.path = "/models/d.jsonl";
    EXPECT_TRUE(loop_->Call(core::CreateDataset{dataset}).ok());
    core::CreateJob create;
    create.job_id = absl::StrCat("job-", ++jobs_);
    create.model_id = "m";
    create.dataset_id = "d";
    const auto id = loop_->Call(create);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or("");
  }

  SimClock clock_;
  std::unique_ptr<BlobStore> blobs_;
  Meter meter_;
  Meter lingering_;
  std::vector<std::string> asked_;  // of the last ForgetBlobs; of the loop's thread
  store::MemoryStore store_;
  store::MemoryMetricStore metrics_;
  WatchHub hub_;
  std::unique_ptr<ControlLoop> loop_;
  IoPool io_{1, 100};
  Ticker ticker_;
  Edge edge_;
  int jobs_ = 0;
};

TEST_F(KeeperTest, CollectsWhatNobodyRefersTo) {
  Keeper keeper(&edge_, {});
  const std::string used = Put("{\"text\":\"a\"}");
  const std::string known = Put("known to the state");
  const std::string stray = Put("left by a crash before it was recorded");
  Record(used);
  Record(known);
  core::Dataset dataset;
  dataset.id = "d";
  dataset.sha256 = used;
  dataset.size_bytes = 12;
  ASSERT_TRUE(loop_->Call(core::CreateDataset{dataset}).ok());
  RoundAndWait(keeper);
  EXPECT_TRUE(blobs_->SizeBytes(known).ok()) << "pinned";
  clock_.AdvanceUs(25 * kHourUs);
  RoundAndWait(keeper);
  EXPECT_TRUE(blobs_->SizeBytes(used).ok());
  EXPECT_FALSE(blobs_->SizeBytes(known).ok());
  EXPECT_FALSE(blobs_->SizeBytes(stray).ok());
  const auto again = loop_->Call(core::CreateDataset{{"e", "", "", known, 18, 1, "text", "", 0}});
  EXPECT_EQ(StatusReason(again.status()), Reason::kBlobNotFound) << "forgotten before it was deleted";
}

// Most of what is old is in use. A decision about all of it would hold the loop up for seconds.
TEST_F(KeeperTest, NoDecisionIsAskedForAboutBlobsInUse) {
  Keeper keeper(&edge_, {});
  const size_t rows = 2 * core::BlobReferences::kRowsAtOnce;
  for (size_t i = 0; i <= rows; ++i) {
    const std::string row = absl::StrCat("row ", i);
    const std::string sha256 = Put(row);
    Record(sha256);
    if (i == rows) continue;
    core::Dataset dataset;
    dataset.id = absl::StrCat("d-", i);
    dataset.sha256 = sha256;
    dataset.size_bytes = static_cast<int64_t>(row.size());
    ASSERT_TRUE(loop_->Call(core::CreateDataset{dataset}).ok());
  }
  clock_.AdvanceUs(25 * kHourUs);
  RoundAndWait(keeper);
  ASSERT_TRUE(loop_->ReadAndWait([&](const ControlLoop::Outcome& outcome) {
    EXPECT_EQ(asked_, std::vector<std::string>{Sha256Hex(absl::StrCat("row ", rows))});
    EXPECT_EQ(outcome.state.blobs.size(), rows);
  }));
}

TEST_F(KeeperTest, ForgetsWhatWasFoundInDataLongAgo) {
  Keeper keeper(&edge_, {.retain_checks_us = kHourUs});
  const std::string job = MakeJob();
  core::ValidateDataset validate;
  validate.model_id = "m";
  validate.dataset_id = "d";
  const auto check = loop_->Call(validate);
  ASSERT_TRUE(check.ok()) << check.status();
  const auto here = [&](const std::string& id) {
    bool found = false;
    EXPECT_TRUE(loop_->ReadAndWait([&](const ControlLoop::Outcome& o) { found = o.state.FindJob(id); }));
    return found;
  };
  clock_.AdvanceUs(2 * kHourUs);
  RoundAndWait(keeper);
  EXPECT_TRUE(here(*check)) << "it has not ended";
  ASSERT_TRUE(loop_->Call(core::CancelJob{*check}).ok());
  ASSERT_TRUE(loop_->Call(core::CancelJob{job}).ok());
  RoundAndWait(keeper);
  EXPECT_TRUE(here(*check)) << "ended, and not yet for an hour";
  clock_.AdvanceUs(2 * kHourUs);
  RoundAndWait(keeper);
  EXPECT_FALSE(here(*check));
  EXPECT_TRUE(here(job)) << "those of users stay";
}

TEST_F(KeeperTest, DeletesJobsPastTheirRetention) {
  Keeper keeper(&edge_, {.retain_jobs_us = kHourUs});
  const std::string ended = MakeJob(), waiting = MakeJob();
  ASSERT_TRUE(loop_->Call(core::CancelJob{ended}).ok());
  RoundAndWait(keeper);
  ASSERT_TRUE(loop_->ReadAndWait(
      [&](const ControlLoop::Outcome& o) { EXPECT_TRUE(o.state.FindJob(ended)); }));
  clock_.AdvanceUs(2 * kHourUs);
  RoundAndWait(keeper);
  ASSERT_TRUE(loop_->ReadAndWait([&](const ControlLoop::Outcome& o) {
    EXPECT_FALSE(o.state.FindJob(ended));
    EXPECT_TRUE(o.state.FindJob(waiting));
  }));
}

// A crash between the end of a job in the state and of its metrics: another of its name must not find them.
TEST_F(KeeperTest, MetricsOfJobsThatAreGoneGoToo) {
  Keeper keeper(&edge_, {});
  const std::string here = MakeJob();
  store::StepMetric step;
  step.step = 1;
  for (const std::string& id : {here, std::string("gone"), std::string("a")})
    ASSERT_TRUE(metrics_.Append(id, {step}).ok());
  RoundAndWait(keeper);
  EXPECT_EQ(metrics_.JobIds("", 10).value(), std::vector<std::string>{here});
}

TEST_F(KeeperTest, AWorkerWithAFullDiskIsSeen) {
  core::RegisterWorker worker;
  worker.worker_id = "w1";
  worker.incarnation = "i";
  core::Device& device = worker.devices.emplace_back();
  device.id = "cpu0";
  device.backend = "cpu";
  device.capacity_bytes = int64_t{1} << 30;
  ASSERT_TRUE(loop_->Call(worker).ok());
  const auto has = [&](const char* line) { return meter_.Scrape().find(line) != std::string::npos; };
  EXPECT_TRUE(has("nibble_worker_disk_full{worker=\"w1\"} 0"));
  core::Synchronize sync;
  sync.worker_id = "w1";
  sync.incarnation = "i";
  sync.no_room = "12 bytes are free";
  ASSERT_TRUE(loop_->Call(sync).ok());
  EXPECT_TRUE(has("nibble_worker_disk_full{worker=\"w1\"} 1"));
  sync.no_room.clear();
  ASSERT_TRUE(loop_->Call(sync).ok());
  EXPECT_TRUE(has("nibble_worker_disk_full{worker=\"w1\"} 0"));
}

TEST_F(KeeperTest, ForgetsWorkersLostForLong) {
  Keeper keeper(&edge_, {.retain_workers_us = kHourUs});
  const auto known = [&] {
    bool found = false;
    EXPECT_TRUE(loop_->ReadAndWait([&](const ControlLoop::Outcome& o) { found = o.state.FindWorker("w"); }));
    return found;
  };
  core::RegisterWorker worker;
  worker.worker_id = "w";
  worker.incarnation = "i";
  core::Device device;
  device.id = "cpu0";
  device.capacity_bytes = int64_t{1} << 30;
  device.backend = "cpu";
  device.profile.build = "build-1";
  worker.devices = {device};
  const auto registered = loop_->Call(worker);
  ASSERT_TRUE(registered.ok()) << registered.status();
  RoundAndWait(keeper);
  EXPECT_TRUE(known());
  clock_.AdvanceUs(kHourUs / 2);
  ASSERT_TRUE(loop_->Call(core::Tick{}).ok());
  RoundAndWait(keeper);
  EXPECT_TRUE(known()) << "lost, and not yet for an hour";
  clock_.AdvanceUs(kHourUs);
  RoundAndWait(keeper);
  EXPECT_FALSE(known());
}

TEST_F(KeeperTest, JobsHaveSeriesWhileTheyLive) {
  const std::string first = MakeJob(), second = MakeJob(), third = MakeJob();
  std::string text = meter_.Scrape();
  const auto has = [&](const std::string& part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(has("nibble_jobs{state=\"QUEUED\",queue=\"default\"} 3")) << text;
  EXPECT_TRUE(has("nibble_job_state{job_id=\"job-1\",state=\"QUEUED\"} 1")) << text;
  EXPECT_TRUE(has("job_id=\"job-2\""));
  EXPECT_FALSE(has("job_id=\"job-3\"")) << "beyond max_job_series";
  EXPECT_TRUE(has("nibble_job_series_dropped_total 1"));
  EXPECT_TRUE(has("nibble_queue_oldest_pending_timestamp_seconds"));
  ASSERT_TRUE(loop_->Call(core::CancelJob{first}).ok());
  text = meter_.Scrape();
  EXPECT_FALSE(has("job_id=\"job-1\"")) << "no linger: gone with its end";
  EXPECT_TRUE(has("job_id=\"job-3\"")) << "its place is free";
  EXPECT_TRUE(has("nibble_job_series_dropped_total 1")) << "counted once";
  EXPECT_TRUE(
      has("nibble_jobs_finished_total{outcome=\"CANCELLED\",queue=\"default\",reason=\"\"} 1"))
      << text;
}

// Many short jobs end within the time that ended ones linger.
TEST_F(KeeperTest, EndedJobsTakeNoLiveOnesSeries) {
  for (int i = 0; i < 3; ++i) {
    const std::string id = MakeJob();
    ASSERT_TRUE(loop_->Call(core::CancelJob{id}).ok());
    clock_.AdvanceUs(1'000'000);
  }
  MakeJob();
  std::string text = lingering_.Scrape();
  const auto has = [&](const std::string& part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(has("nibble_job_state{job_id=\"job-4\",state=\"QUEUED\"} 1")) << text;
  EXPECT_TRUE(has("nibble_job_state{job_id=\"job-3\",state=\"CANCELLED\"} 1")) << "the last that has ended";
  EXPECT_FALSE(has("job_id=\"job-2\"")) << "beyond max_job_series";
  EXPECT_TRUE(has("nibble_job_series_dropped_total 0")) << "no live job is without";
  MakeJob();
  text = lingering_.Scrape();
  EXPECT_TRUE(has("job_id=\"job-4\"") && has("job_id=\"job-5\"")) << text;
  EXPECT_FALSE(has("job_id=\"job-3\""));
}

// The whole answer to one request.
std::string AskHttp(int port, const std::string& method, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  const std::string request =
      absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char part[4096];
  for (ssize_t got; (got = recv(fd, part, sizeof part, 0)) > 0;)
    answer.append(part, static_cast<size_t>(got));
  close(fd);
  return answer;
}

TEST(Http, AnswersWhatMachinesAsk) {
  std::atomic<bool> ready = true;
  auto http =
      StartHttp("127.0.0.1:0", {[] { return std::string("x 1\n"); }, [&] { return ready.load(); }});
  ASSERT_TRUE(http.ok()) << http.status();
  const int port = (*http)->port();
  const auto ask = [port](const char* method, const char* path) { return AskHttp(port, method, path); };
  const std::string metrics = ask("GET", "/metrics");
  EXPECT_TRUE(metrics.starts_with("HTTP/1.1 200 ")) << metrics;
  EXPECT_NE(metrics.find("text/plain; version=0.0.4"), std::string::npos) << metrics;
  EXPECT_TRUE(metrics.ends_with("\r\n\r\nx 1\n")) << metrics;
  EXPECT_TRUE(ask("HEAD", "/metrics").ends_with("\r\n\r\n")) << "as GET, but for the text";
  EXPECT_TRUE(ask("POST", "/metrics").starts_with("HTTP/1.1 405 "));
  EXPECT_TRUE(ask("GET", "/healthz").ends_with("\r\n\r\nok\n"));
  EXPECT_TRUE(ask("GET", "/readyz").starts_with("HTTP/1.1 200 "));
  ready = false;
  EXPECT_TRUE(ask("GET", "/readyz").starts_with("HTTP/1.1 503 "));
  EXPECT_TRUE(ask("GET", "/healthz").starts_with("HTTP/1.1 200 ")) << "not ready is not dead";
  for (const char* path : {"/", "/metrics/x", "/../etc/passwd", "/etc/passwd"})
    EXPECT_FALSE(ask("GET", path).starts_with("HTTP/1.1 2")) << path;
  EXPECT_FALSE(StartHttp("203.0.113.1:1", {}).ok());
}

TEST(MetricTable, KeepsTheConventions) {
  for (const MetricRow& row : kMetricTable) {
    const std::string_view name = row.name;
    EXPECT_EQ(row.type == MetricType::kCounter, name.ends_with("_total")) << name;
    EXPECT_FALSE(row.help.empty()) << name;
    if (row.type == MetricType::kHistogram) {
      EXPECT_TRUE(name.ends_with("_seconds")) << name;
    }
    int same = 0;
    for (const MetricRow& other : kMetricTable) same += other.name == name;
    EXPECT_EQ(same, 1) << name;
  }
}

}  // namespace
}  // namespace nibble::server
