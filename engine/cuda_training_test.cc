// Training on a device whose memory is not the host's. EMULATED: the CUDA sources run on the host
// (kernels/cuda/emulate.h) behind guarded memory (kernels/cuda/emulated.h). What a GPU does is for
// `./dev gpu` to say.
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/job.h"
#include "engine/testing/tiny_directory.h"
#include "engine/testing/tiny_model.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulated.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

using testing::RandomBatch;
using testing::StepRig;
using testing::TinyModel;
using testing::TinyOptions;

spec::TrainSpec SmallSpec() {
  spec::TrainSpec spec;
  spec.lora_r = 4;
  spec.lora_alpha = 4;
  spec.lora_dropout = 0.1;
  spec.sequence_len = 12;
  spec.micro_batch_size = 1;
  spec.gradient_accumulation_steps = 2;
  return spec;
}

std::unique_ptr<kernels::Backend> Emulated(bool fp16 = false) {
  std::string why;
  auto backend = kernels::OpenCuda({.fp16 = fp16}, &why);
  CHECK(backend != nullptr);
  return backend;
}

class EmulatedTraining : public ::testing::TestWithParam<bool> {};

struct Steps {
  std::vector<double> losses, norms;
};

// Optimizer steps of two micro-batches, over the same two sets of documents in turn.
Steps Train(StepRig& rig, int64_t vocab, int64_t steps) {
  Steps run;
  for (int64_t step = 1; step <= steps; ++step) {
    rig.executor().ZeroGradients();
    int64_t targets = 0;
    std::vector<MicroBatch> batches;
    for (uint64_t i = 0; i < 2; ++i) {
      batches.push_back(RandomBatch({7, 4}, vocab, 2 * static_cast<uint64_t>(step % 2) + i));
      targets += batches.back().target_tokens;
    }
    const double scale = 1.0 / static_cast<double>(targets);
    for (int64_t i = 0; i < 2; ++i) {
      rig.executor().Queue(batches[static_cast<size_t>(i)], scale, step, i);
    }
    const auto update = rig.executor().Optimize(1e-3, step, 2);
    EXPECT_TRUE(update.applied) << "step " << step;
    run.losses.push_back(update.loss_sum * scale);
    run.norms.push_back(update.grad_norm);
  }
  return run;
}

// Gradients of one micro-batch.
std::vector<double> GradientsOf(StepRig& rig, int64_t vocab) {
  rig.Randomize(5);
  return rig.Gradients({RandomBatch({8, 4}, vocab, 8)}, 1.0 / 32);
}

double RelativeDistance(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(got[i] - want[i], 2);
    norm += std::pow(want[i], 2);
  }
  CHECK(norm > 0);
  return std::sqrt(difference / norm);
}

void ExpectTenStepsOfTheCpu(std::unique_ptr<kernels::Backend> backend, TinyOptions options) {
  options.weight_scale = 0.15;
  options.bf16_weights = true;
  const TinyModel model(options);
  const int64_t vocab = model.config().vocab_size;
  StepRig device(std::move(backend), model, SmallSpec());
  StepRig cpu(kernels::CpuTable(), model, SmallSpec());
  device.Randomize(7);
  cpu.Randomize(7);
  const Steps ours = Train(device, vocab, 10);
  const Steps theirs = Train(cpu, vocab, 10);
  for (size_t i = 0; i < ours.losses.size(); ++i) {
    EXPECT_NEAR(ours.losses[i], theirs.losses[i], 0.01 * theirs.losses[i]) << "step " << i + 1;
    EXPECT_NEAR(ours.norms[i], theirs.norms[i], 0.05 * theirs.norms[i]) << "step " << i + 1;
  }
  EXPECT_LT(ours.losses[8], ours.losses[0]);  // the same documents
}

void ExpectGradientsOfTheReference(std::unique_ptr<kernels::Backend> backend, TinyOptions options) {
  options.weight_scale = 0.15;
  options.bf16_weights = true;
  const TinyModel model(options);
  const int64_t vocab = model.config().vocab_size;
  StepRig device(std::move(backend), model, SmallSpec());
  StepRig ref(kernels::RefTable(), model, SmallSpec());
  EXPECT_LE(RelativeDistance(GradientsOf(device, vocab), GradientsOf(ref, vocab)), 2e-2);
}

TEST_P(EmulatedTraining, TenStepsAgreeWithTheCpu) {
  ExpectTenStepsOfTheCpu(Emulated(GetParam()), {.qk_norm = GetParam()});
}

