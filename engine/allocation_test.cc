// Inside a turn our code allocates nothing: malloc is counted while a step is computed.
#include <new>

#include "base/file.h"
#include "base/status.h"
#include "engine/job.h"
#include "engine/testing/malloc_count.h"
#include "engine/testing/tiny_directory.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

class AllocationTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!testing::MallocCountWorks()) GTEST_SKIP() << "a sanitizer has its own malloc";
    testing::WriteTinyDirectory(dir.Join("model"), 3);
    testing::WriteTinyDataset(dir.Join("train.jsonl"), 60, 4);
    DeviceOptions options;
    options.device = GetParam();
    options.threads = 2;
    options.base.model_dir = dir.Join("model");
    options.base.cache_dir = dir.path();
    backend = *OpenBackend(options.device, 2);
    device = Device::Open(options, *backend, MeasureProfile(*backend));
    CHECK_OK(device.status());
  }

  TempDir dir;
  std::unique_ptr<kernels::Backend> backend;
  absl::StatusOr<std::unique_ptr<Device>> device = absl::UnknownError("not open");
};

TEST_P(AllocationTest, AStepAllocatesNothing) {
  JobInput input;
  input.attempt = "job/1";
  input.dir = dir.Join("job");
  input.dataset = dir.Join("train.jsonl");
  input.spec.lora_r = 4;
  input.spec.sequence_len = 64;
  input.spec.micro_batch_size = 2;
  input.spec.max_steps = 20;
  auto job = Job::Open(**device, input, RealClock::Get());
  CHECK_OK(job.status());
  CHECK_OK((*job)->Start());
  CHECK_OK((*device)->ResizeStep((*job)->plan().step_bytes));
  for (int i = 0; i < 3; ++i) CHECK_OK((*job)->Advance().status());
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE((*job)->PrepareStep().ok());
    testing::StartMallocCount();
    (*job)->ComputeStep();
    EXPECT_EQ(testing::StopMallocCount(), 0);
  }
  // The count itself works.
  testing::StartMallocCount();
  ::operator delete(::operator new(100));
  EXPECT_EQ(testing::StopMallocCount(), 1);
}

TEST_P(AllocationTest, AFusedStepAllocatesNothing) {
  std::vector<std::unique_ptr<Job>> jobs;
  for (const char* name : {"a", "b"}) {
    JobInput input;
    input.attempt = std::string(name) + "/1";
    input.dir = dir.Join(name);
    input.dataset = dir.Join("train.jsonl");
    input.spec.lora_r = 64;
    input.spec.sequence_len = 32;
    input.spec.micro_batch_size = 1;
    input.spec.recompute = spec::Recompute::kFull;
    input.spec.max_steps = 20;
    auto job = Job::Open(**device, input, RealClock::Get());
    CHECK_OK(job.status());
    jobs.push_back(*std::move(job));
    CHECK_OK(jobs.back()->Start());
  }
  CHECK_OK((*device)->ResizeStep(8 << 20));
  for (int i = 0; i < 3; ++i) {
    std::vector<Lockstep::Member> members;
    for (const auto& job : jobs) {
      ASSERT_TRUE(job->CanFuse());
      ASSERT_TRUE(job->TakeDevice().ok());
      ASSERT_TRUE(job->PrepareStep().ok());
      job->BeginStep();
      members.push_back(job->MicroBatches());
    }
    testing::StartMallocCount();
    const Region& step = (*device)->step();
    Lockstep(*backend, jobs[0]->table(), step.data(), step.mapped_bytes()).Run(members);
    for (const auto& job : jobs) job->EndStep();
    EXPECT_EQ(testing::StopMallocCount(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, AllocationTest, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::engine
