// Jobs from the first step to the adapter: whatever interrupts or accompanies them, the bytes are the same.
#include "engine/job.h"

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/testing/tiny_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

class JobTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    testing::WriteTinyDirectory(dir_.Join("model"), 3);
    testing::WriteTinyDataset(dir_.Join("train.jsonl"), 60, 4);
    testing::WriteTinyDataset(dir_.Join("eval.jsonl"), 12, 5);
  }

  std::unique_ptr<Device> OpenDevice(int threads = 1) {
    DeviceOptions options;
    options.device = GetParam();
    options.threads = threads;
    options.base.model_dir = dir_.Join("model");
    options.base.cache_dir = dir_.Join("cache");
    CHECK_OK(MakeDirs(options.base.cache_dir));
    const auto table = FindTable(options.device);
    CHECK_OK(table.status());
    auto device = Device::Open(options, MeasureProfile(**table, threads));
    CHECK_OK(device.status());
    return *std::move(device);
  }

  JobInput Input(const std::string& name) {
    JobInput input;
    input.attempt = name + "/1";
    input.dir = dir_.Join(name);
    input.dataset = dir_.Join("train.jsonl");
    input.eval_dataset = dir_.Join("eval.jsonl");
    input.base_name = "tiny";
    input.display_name = "test";
    input.spec.lora_r = 4;
    input.spec.lora_dropout = 0.1;
    input.spec.sequence_len = 64;
    input.spec.micro_batch_size = 2;
    input.spec.gradient_accumulation_steps = 2;
    input.spec.learning_rate = 1e-2;
    input.spec.max_steps = 9;
    input.spec.eval_steps = 4;
    input.spec.save_steps = 1000;
    input.spec.save_interval_seconds = 0;
    return input;
  }

  std::unique_ptr<Job> Open(Device& device, const JobInput& input) {
    auto job = Job::Open(device, input, clock_);
    CHECK_OK(job.status());
    CHECK_OK((*job)->Start());
    CHECK_OK(device.ResizeStep(std::max(device.step().mapped_bytes(), (*job)->plan().step_bytes)));
    return *std::move(job);
  }

  static void RunToEnd(Job& job) {
    while (!job.finished()) CHECK_OK(job.Advance().status());
  }

  // What must not differ: the adapter's bytes and the numbers of every step.
  struct Result {
    std::string weights, config;
    std::vector<std::array<double, 5>> rows;
    bool operator==(const Result&) const = default;
  };
  Result ResultOf(const Job& job) {
    Result result;
    const std::string adapter = JoinPath(job.input().dir, "adapter");
    result.weights = *ReadFile(JoinPath(adapter, "adapter_model.safetensors"));
    result.config = *ReadFile(JoinPath(adapter, "adapter_config.json"));
    for (const MetricRow& row : job.history()) {
      result.rows.push_back({static_cast<double>(row.step) + (row.is_eval ? 0.5 : 0), row.loss, row.grad_norm,
                             row.learning_rate, static_cast<double>(row.tokens)});
    }
    return result;
  }

  Result RunAlone(const JobInput& input, int threads = 1) {
    const auto device = OpenDevice(threads);
    const auto job = Open(*device, input);
    RunToEnd(*job);
    return ResultOf(*job);
  }

  TempDir dir_;
  SimClock clock_;
};

TEST_P(JobTest, LearnsEvaluatesAndExports) {
  JobInput input = Input("job");
  input.spec.max_steps = 60;
  input.spec.eval_steps = -1;
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  EXPECT_EQ(job->total_steps(), 60);
  RunToEnd(*job);
  const std::vector<MetricRow>& history = job->history();
  std::vector<double> evals;
  int64_t steps = 0;
  for (const MetricRow& row : history) {
    if (row.is_eval) evals.push_back(row.loss);
    steps += !row.is_eval;
    EXPECT_TRUE(std::isfinite(row.loss));
    EXPECT_GT(row.target_tokens, 0);
  }
  EXPECT_EQ(steps, 60);
  ASSERT_GE(evals.size(), 3u);
  EXPECT_TRUE(history.front().is_eval);   // before the first step, for comparison
  EXPECT_TRUE(history.back().is_eval);
  EXPECT_LT(evals.back(), 0.8 * evals.front());
  EXPECT_TRUE(FileExists(JoinPath(input.dir, "adapter/adapter_model.safetensors")));
  EXPECT_EQ(job->NextWork(), JobWork::kNothing);
  EXPECT_LE(job->PersistentTouchedBytes(), job->plan().persistent_bytes);
  EXPECT_LE(device->step().TouchedBytes(), job->plan().step_bytes);
}