TEST_P(EmulatedTraining, GradientsAgreeWithTheReference) {
  ExpectGradientsOfTheReference(Emulated(GetParam()),
                                {.qkv_bias = true, .qk_norm = !GetParam(), .sliding_window = 5});
}

TEST_P(EmulatedTraining, GemmasTrainAsOnTheCpu) {
  for (const int gemma : {2, 3}) {
    ExpectTenStepsOfTheCpu(Emulated(GetParam()), {.gemma = gemma});
    ExpectGradientsOfTheReference(Emulated(GetParam()), {.gemma = gemma});
  }
}

TEST_P(EmulatedTraining, FusedProductsTrainAsOnTheCpu) {
  ExpectTenStepsOfTheCpu(Emulated(GetParam()), {.fused = true});
  ExpectGradientsOfTheReference(Emulated(GetParam()), {.fused = true, .sliding_window = 5});
}

// Whole steps with Hopper's attention, of which the rest of a step knows nothing.
TEST_P(EmulatedTraining, HoppersAttentionTrainsAsWell) {
  ASSERT_EQ(setenv("NIBBLE_CUDA_ATTENTION", "wgmma", 1), 0);
  std::unique_ptr<kernels::Backend> backends[] = {Emulated(GetParam()), Emulated(GetParam())};
  ASSERT_EQ(setenv("NIBBLE_CUDA_ATTENTION", "none such", 1), 0);
  std::string why;
  EXPECT_EQ(kernels::OpenCuda({}, &why), nullptr);
  EXPECT_NE(why.find("it can be wgmma"), std::string::npos) << why;
  ASSERT_EQ(unsetenv("NIBBLE_CUDA_ATTENTION"), 0);
  ASSERT_NE(std::string_view(backends[0]->table().body).find("wgmma"), std::string_view::npos);
  ExpectTenStepsOfTheCpu(std::move(backends[0]), {.qk_norm = GetParam()});
  ExpectGradientsOfTheReference(std::move(backends[1]),
                                {.qkv_bias = true, .qk_norm = !GetParam(), .sliding_window = 5});
}

TEST_P(EmulatedTraining, ARerunIsTheSameBits) {
  const TinyModel model({});
  std::vector<std::vector<double>> masters;
  Steps first;
  for (int i = 0; i < 2; ++i) {
    StepRig rig(Emulated(GetParam()), model, SmallSpec());
    rig.Randomize(7);
    const Steps run = Train(rig, model.config().vocab_size, 2);
    if (i == 0) first = run;
    EXPECT_EQ(run.losses, first.losses);
    EXPECT_EQ(run.norms, first.norms);
    masters.push_back(rig.Read(rig.plan().persistent.master));
  }
  EXPECT_EQ(masters[0], masters[1]);
}

// Moments in pinned memory, inputs of blocks in pinned memory, both, or a block more that keeps its
// products: the same bits as in the device's memory.
TEST_P(EmulatedTraining, PagingOffloadingAndKeepingChangeNoBit) {
  const TinyModel model({.layers = 3});
  for (const auto optimizer : {spec::OptimizerKind::kAdamW, spec::OptimizerKind::kAdamW8bit}) {
    std::vector<double> masters;
    Steps first;
    const bool small = optimizer == spec::OptimizerKind::kAdamW8bit;
    if (small && GetParam()) continue;  // the optimizer knows nothing of activations
    for (const int choice : small || GetParam() ? std::vector<int>{0, 3} : std::vector<int>{0, 1, 2, 3, 4}) {
      spec::TrainSpec spec = SmallSpec();
      spec.recompute = spec::Recompute::kFull;
      spec.optimizer = optimizer;
      spec.paged_optimizer = (choice & 1) != 0;
      spec.offload_activations = (choice & 2) != 0;
      spec.keep_blocks = (choice & 4) != 0 ? 1 : 0;
      StepRig rig(Emulated(GetParam()), model, spec);
      EXPECT_EQ(kernels::EmulatedCudaBytes().pinned, rig.plan().memory.pinned_bytes);
      rig.Randomize(7);
      const Steps run = Train(rig, model.config().vocab_size, 2);
      if (choice == 0) {
        first = run;
        masters = rig.Read(rig.plan().persistent.master);
      }
      EXPECT_EQ(run.losses, first.losses) << choice;
      EXPECT_EQ(run.norms, first.norms) << choice;
      EXPECT_EQ(rig.Read(rig.plan().persistent.master), masters) << choice;
    }
  }
}

