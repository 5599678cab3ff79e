// Inside a turn our code allocates nothing: malloc is counted while a step is computed.
//
// This binary replaces the C allocation functions; operator new comes down to them.
#include <malloc.h>

#include <atomic>
#include <new>

#include "base/file.h"
#include "base/status.h"
#include "engine/job.h"
#include "engine/testing/tiny_directory.h"
#include "gtest/gtest.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NIBBLE_COUNTS_ALLOCATIONS 1
#endif

namespace {

std::atomic<bool> counting = false;
std::atomic<int64_t> calls = 0;

#ifdef NIBBLE_COUNTS_ALLOCATIONS
void Count() {
  if (counting.load(std::memory_order_relaxed)) calls.fetch_add(1);
}
#endif

}  // namespace

#ifdef NIBBLE_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
  Count();
  return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  Count();
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? 12 : 0;
}
}
#endif

namespace nibble::engine {
namespace {

class AllocationTest : public ::testing::TestWithParam<const char*> {};

TEST_P(AllocationTest, AStepAllocatesNothing) {
#ifndef NIBBLE_COUNTS_ALLOCATIONS
  GTEST_SKIP() << "a sanitizer has its own malloc";
#else
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
  calls = 0;
  for (int i = 0; i < 5; ++i) {
    (*job)->PrepareStep();
    counting = true;
    (*job)->ComputeStep();
    counting = false;
  }
  EXPECT_EQ(calls, 0);
  // The count itself works.
  counting = true;
  ::operator delete(::operator new(100));
  counting = false;
  EXPECT_EQ(calls, 1);
#endif
}

INSTANTIATE_TEST_SUITE_P(Devices, AllocationTest, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::engine
