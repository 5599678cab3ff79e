// Jobs from the first step to the adapter: whatever interrupts or accompanies them, the bytes are
// the same.
#include "engine/job.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/fused_turn.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/testing/tiny_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

class JobTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda-emulated" && !testing::FullRun()) {
      GTEST_SKIP() << "the emulation is slow: cuda_training_test has a short form, --full runs this";
    }
    if (const std::string_view device = GetParam();
        device.starts_with("cpu:") && kernels::CpuTableFor(device.substr(4)) == nullptr) {
      GTEST_SKIP() << "this machine's processor has no " << device.substr(4);
    }
    testing::WriteTinyDirectory(dir_.Join("model"), 3);
    testing::WriteTinyDataset(dir_.Join("train.jsonl"), 60, 4);
    testing::WriteTinyDataset(dir_.Join("eval.jsonl"), 12, 5);
  }

  std::unique_ptr<Device> OpenDevice(int threads = 1, bool tiles = true) {
    DeviceOptions options;
    options.base.tiles = tiles;
    options.device = GetParam();
    options.threads = threads;
    options.base.model_dir = dir_.Join("model");
    options.base.cache_dir = dir_.Join("cache");
    CHECK_OK(MakeDirs(options.base.cache_dir));
    auto backend = OpenBackend(options.device, threads);
    CHECK_OK(backend.status());
    backends_.push_back(*std::move(backend));
    auto device = Device::Open(options, *backends_.back(), MeasureProfile(*backends_.back()));
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
      result.rows.push_back({static_cast<double>(row.step) + (row.is_eval ? 0.5 : 0), row.loss,
                             row.grad_norm, row.learning_rate, static_cast<double>(row.tokens)});
    }
    return result;
  }

  Result RunAlone(const JobInput& input, int threads = 1) {
    const auto device = OpenDevice(threads);
    const auto job = Open(*device, input);
    RunToEnd(*job);
    return ResultOf(*job);
  }

  void InterruptAnywhere();
  void VaryWhatMustNotMatter();

  TempDir dir_;
  SimClock clock_;
  std::vector<std::unique_ptr<kernels::Backend>> backends_;  // outlive their devices
};

// What every body of this machine promises; the rest of a job is the same code whatever the body.
class EveryBodyTest : public JobTest {};