// More than two chunks of moments, the last one short: every buffer is used again, and nothing is cut.
TEST(EmulatedPaging, ChunksThatTakeTurnsChangeNoBit) {
  const TinyModel model({.layers = 24});
  for (const auto optimizer : {spec::OptimizerKind::kAdamW, spec::OptimizerKind::kAdamW8bit}) {
    std::vector<double> masters;
    for (const bool paged : {false, true}) {
      spec::TrainSpec spec = SmallSpec();
      spec.lora_r = 256;
      spec.optimizer = optimizer;
      spec.paged_optimizer = paged;
      StepRig rig(Emulated(), model, spec);
      const int64_t chunk = spec::ChunkOf(rig.spec(), rig.plan().adapters.elements).elements;
      ASSERT_GT(rig.plan().adapters.elements, 2 * chunk);
      ASSERT_NE(rig.plan().adapters.elements % chunk, 0);
      // Gradients of our own: the update is what is tested.
      for (int64_t step = 1; step <= 2; ++step) {
        std::vector<double> gradient(static_cast<size_t>(rig.plan().adapters.elements));
        for (size_t i = 0; i < gradient.size(); ++i)
          gradient[i] = std::sin(static_cast<double>(i * 7 + static_cast<size_t>(step)));
        rig.Write(rig.plan().persistent.gradient, gradient);
        rig.executor().Optimize(1e-3, step, 0);
      }
      const std::vector<double> updated = rig.Read(rig.plan().persistent.master);
      if (!paged) masters = updated;
      EXPECT_EQ(updated, masters);
    }
  }
}

// A decoded base in memory, all of it or what is read next: the same numbers, and what the plan says.
TEST_P(EmulatedTraining, AKeptDecodedBaseChangesNoBit) {
  const TinyModel model(TinyModel({}).config(), spec::QuantKind::kNF4, true, 3);
  std::vector<std::vector<double>> masters;
  int64_t unquantized[3];
  constexpr spec::BaseCache kChoices[] = {spec::BaseCache::kOff, spec::BaseCache::kOn,
                                          spec::BaseCache::kAhead};
  for (int i = 0; i < 3; ++i) {
    spec::TrainSpec spec = SmallSpec();
    spec.base_cache = kChoices[i];
    StepRig rig(Emulated(GetParam()), model, spec);
    EXPECT_EQ(rig.plan().base_cache, spec.base_cache);
    unquantized[i] =
        rig.plan().memory.category_bytes[static_cast<size_t>(spec::Category::kBaseUnquantized)];
    rig.Randomize(7);
    Train(rig, model.config().vocab_size, 1);
    masters.push_back(rig.Read(rig.plan().persistent.master));
  }
  EXPECT_EQ(masters[0], masters[1]);
  EXPECT_EQ(masters[0], masters[2]);
  EXPECT_EQ(unquantized[1] - unquantized[0],
            spec::BaseCacheBytes(model.config(), spec::QuantKind::kNF4, MeasureProfile(*Emulated())));
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, EmulatedTraining, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Fp16" : "Bf16"; });

TEST(EmulatedLossScale, AnOverflowSkipsTheStepAndHalvesTheScale) {
  const TinyModel model({});
  StepRig rig(Emulated(/*fp16=*/true), model, SmallSpec());
  ASSERT_EQ(rig.executor().loss_scale().scale, LossScale::kInitial);
  rig.executor().set_loss_scale({.scale = LossScale::kLargest, .good_steps = 3});
  const MicroBatch batch = RandomBatch({8, 4}, model.config().vocab_size, 8);
  const std::vector<double> before = rig.Read(rig.plan().persistent.master);
  rig.Randomize(5);
  const std::vector<double> masters = rig.Read(rig.plan().persistent.master);
  EXPECT_NE(masters, before);
  int skipped = 0;
  for (int64_t step = 1;; ++step) {
    ASSERT_LT(step, 30);
    rig.executor().ZeroGradients();
    rig.executor().Queue(batch, 1.0, 1, 0);
    const double scale = rig.executor().loss_scale().scale;
    const auto update = rig.executor().Optimize(1e-3, 1, 1);
    EXPECT_TRUE(std::isfinite(update.loss_sum));
    if (update.applied) break;
    ++skipped;
    EXPECT_TRUE(update.overflow);
    EXPECT_EQ(rig.executor().loss_scale().scale, scale / 2);
    EXPECT_EQ(rig.executor().loss_scale().good_steps, 0);
    EXPECT_EQ(rig.Read(rig.plan().persistent.master), masters);
  }
  EXPECT_GT(skipped, 0);
  EXPECT_EQ(rig.executor().loss_scale().good_steps, 1);
}

TEST(LossScale, GrowsAndIsBounded) {
  LossScale scale{.scale = 1024, .good_steps = LossScale::kGrowthSteps - 1};
  scale.Update(true);
  EXPECT_EQ(scale.scale, 2048);
  EXPECT_EQ(scale.good_steps, 0);
  scale.scale = 1;
  scale.Update(false);
  EXPECT_EQ(scale.scale, 1);
  scale = {.scale = LossScale::kLargest, .good_steps = LossScale::kGrowthSteps - 1};
  scale.Update(true);
  EXPECT_EQ(scale.scale, LossScale::kLargest);
}

class EmulatedDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyDirectory(dir_.Join("model"), 3);
    testing::WriteTinyDataset(dir_.Join("train.jsonl"), 60, 4);
    options_.base.model_dir = dir_.Join("model");
    options_.base.cache_dir = dir_.Join("cache");
    backend_ = Emulated();
    profile_ = MeasureProfile(*backend_);
    auto device = Device::Open(options_, *backend_, profile_);
    CHECK_OK(device.status());
    device_ = *std::move(device);
  }
  void TearDown() override { kernels::EmulatedCudaFailAfter(-1); }

  JobInput Input(const std::string& name) {
    JobInput input;
    input.attempt = name + "/1";
    input.dir = dir_.Join(name);
    input.dataset = dir_.Join("train.jsonl");
    input.spec.lora_r = 4;
    input.spec.sequence_len = 24;
    input.spec.gradient_accumulation_steps = 1;
    input.spec.val_set_size = 0;
    input.spec.target_modules = {spec::Module::kQ, spec::Module::kDown};
    input.spec.max_steps = 2;
    return input;
  }
  // With its step's memory.
  std::unique_ptr<Job> Begin(const JobInput& input) {
    auto job = Job::Open(*device_, input, RealClock::Get());
    CHECK_OK(job.status());
    CHECK_OK((*job)->Start());
    CHECK_OK(device_->ResizeStep((*job)->plan().step_bytes));
    return *std::move(job);
  }
  static std::string WeightsOf(const JobInput& input) {
    return *ReadFile(JoinPath(input.dir, "adapter/adapter_model.safetensors"));
  }

  TempDir dir_;
  DeviceOptions options_;
  spec::DeviceProfile profile_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Device> device_;
};

