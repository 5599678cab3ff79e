// The promises of backend.h, on the host and on the emulated device.
#include "kernels/backend.h"

#include <csignal>
#include <numeric>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/emulated.h"
#include "kernels/cuda/workspace.h"
#include "kernels/tables.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kCount = 5000;
constexpr int64_t kBytes = kCount * 4;

std::unique_ptr<Backend> Open(const std::string& name) {
  if (name == "host") return MakeHostBackend(RefTable(), 2);
  std::string why;
  return OpenCuda({}, &why);
}

// What sum_squares wants, in the backend's memory; the caller releases it.
void* GiveWorkspace(Backend& backend) {
  const int64_t bytes = cuda_workspace::SumSquaresWorkspaceBytes();
  backend.context().workspace = backend.Allocate(bytes);
  backend.context().workspace_bytes = bytes;
  return backend.context().workspace;
}

class BackendTest : public ::testing::TestWithParam<const char*> {
 protected:
  BackendTest() : backend_(Open(GetParam())), values_(kCount) {
    std::iota(values_.begin(), values_.end(), 1.0f);
  }
  std::vector<float> Read(const void* device) {
    std::vector<float> out(kCount, -1);
    backend_->CopyOut(Lane::kCompute, out.data(), device, kBytes);
    EXPECT_TRUE(backend_->Synchronize());
    return out;
  }
  std::unique_ptr<Backend> backend_;
  std::vector<float> values_;
};

TEST_P(BackendTest, CopiesInWithinAndOut) {
  void* a = backend_->Allocate(kBytes);
  void* b = backend_->Allocate(kBytes);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 256, 0u);
  backend_->CopyIn(Lane::kCompute, a, values_.data(), kBytes);
  backend_->CopyWithin(Lane::kCompute, b, a, kBytes);
  backend_->Fill(a, 0, kBytes);
  EXPECT_EQ(Read(b), values_);
  EXPECT_EQ(Read(a), std::vector<float>(kCount, 0));
  backend_->Release(a);
  backend_->Release(b);
}

TEST_P(BackendTest, LanesWaitForEachOther) {
  auto* staging = static_cast<float*>(backend_->AllocatePinned(kBytes));
  void* a = backend_->Allocate(kBytes);
  void* b = backend_->Allocate(kBytes);
  backend_->CopyIn(Lane::kCompute, a, values_.data(), kBytes);
  // Out on one lane, back in on another, each behind the one before.
  backend_->Wait(Lane::kOut, Lane::kCompute);
  backend_->CopyOut(Lane::kOut, staging, a, kBytes);
  backend_->Wait(Lane::kIn, Lane::kOut);
  backend_->CopyIn(Lane::kIn, b, staging, kBytes);
  backend_->Wait(Lane::kCompute, Lane::kIn);
  backend_->Fill(a, 0xFF, kBytes);
  EXPECT_EQ(Read(b), values_);
  backend_->Release(a);
  backend_->Release(b);
  backend_->ReleasePinned(staging);
}

TEST_P(BackendTest, OpsWorkOnItsMemory) {
  void* a = backend_->Allocate(kBytes);
  void* sum = backend_->Allocate(8);
  void* workspace = GiveWorkspace(*backend_);
  backend_->CopyIn(Lane::kCompute, a, values_.data(), kBytes);
  backend_->table().sum_squares(&backend_->context(), static_cast<double*>(sum), a, 10);
  double out = 0;
  backend_->CopyOut(Lane::kCompute, &out, sum, 8);
  ASSERT_TRUE(backend_->Synchronize());
  EXPECT_EQ(out, 385);
  backend_->Release(a);
  backend_->Release(sum);
  backend_->Release(workspace);
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest, ::testing::Values("host", "cuda-emulated"),
                         [](const auto& info) { return info.param[0] == 'h' ? "Host" : "EmulatedCuda"; });

TEST(EmulatedCudaDeathTest, AHostThatFollowsADevicePointerFaults) {
  const auto backend = Open("cuda-emulated");
  volatile float* const device = static_cast<float*>(backend->Allocate(64));
  // Without a sanitizer's report: run_tests.py takes every one for a finding.
  EXPECT_DEATH({ std::signal(SIGSEGV, SIG_DFL); device[0] = 1; }, "");
  backend->Release(const_cast<float*>(device));
}

TEST(EmulatedCuda, CountsItsBytes) {
  const auto backend = Open("cuda-emulated");
  const int64_t free_bytes = backend->free_bytes();
  void* a = backend->Allocate(1000);
  void* pinned = backend->AllocatePinned(100);
  EXPECT_EQ(EmulatedCudaBytes().device, 1000);
  EXPECT_EQ(EmulatedCudaBytes().pinned, 100);
  EXPECT_EQ(backend->free_bytes(), free_bytes - 1000);
  backend->Release(a);
  backend->ReleasePinned(pinned);
  EXPECT_EQ(EmulatedCudaBytes().device, 0);
}

TEST(EmulatedCuda, WhatComesOutArrivesWhenWaitedFor) {
  const auto backend = Open("cuda-emulated");
  void* a = backend->Allocate(8);
  backend->Fill(a, 0, 8);
  int64_t out = 7;
  backend->CopyOut(Lane::kCompute, &out, a, 8);
  EXPECT_EQ(out, 7);
  EXPECT_TRUE(backend->Synchronize());
  EXPECT_EQ(out, 0);
  backend->Release(a);
}

TEST(CpuTablesDeathTest, ParametersOfATypeTheyDoNotReadAreRefused) {
  const KernelTable& table = *CpuTableFor(CpuBodies().front());
  if (std::string_view(table.body) == "portable") GTEST_SKIP() << "reads all, as ref does";
  const auto backend = MakeHostBackend(table, 1);
  const std::vector<uint16_t> values(32);
  std::vector<uint16_t> out(32);
  const auto read = [&] {
    std::signal(SIGABRT, SIG_DFL);  // no sanitizer's report, as above
    table.rmsnorm_forward(&backend->context(), out.data(), nullptr, values.data(),
                          ParamView{values.data(), DType::kF16}, 1, 32, 1e-5f, 0);
  };
  EXPECT_DEATH(read(), "IsReadable");
}

TEST(EmulatedCuda, AFailureStays) {
  const auto backend = Open("cuda-emulated");
  void* a = backend->Allocate(8);
  void* workspace = GiveWorkspace(*backend);
  EmulatedCudaFailAfter(0);
  backend->table().sum_squares(&backend->context(), static_cast<double*>(a), a, 0);
  EXPECT_FALSE(backend->Synchronize());
  EXPECT_EQ(backend->fault(), Fault::kDevice);
  EXPECT_NE(backend->error(), nullptr);
  EmulatedCudaFailAfter(-1);
  EmulatedCudaRefuseNextAllocate();
  EXPECT_EQ(backend->Allocate(8), nullptr);
  EXPECT_EQ(backend->fault(), Fault::kOutOfMemory);
  backend->Release(a);
  backend->Release(workspace);
}

}  // namespace
}  // namespace nibble::kernels