void JobTest::InterruptAnywhere() {
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

void JobTest::VaryWhatMustNotMatter() {
  const Result alone = RunAlone(Input("alone"));
  for (const spec::Recomputation recompute :
       {spec::Recomputation{spec::Recompute::kFull}, spec::Recomputation{spec::Recompute::kFull, 1},
        spec::Recomputation{spec::Recompute::kKeepGemmOutputs},
        spec::Recomputation{spec::Recompute::kNone}}) {
    for (const int threads : {1, 2, 4}) {
      JobInput input = Input(absl::StrCat(std::string(RecomputeName(recompute.policy)),
                                          recompute.keep_blocks, "-", threads));
      recompute.SetIn(input.spec);
      EXPECT_TRUE(RunAlone(input, threads) == alone) << input.dir;
    }
  }

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

TEST_P(JobTest, AlmostNeverIsAtTheEndsOnly) {
  JobInput input = Input("job");
  input.spec.eval_steps = -1;
  input.spec.evals_per_epoch = 1e-300;
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  RunToEnd(*job);
  std::vector<int64_t> evaluated;
  for (const MetricRow& row : job->history()) {
    if (row.is_eval) evaluated.push_back(row.step);
  }
  EXPECT_THAT(evaluated, ::testing::ElementsAre(0, 9));
}

TEST_P(JobTest, LearnsEvaluatesAndExports) {
  JobInput input = Input("job");
  input.spec.max_steps = 40;
  input.spec.eval_steps = -1;
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  EXPECT_EQ(job->total_steps(), 40);
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
  EXPECT_EQ(steps, 40);
  ASSERT_GE(evals.size(), 3u);
  EXPECT_TRUE(history.front().is_eval);  // before the first step, for comparison
  EXPECT_TRUE(history.back().is_eval);
  EXPECT_LT(evals.back(), 0.8 * evals.front());
  EXPECT_TRUE(FileExists(JoinPath(input.dir, "adapter/adapter_model.safetensors")));
  EXPECT_EQ(job->NextWork(), JobWork::kNothing);
  EXPECT_LE(job->PersistentTouchedBytes(), job->plan().persistent_bytes);
  EXPECT_LE(device->step().TouchedBytes(), job->plan().step_bytes);
}

TEST_P(JobTest, AnyInterruptionGivesTheSameBytes) { InterruptAnywhere(); }
TEST_P(EveryBodyTest, AnyInterruptionGivesTheSameBytes) { InterruptAnywhere(); }

// A cache file of before, in flat order, then the same base in tiles, also in the middle of a job.
TEST_P(JobTest, TheOrderOfTheBaseChangesNothing) {
  testing::WriteTinyDirectory(dir_.Join("model"), 3, 128);
  JobInput input = Input("flat");
  input.spec.max_steps = 4;
  auto device = OpenDevice(1, /*tiles=*/false);
  EXPECT_FALSE(device->base().tiles());
  auto job = Open(*device, input);
  RunToEnd(*job);
  const Result flat = ResultOf(*job);
  JobInput part = input;
  part.dir = dir_.Join("part");
  job = Open(*device, part);
  while (job->step() < 2) CHECK_OK(job->Advance().status());
  job->RequestCheckpoint();
  const auto event = job->Advance();
  ASSERT_TRUE(event.ok()) << event.status();
  part.resume = std::get<CheckpointDone>(*event).saved.directory;
  part.dir += "-again";
  // Beside the one that has the flat file mapped.
  const auto other = OpenDevice(2);
  EXPECT_EQ(other->base().tiles(), other->backend().is_host());
  EXPECT_TRUE(other->base().cached());
  EXPECT_EQ(other->base().digest(), device->base().digest());
  for (JobInput* again : {&input, &part}) {
    again->dir += "-in-tiles";
    const auto in_tiles = Open(*other, *again);
    RunToEnd(*in_tiles);
    EXPECT_TRUE(ResultOf(*in_tiles) == flat) << again->dir;
  }
}

TEST_P(JobTest, EightBitMomentsComeBackFromACheckpoint) {
  JobInput input = Input("whole");
  const Result wide = RunAlone(input);
  input.dir = dir_.Join("small");
  input.spec.optimizer = spec::OptimizerKind::kAdamW8bit;
  const Result whole = RunAlone(input);
  EXPECT_NE(whole.weights == wide.weights, true);
  // The losses are nearly those of 32-bit moments.
  for (size_t i = 0; i < whole.rows.size(); ++i) {
    EXPECT_NEAR(whole.rows[i][1], wide.rows[i][1], 0.05 * wide.rows[i][1]);
  }
  {
    input.dir = dir_.Join("part");
    const auto device = OpenDevice();
    const auto job = Open(*device, input);
    while (job->step() < 5) CHECK_OK(job->Advance().status());
    job->RequestCheckpoint();
    const auto event = job->Advance();
    ASSERT_TRUE(event.ok()) << event.status();
    input.resume = std::get<CheckpointDone>(*event).saved.directory;
  }
  input.dir = dir_.Join("again");
  const Result resumed = RunAlone(input);
  EXPECT_TRUE(resumed.weights == whole.weights);
  EXPECT_EQ(resumed.rows, whole.rows);
  // A checkpoint of the one is none of the other.
  input.spec.optimizer = spec::OptimizerKind::kAdamW;
  const auto device = OpenDevice();
  auto job = Job::Open(*device, input, clock_);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(StatusReason((*job)->Start()), Reason::kCheckpointInvalid);
}

TEST_P(JobTest, ThreadsNeighboursAndRecomputationChangeNothing) { VaryWhatMustNotMatter(); }
TEST_P(EveryBodyTest, ThreadsNeighboursAndRecomputationChangeNothing) { VaryWhatMustNotMatter(); }

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

TEST_P(JobTest, AnOldCheckpointThatCannotBeDeletedEndsNoJob) {
  JobInput input = Input("job");
  input.spec.save_steps = 2;
  input.spec.save_total_limit = 2;
  // The name that it would get is too long.
  const std::string stays = "step-" + std::string(249, '0');
  const std::string checkpoints = JoinPath(input.dir, "checkpoints");
  ASSERT_TRUE(MakeDirs(JoinPath(checkpoints, stays)).ok());
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  while (!job->finished()) {
    const auto event = job->Advance();
    ASSERT_TRUE(event.ok()) << event.status();
  }
  EXPECT_THAT(*ListDir(checkpoints), ::testing::UnorderedElementsAre(stays, "step-6", "step-8"));
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
  bool all = false;
  const auto start = [&](const JobInput& changed) {
    auto job = Job::Open(*device, changed, clock_);
    CHECK_OK(job.status());
    const absl::Status status = (*job)->Start();
    all = StatusMetadata(status).contains(kAllCheckpoints);
    return StatusReason(status);
  };
  input.resume = dir_.Join("nothing");
  EXPECT_EQ(start(input), Reason::kCheckpointInvalid);
  EXPECT_FALSE(all) << "the one before may be whole";
  input.resume = checkpoint;
  EXPECT_EQ(start(input), Reason::kUnspecified);
  JobInput changed = input;
  changed.spec.learning_rate = 1e-3;
  EXPECT_EQ(start(changed), Reason::kCheckpointInvalid);
  EXPECT_TRUE(all);
  changed = input;
  changed.dataset = dir_.Join("eval.jsonl");
  EXPECT_EQ(start(changed), Reason::kCheckpointInvalid);
  EXPECT_TRUE(all);
  changed = input;
  changed.spec.save_steps = 2;
  changed.spec.recompute = spec::Recompute::kFull;
  changed.spec.keep_blocks = 1;
  EXPECT_EQ(start(changed), Reason::kUnspecified);
  changed.numerics_id = "0.0.1/cpu/none";
  EXPECT_EQ(StatusReason(Job::Open(*device, changed, clock_).status()), Reason::kNumericsChanged);
  changed.spec.allow_numerics_change = true;
  EXPECT_EQ(start(changed), Reason::kUnspecified);
}

// An adapter whose product overflows: the loss is no number from the first step on.
void WriteOverflowingAdapter(const std::string& directory, int32_t r) {
  const spec::ModelConfig model = testing::TinyDirectoryConfig();
  std::vector<std::vector<float>> arrays;
  std::vector<TensorToWrite> tensors;
  arrays.reserve(static_cast<size_t>(model.layers) * spec::kModuleCount * 2);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    for (const spec::Module module : spec::ModulesOf(model)) {
      const spec::LinearShape shape = spec::ShapeOf(model, module);
      const std::string path = "base_model.model." + spec::ModulePath(model, layer, module);
      const auto add = [&](const char* suffix, int64_t rows, int64_t columns) {
        arrays.emplace_back(static_cast<size_t>(rows * columns), 1e30f);
        tensors.push_back({path + suffix, TensorType::kF32, {rows, columns}, arrays.back().data()});
      };
      add(".lora_A.weight", r, shape.k);
      add(".lora_B.weight", shape.n, r);
    }
  }
  CHECK_OK(MakeDirs(directory));
  CHECK_OK(WriteFileAtomic(JoinPath(directory, "adapter_model.safetensors"),
                           SerializeSafetensors(tensors, {{"format", "pt"}})));
  CHECK_OK(WriteFileAtomic(
      JoinPath(directory, "adapter_config.json"),
      R"({"peft_type":"LORA","task_type":"CAUSAL_LM","r":)" + std::to_string(r) + R"(,"lora_alpha":32,"target_modules":
                               ["q_proj","k_proj","v_proj","o_proj","gate_proj","up_proj","down_proj"]})"));
}

TEST_P(JobTest, ThreeBadStepsInARowEndTheJob) {
  JobInput input = Input("job");
  WriteOverflowingAdapter(dir_.Join("overflow"), input.spec.lora_r);
  input.init_adapter = dir_.Join("overflow");
  input.spec.val_set_size = 0;
  input.eval_dataset = "";
  const auto device = OpenDevice();
  const auto job = Open(*device, input);
  for (int i = 0; i < 2; ++i) {
    const auto event = job->Advance();
    ASSERT_TRUE(event.ok()) << event.status();
    EXPECT_FALSE(std::get<StepDone>(*event).applied);
  }
  EXPECT_EQ(StatusReason(job->Advance().status()), Reason::kLossNotFinite);
  EXPECT_EQ(job->history().size(), 3u);
  EXPECT_FALSE(FileExists(JoinPath(input.dir, "adapter/adapter_model.safetensors")));
}

// Three jobs, of which one's loss is no number: it fails as it would alone, and the others do not notice.
TEST_P(JobTest, AFusedTurnIsEachJobsOwn) {
  if (GetParam() == "cuda-emulated") GTEST_SKIP() << "a device takes turns";
  const auto input = [&](const std::string& name) {
    JobInput of = Input(name);
    of.eval_dataset = "";
    of.spec.val_set_size = 0;
    of.spec.lora_r = 64;
    of.spec.recompute = spec::Recompute::kFull;
    of.spec.sequence_len = 32;
    of.spec.micro_batch_size = 1;
    of.spec.max_steps = 5;
    return of;
  };
  JobInput inputs[] = {input("a"), input("wild"), input("b")};
  WriteOverflowingAdapter(dir_.Join("overflow"), 64);
  inputs[1].init_adapter = dir_.Join("overflow");
  inputs[2].spec.target_modules = {spec::Module::kQ, spec::Module::kUp};
  inputs[2].spec.gradient_accumulation_steps = 1;
  const Result alone[] = {RunAlone(inputs[0]), RunAlone(inputs[2])};
  for (const int threads : {1, 2}) {
    const auto device = OpenDevice(threads);
    std::vector<std::unique_ptr<Job>> jobs;
    std::vector<Job*> all;
    for (JobInput& of : inputs) {
      of.dir = dir_.Join(of.attempt.substr(0, of.attempt.find('/')) + std::to_string(threads));
      jobs.push_back(Open(*device, of));
      all.push_back(jobs.back().get());
    }
    // As many as the step region has room for.
    EXPECT_EQ(FusedJobs(*device, all), (std::vector<Job*>{all[0]}));
    CHECK_OK(device->ResizeStep(16 << 20));
    EXPECT_EQ(FusedJobs(*device, all), all);
    for (int step = 1; step <= 5; ++step) {
      const std::vector<FusedStep> steps = AdvanceTogether(*device, all);
      for (size_t i = 0; i < all.size(); ++i) {
        if (step == 3 && i == 1) {
          EXPECT_EQ(StatusReason(steps[i].event.status()), Reason::kLossNotFinite);
          continue;
        }
        ASSERT_TRUE(steps[i].event.ok()) << steps[i].event.status();
        EXPECT_EQ(std::get<StepDone>(*steps[i].event).applied, all.size() == 2 || i != 1);
      }
      if (step == 3) all.erase(all.begin() + 1);
    }
    for (Job* job : all) RunToEnd(*job);
    EXPECT_EQ(ResultOf(*jobs[0]), alone[0]);
    EXPECT_EQ(ResultOf(*jobs[2]), alone[1]);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, JobTest, ::testing::Values("ref", "cpu", "cuda-emulated"),
                         [](const auto& info) { return testing::TestName(info.param); });

std::vector<std::string> Bodies() {
  std::vector<std::string> bodies;
  for (const std::string_view body : kernels::AllCpuBodies()) bodies.push_back("cpu:" + std::string(body));
  return bodies;
}
INSTANTIATE_TEST_SUITE_P(Bodies, EveryBodyTest, ::testing::ValuesIn(Bodies()),
                         [](const auto& info) { return testing::TestName(info.param); });

}  // namespace
}  // namespace nibble::engine