// The same file, byte for byte, whoever quantizes.
TEST_F(EmulatedDevice, QuantizesABaseAsTheHostDoes) {
  for (const spec::QuantKind quant : {spec::QuantKind::kNF4, spec::QuantKind::kFP4, spec::QuantKind::kINT8}) {
    BaseModelOptions options = options_.base;
    options.quant = quant;
    options.cache_dir = dir_.Join("by-host");
    const auto by_host = BaseModel::Open(options);
    CHECK_OK(by_host.status());
    const int64_t encodings = kernels::EmulatedCudaCounts().encodings;
    const int64_t held = kernels::EmulatedCudaBytes().device;
    options.cache_dir = dir_.Join(absl::StrCat("by-device-", static_cast<int>(quant)));
    options.backend = backend_.get();
    const auto by_device = BaseModel::Open(options);
    CHECK_OK(by_device.status());
    EXPECT_FALSE((*by_device)->cached());
    EXPECT_GT(kernels::EmulatedCudaCounts().encodings, encodings);
    EXPECT_EQ(kernels::EmulatedCudaBytes().device, held);
    const auto want = (*by_host)->file(), got = (*by_device)->file();
    EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin(), want.end()));
  }
}

// What an engine of the host has cached is in tiles; the kernels of a device read the flat order.
TEST_F(EmulatedDevice, TakesABaseInTiles) {
  testing::WriteTinyDirectory(dir_.Join("wide"), 3, 128);
  options_.base.model_dir = dir_.Join("wide");
  std::string weights[2];
  for (const bool tiles : {false, true}) {
    options_.base.cache_dir = dir_.Join(tiles ? "tiles" : "flat");
    options_.base.tiles = tiles;
    if (tiles) {
      const auto by_host = BaseModel::Open(options_.base);
      CHECK_OK(by_host.status());
      EXPECT_TRUE((*by_host)->tiles());
    }
    auto device = Device::Open(options_, *backend_, profile_);
    CHECK_OK(device.status());
    EXPECT_EQ((*device)->base().cached(), tiles);
    EXPECT_EQ((*device)->base().tiles(), tiles);
    EXPECT_EQ((*device)->view().layers[1].linear[0].order, kernels::WeightOrder::kFlat);
    const JobInput input = Input(tiles ? "in-tiles" : "in-flat");
    auto job = Job::Open(**device, input, RealClock::Get());
    ASSERT_TRUE(job.ok()) << job.status();
    CHECK_OK((*job)->Start());
    CHECK_OK((*device)->ResizeStep((*job)->plan().step_bytes));
    while (!(*job)->finished()) CHECK_OK((*job)->Advance().status());
    weights[tiles] = *ReadFile(JoinPath(input.dir, "adapter/adapter_model.safetensors"));
  }
  EXPECT_TRUE(weights[0] == weights[1]);
}

