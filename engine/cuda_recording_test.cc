// Micro-batches as recordings, CUDA graphs on a device: the bits of ops queued one by one, within the memory
// that is planned. EMULATED, as cuda_training_test.cc is.
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/testing/tiny_model.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulated.h"

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
  spec.graphs = spec::Graphs::kOn;
  return spec;
}

std::unique_ptr<kernels::Backend> Emulated(bool fp16 = false) {
  std::string why;
  auto backend = kernels::OpenCuda({.fp16 = fp16}, &why);
  CHECK(backend != nullptr);
  return backend;
}

struct Steps {
  std::vector<double> losses, norms, masters;
  bool operator==(const Steps&) const = default;
};

// Four optimizer steps of two micro-batches, over the same two sets of documents in turn.
Steps Train(StepRig& rig, int64_t vocab, bool record) {
  Steps run;
  rig.Randomize(7);
  for (int64_t step = 1; step <= 4; ++step) {
    rig.executor().ZeroGradients();
    int64_t targets = 0;
    std::vector<MicroBatch> batches;
    for (uint64_t i = 0; i < 2; ++i) {
      batches.push_back(RandomBatch({7, 4}, vocab, 2 * static_cast<uint64_t>(step % 2) + i));
      targets += batches.back().target_tokens;
      if (record) rig.executor().Record(batches.back());
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
  run.masters = rig.Read(rig.plan().persistent.master);
  return run;
}

class EmulatedRecordings : public ::testing::TestWithParam<bool> {
 protected:
  void TearDown() override { kernels::EmulatedCudaLaunchBytes(kernels::kEmulatedLaunchBytes); }
};

// What changes from one micro-batch to the next (learning rate, dropout, documents, the loss's divisor and
// fp16's scale) comes through memory.
TEST_P(EmulatedRecordings, AreTheSameBits) {
  const TinyModel model({.qk_norm = GetParam()});
  spec::TrainSpec spec = SmallSpec();
  spec.base_cache = spec::BaseCache::kAhead;
  std::vector<Steps> runs;
  for (const bool record : {false, true}) {
    const kernels::EmulatedCounts before = kernels::EmulatedCudaCounts();
    StepRig rig(Emulated(GetParam()), model, spec);
    runs.push_back(Train(rig, model.config().vocab_size, record));
    const kernels::EmulatedCounts after = kernels::EmulatedCudaCounts();
    EXPECT_EQ(after.replays - before.replays > 0, record);
    EXPECT_EQ(after.recordings - before.recordings > 0, record);
    // The first of a shape is queued as it is.
    EXPECT_GE(after.replays - before.replays, record ? 4 : 0);
  }
  EXPECT_EQ(runs[1], runs[0]);
  EXPECT_EQ(kernels::EmulatedCudaCounts().recordings, 0);
}

// One that takes more than is planned for all of a job's is not kept: op by op, with the same bits. When they
// are made anew there may be room.
TEST_P(EmulatedRecordings, StayWithinThePlan) {
  const TinyModel model({});
  const auto held = [] { return kernels::EmulatedCudaBytes().recordings; };
  const auto replays = [] { return kernels::EmulatedCudaCounts().replays; };
  std::vector<Steps> runs;
  for (const int64_t launch_bytes : {kernels::kEmulatedLaunchBytes, int64_t{1} << 30}) {
    const bool fits = launch_bytes == kernels::kEmulatedLaunchBytes;
    kernels::EmulatedCudaLaunchBytes(launch_bytes);
    const int64_t before = replays();
    StepRig rig(Emulated(GetParam()), model, SmallSpec());
    runs.push_back(Train(rig, model.config().vocab_size, true));
    EXPECT_GT(rig.plan().memory.recording_bytes, 0);
    EXPECT_EQ(rig.executor().RecordedBytes(), held());
    EXPECT_LE(held(), rig.plan().memory.recording_bytes);
    EXPECT_EQ(held() > 0, fits);
    EXPECT_EQ(replays() > before, fits);
    if (fits) continue;
    kernels::EmulatedCudaLaunchBytes(1);
    rig.executor().set_step_region(nullptr);
    rig.executor().set_step_region(rig.step().data());
    Train(rig, model.config().vocab_size, true);
    EXPECT_GT(held(), 0);
  }
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(runs[1], runs[0]);
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, EmulatedRecordings, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Fp16" : "Bf16"; });

// What is planned for a recording is made for as many launches as a micro-batch has, and one more for every
// product: a library may add up pieces with another kernel.
TEST(EmulatedRecordingBytes, AreOfAsManyLaunchesAsThereAre) {
  constexpr int64_t kLaunchBytes = 16 << 10, kDevicePage = 2 << 20, kLayers = 12;
  for (const TinyOptions& options :
       {TinyOptions{.qk_norm = true, .layers = kLayers}, TinyOptions{.fused = true, .layers = kLayers},
        TinyOptions{.gemma = 3, .layers = kLayers}}) {
    const TinyModel model(TinyModel(options).config(), spec::QuantKind::kNF4, true, 3);
    for (const auto cache : {spec::BaseCache::kOff, spec::BaseCache::kOn, spec::BaseCache::kAhead}) {
      for (const auto recompute : {spec::Recompute::kNone, spec::Recompute::kFull}) {
        spec::TrainSpec spec = SmallSpec();
        spec.base_cache = cache;
        spec.recompute = recompute;
        StepRig rig(Emulated(), model, spec);
        const int64_t before = kernels::EmulatedCudaCounts().launches;
        rig.executor().Queue(RandomBatch({7, 4}, model.config().vocab_size, 1), 1, 1, 0);
        const int64_t launches = kernels::EmulatedCudaCounts().launches - before;
        const int64_t products = kLayers * (recompute == spec::Recompute::kFull ? 11 : 8) + 2;
        const int64_t needed = (launches + products) * kLaunchBytes;
        EXPECT_LE(needed, rig.plan().memory.recording_bytes) << launches << " launches";
        EXPECT_GT(needed * 3 / 2 + kDevicePage, rig.plan().memory.recording_bytes) << launches << " launches";
      }
    }
  }
}

}  // namespace
}  // namespace nibble::engine
