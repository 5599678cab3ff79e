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

class AllocationTest : public ::testing::TestWithParam<const char*> {};

TEST_P(AllocationTest, AStepAllocatesNothing) {
  if (!testing::MallocCountWorks()) GTEST_SKIP() << "a sanitizer has its own malloc";
  TempDir dir;
  testing::WriteTinyDirectory(dir.Join("model"), 3);
  testing::WriteTinyDataset(dir.Join("train.jsonl"), 60, 4);
  DeviceOptions options;
  options.device = GetParam();
  options.threads = 2;
  options.base.model_dir = dir.Join("model");
  options.base.cache_dir = dir.path();
  const auto backend = *OpenBackend(options.device, 2);
  auto device = Device::Open(options, *backend, MeasureProfile(*backend));
  CHECK_OK(device.status());
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

INSTANTIATE_TEST_SUITE_P(Devices, AllocationTest, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::engine