TEST_F(EmulatedDevice, QuantizesOnTheHostWhenTheDeviceHasNoRoom) {
  BaseModelOptions options = options_.base;
  options.cache_dir = dir_.Join("elsewhere");
  options.backend = backend_.get();
  kernels::EmulatedCudaRefuseNextAllocate();
  const int64_t encodings = kernels::EmulatedCudaCounts().encodings;
  CHECK_OK(BaseModel::Open(options).status());
  EXPECT_EQ(kernels::EmulatedCudaCounts().encodings, encodings);
}

TEST_F(EmulatedDevice, HoldsWhatThePlanSaysToTheByte) {
  EXPECT_EQ(profile_.backend, "cuda-emulated");
  // What is set aside for late code is free now, and not offered.
  EXPECT_GT(backend_->late_bytes(), 0);
  EXPECT_EQ(profile_.capacity_bytes, profile_.fixed_bytes - backend_->late_bytes() +
                                         backend_->free_bytes() + device_->base().bytes());
  EXPECT_EQ(kernels::EmulatedCudaBytes().device, device_->base().bytes());
  EXPECT_EQ(kernels::EmulatedCudaBytes().pinned, 0);
  auto job = Job::Open(*device_, Input("job"), RealClock::Get());
  ASSERT_TRUE(job.ok()) << job.status();
  const spec::MemoryPlan& plan = (*job)->plan();
  EXPECT_EQ(plan.base_bytes, device_->base().bytes());
  CHECK_OK((*job)->Start());
  CHECK_OK(device_->ResizeStep(plan.step_bytes));
  const int64_t planned = plan.base_bytes + plan.PersistentRegionBytes() + plan.step_bytes;
  EXPECT_EQ(kernels::EmulatedCudaBytes().device, planned);
  EXPECT_EQ(kernels::EmulatedCudaBytes().pinned, plan.pinned_bytes);
  while (!(*job)->finished()) {
    CHECK_OK((*job)->Advance().status());
    EXPECT_EQ(kernels::EmulatedCudaBytes().device, planned);
    EXPECT_LE(kernels::EmulatedCudaBytes().recordings, plan.recording_bytes);
  }
  job->reset();
  CHECK_OK(device_->ResizeStep(0));
  device_.reset();
  EXPECT_EQ(kernels::EmulatedCudaBytes().device, 0);
  EXPECT_EQ(kernels::EmulatedCudaBytes().pinned, 0);
}

// Alone, beside another job in turns, and cut by a checkpoint: the same bytes.
TEST_F(EmulatedDevice, InterruptionsAndNeighboursChangeNoBit) {
  const JobInput alone = Input("alone");
  {
    const auto job = Begin(alone);
    while (!job->finished()) CHECK_OK(job->Advance().status());
  }
  JobInput cut = Input("cut");
  JobInput other = Input("other");
  other.spec.seed = 5;
  {
    const auto neighbour = Begin(other);
    const auto job = Begin(cut);
    CHECK_OK(job->Advance().status());
    CHECK_OK(neighbour->Advance().status());
    job->RequestCheckpoint();
    const auto event = job->Advance();
    CHECK_OK(event.status());
    cut.resume = std::get<CheckpointDone>(*event).saved.directory;
  }
  cut.dir += "-again";
  const auto job = Begin(cut);
  while (!job->finished()) CHECK_OK(job->Advance().status());
  EXPECT_TRUE(WeightsOf(cut) == WeightsOf(alone));
}