TEST_P(JobTest, AnyInterruptionGivesTheSameBytes) {
  const Result whole = RunAlone(Input("whole"));
  for (const int64_t stop : {0, 1, 4, 8, 9}) {
    JobInput input = Input("part" + std::to_string(stop));
    {
      const auto device = OpenDevice();
      const auto job = Open(*device, input);
      while (job->step() < stop) CHECK_OK(job->Advance().status());
      job->RequestCheckpoint();
      const auto event = job->Advance();
      ASSERT_TRUE(event.ok()) << event.status();
      input.resume = std::get<CheckpointDone>(*event).saved.directory;
    }
    input.dir += "-again";
    const Result resumed = RunAlone(input);
    EXPECT_EQ(resumed.weights == whole.weights, true) << "stopped at " << stop;
    EXPECT_EQ(resumed.rows, whole.rows) << "stopped at " << stop;
    EXPECT_EQ(resumed.config, whole.config);
  }
}

TEST_P(JobTest, ThreadsNeighboursAndRecomputationChangeNothing) {
  const Result alone = RunAlone(Input("alone"));
  EXPECT_TRUE(RunAlone(Input("two-threads"), 2) == alone);
  JobInput kept = Input("kept");
  kept.spec.gradient_checkpointing = false;
  EXPECT_TRUE(RunAlone(kept) == alone);

  JobInput other = Input("other");
  other.spec.seed = 7;
  other.spec.lora_r = 8;
  other.spec.micro_batch_size = 4;
  const Result other_alone = RunAlone(other);
  other.dir += "-beside";
  JobInput first = Input("beside");
  const auto device = OpenDevice();
  const auto a = Open(*device, first);
  const auto b = Open(*device, other);
  while (!a->finished() || !b->finished()) {
    CHECK_OK(a->Advance().status());
    CHECK_OK(b->Advance().status());
    CHECK_OK(b->Advance().status());
  }
  EXPECT_TRUE(ResultOf(*a) == alone);
  EXPECT_TRUE(ResultOf(*b) == other_alone);
  EXPECT_FALSE(alone.weights == other_alone.weights);
}

TEST_P(JobTest, SavesWhenDue) {
  JobInput input = Input("job");
  input.spec.save_steps = 3;
  input.spec.save_interval_seconds = 100;
  input.spec.save_total_limit = 5;
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  std::vector<int64_t> saved;
  while (!job->finished()) {
    auto event = job->Advance();
    ASSERT_TRUE(event.ok());
    if (const auto* done = std::get_if<CheckpointDone>(&*event)) saved.push_back(done->step);
    if (job->step() == 4) clock_.AdvanceUs(101'000'000);
  }
  EXPECT_THAT(saved, ::testing::IsSupersetOf({3, 6}));
  EXPECT_THAT(saved, ::testing::Contains(4));
  EXPECT_THAT(saved, ::testing::Not(::testing::Contains(9)));
}

TEST_P(JobTest, RefusesStrangersCheckpoints) {
  JobInput input = Input("job");
  std::string checkpoint;
  {
    const auto device = OpenDevice();
    const auto job = Open(*device, input);
    while (job->step() < 2) CHECK_OK(job->Advance().status());
    job->RequestCheckpoint();
    checkpoint = std::get<CheckpointDone>(*job->Advance()).saved.directory;
  }
  const auto device = OpenDevice();
  const auto start = [&](const JobInput& changed) {
    auto job = Job::Open(*device, changed, clock_);
    CHECK_OK(job.status());
    return StatusReason((*job)->Start());
  };
  input.resume = checkpoint;
  EXPECT_EQ(start(input), Reason::kUnspecified);
  JobInput changed = input;
  changed.spec.learning_rate = 1e-3;
  EXPECT_EQ(start(changed), Reason::kCheckpointInvalid);
  changed = input;
  changed.dataset = dir_.Join("eval.jsonl");
  EXPECT_EQ(start(changed), Reason::kCheckpointInvalid);
  changed = input;
  changed.spec.save_steps = 2;
  changed.spec.gradient_checkpointing = false;
  EXPECT_EQ(start(changed), Reason::kUnspecified);
  changed.numerics_id = "0.0.1/cpu/none";
  EXPECT_EQ(StatusReason(Job::Open(*device, changed, clock_).status()), Reason::kNumericsChanged);
  changed.spec.allow_numerics_change = true;
  EXPECT_EQ(start(changed), Reason::kUnspecified);
}

TEST_P(JobTest, ThreeBadStepsInARowEndTheJob) {
  JobInput input = Input("job");
  input.eval_dataset = "";
  input.spec.val_set_size = 0;
  input.spec.warmup_ratio = 0;
  input.spec.max_grad_norm = 0;
  input.spec.learning_rate = 1;
  input.spec.lora_alpha = 65536;
  input.spec.max_steps = 200;
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  absl::Status status;
  while (status.ok() && !job->finished()) status = job->Advance().status();
  if (status.ok()) GTEST_SKIP() << "this body stays finite even so";
  EXPECT_EQ(StatusReason(status), Reason::kLossNotFinite);
  EXPECT_FALSE(FileExists(JoinPath(input.dir, "adapter/adapter_model.safetensors")));
}

INSTANTIATE_TEST_SUITE_P(Devices, JobTest, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::engine