// A checkpoint of a paged, offloaded job goes on without either, and the other way round, bit for bit.
TEST_F(EmulatedDevice, PagedAndOffloadedJobsHoldThePlanAndResumeEitherWay) {
  for (const auto optimizer : {spec::OptimizerKind::kAdamW, spec::OptimizerKind::kAdamW8bit}) {
    std::string alone;
    for (const bool begins : {false, true}) {
      const std::string name = absl::StrCat(static_cast<int>(optimizer), begins ? "-paged" : "-plain");
      JobInput input = Input(name);
      const auto choose = [&](bool moved) {
        input.spec.paged_optimizer = moved;
        input.spec.offload_activations = moved;
      };
      input.spec.optimizer = optimizer;
      choose(begins);
      {
        const auto job = Begin(input);
        const spec::MemoryPlan& plan = job->plan();
        EXPECT_EQ(kernels::EmulatedCudaBytes().pinned, plan.pinned_bytes);
        EXPECT_EQ(kernels::EmulatedCudaBytes().device,
                  plan.base_bytes + plan.PersistentRegionBytes() + plan.step_bytes);
        CHECK_OK(job->Advance().status());
        job->RequestCheckpoint();
        const auto event = job->Advance();
        CHECK_OK(event.status());
        input.resume = std::get<CheckpointDone>(*event).saved.directory;
      }
      choose(!begins);
      input.dir += "-again";
      const auto job = Begin(input);
      while (!job->finished()) CHECK_OK(job->Advance().status());
      if (!begins) alone = WeightsOf(input);
      EXPECT_TRUE(WeightsOf(input) == alone) << name;
    }
  }
}

TEST_F(EmulatedDevice, NoPinnedMemoryIsOutOfMemoryAndPasses) {
  auto job = Job::Open(*device_, Input("job"), RealClock::Get());
  CHECK_OK(job.status());
  kernels::EmulatedCudaRefuseNextPinned();
  EXPECT_EQ(StatusReason((*job)->Start()), Reason::kOutOfMemory);
  CHECK_OK((*job)->Start());
}

TEST_F(EmulatedDevice, ALostDeviceIsADeviceFault) {
  auto job = Job::Open(*device_, Input("job"), RealClock::Get());
  CHECK_OK(job.status());
  CHECK_OK((*job)->Start());
  CHECK_OK(device_->ResizeStep((*job)->plan().step_bytes));
  CHECK_OK((*job)->Advance().status());
  kernels::EmulatedCudaFailAfter(3);
  const absl::Status failed = (*job)->Advance().status();
  EXPECT_EQ(StatusReason(failed), Reason::kDeviceFault) << failed;
  EXPECT_EQ(StatusReason((*job)->Advance().status()), Reason::kDeviceFault);
}

TEST_F(EmulatedDevice, MemoryTakenByOthersIsOutOfMemoryAndPasses) {
  auto job = Job::Open(*device_, Input("job"), RealClock::Get());
  CHECK_OK(job.status());
  kernels::EmulatedCudaRefuseNextAllocate();
  EXPECT_EQ(StatusReason((*job)->Start()), Reason::kOutOfMemory);
  CHECK_OK((*job)->Start());
  kernels::EmulatedCudaRefuseNextAllocate();
  EXPECT_EQ(StatusReason(device_->ResizeStep((*job)->plan().step_bytes)), Reason::kOutOfMemory);
  EXPECT_EQ(StatusReason((*job)->Advance().status()), Reason::kOutOfMemory);
  CHECK_OK(device_->ResizeStep((*job)->plan().step_bytes));
  EXPECT_TRUE((*job)->Advance().ok());
}

TEST(OpenBackend, NamesWhatIsThere) {
  EXPECT_TRUE(OpenBackend("cuda-emulated", 0).ok());
  EXPECT_TRUE(OpenBackend("cuda-emulated:0", 0).ok());
  for (const char* name : {"cuda-emulated,fp16", "cuda-emulated:0,fp16"}) {
    EXPECT_EQ((*OpenBackend(name, 0))->table().act, kernels::DType::kF16) << name;
  }
  for (const char* name : {"cuda:0", "cuda-emulated:1", "cuda-emulated:x", "cuda-emulated,fp16x", "gpu"}) {
    const auto opened = OpenBackend(name, 0);
    EXPECT_FALSE(opened.ok()) << name;
    EXPECT_NE(opened.status().message().find(name), std::string::npos) << opened.status();
  }
}

}  // namespace
}  // namespace nibble::engine
