// The emulated language does what the CUDA programming guide says of the real one, and stops kernels that
// break its rules.
#include "kernels/cuda/emulate.h"

#include <gtest/gtest.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#endif

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/emulate_death.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cuda_emulated {
namespace {

__global__ void VisitKernel(int* visits) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++visits[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(Emulate, EveryThreadOfEveryBlockRunsOnce) {
  ThreadPool pool(3);
  Context ctx;
  ctx.pool = &pool;
  std::vector<int> visits(2 * 3 * 4 * 5 * 6 * 7, 0);
  Launch(&ctx, dim3(2, 3, 4), dim3(5, 6, 7), 0, VisitKernel, visits.data());
  EXPECT_EQ(visits, std::vector<int>(visits.size(), 1));
}

// Turns each block's values round through shared memory, `times` times.
__global__ void ReverseKernel(int* values, int times) {
  int* shared = DynamicShared<int>();
  const unsigned i = threadIdx.x;
  int mine = values[blockIdx.x * blockDim.x + i];
  for (int round = 0; round < times; ++round) {
    shared[i] = mine;
    __syncthreads();
    mine = shared[blockDim.x - 1 - i];
    __syncthreads();
  }
  values[blockIdx.x * blockDim.x + i] = mine;
}

TEST(Emulate, BarriersSeparateWritingFromReading) {
  Context ctx;
  std::vector<int> values(2 * 100);
  std::iota(values.begin(), values.end(), 0);
  std::vector<int> turned = values;
  Launch(&ctx, 2, 100, 100 * 4, ReverseKernel, turned.data(), 3);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(turned[static_cast<size_t>(i)], i / 100 * 100 + 99 - i % 100);
  Launch(&ctx, 2, 100, 100 * 4, ReverseKernel, turned.data(), 5);
  EXPECT_EQ(turned, values);
}

// The barrier that is not there: each thread reads its neighbour's value.
__global__ void RaceKernel(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = -1;
  __syncthreads();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[blockIdx.x * 64 + threadIdx.x] = shared[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}

TEST(Emulate, AMissingBarrierShowsInOneOrderOrTheOther) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer stops it: see EmulateDeathTest.ThreadSanitizerSeesMissingBarriers";
#endif
  Context ctx;
  std::vector<int> out(3 * 64);
  BeginOrders();
  Launch(&ctx, 3, 64, 0, RaceKernel, out.data());
  EXPECT_EQ(out[1], 0);        // block 0 ran upwards, and was lucky
  EXPECT_EQ(out[64 + 1], -1);  // block 1 ran downwards
  EXPECT_EQ(std::count(out.begin() + 128, out.end(), -1) > 0, true);  // block 2 ran across
  // The same block runs otherwise the next time.
  Launch(&ctx, 1, 64, 0, RaceKernel, out.data());
  EXPECT_EQ(out[1], -1);
}

__global__ void ReturnEarlyKernel(int* out) {
  if (threadIdx.x % 2 == 1) return;
  __syncthreads();
  out[threadIdx.x] = __popc(__ballot_sync(0x55555555u, 1));
}

TEST(Emulate, ThreadsThatReturnedAreNotWaitedFor) {
  Context ctx;
  std::vector<int> out(64, 0);
  Launch(&ctx, 1, 64, 0, ReturnEarlyKernel, out.data());
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(out[i], i % 2 == 0 ? 16 : 0);
}

struct Lanes {
  int from_3, within_8, across, down, up, up_8;
  unsigned ballot;
  bool any, all;
  double wide;
};

__global__ void WarpKernel(Lanes* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  Lanes& mine = out[threadIdx.x];
  mine.from_3 = __shfl_sync(~0u, lane * 10, 3);
  mine.within_8 = __shfl_sync(~0u, lane, 1, 8);
  mine.across = __shfl_xor_sync(~0u, lane, 5);
  mine.down = __shfl_down_sync(~0u, lane, 4);
  mine.up = __shfl_up_sync(~0u, lane, 4);
  mine.up_8 = __shfl_up_sync(~0u, lane, 4, 8);
  mine.ballot = __ballot_sync(~0u, lane % 3 == 0);
  mine.any = __any_sync(~0u, lane == 31) != 0;
  mine.all = __all_sync(~0u, lane < 31) != 0;
  mine.wide = __shfl_xor_sync(~0u, lane + 0.5, 1);
}

TEST(Emulate, WarpOperations) {
  Context ctx;
  std::vector<Lanes> out(64);
  Launch(&ctx, 1, 64, 0, WarpKernel, out.data());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32;
    const Lanes& got = out[static_cast<size_t>(i)];
    EXPECT_EQ(got.from_3, 30);
    EXPECT_EQ(got.within_8, lane / 8 * 8 + 1);
    EXPECT_EQ(got.across, lane ^ 5);
    EXPECT_EQ(got.down, lane + 4 < 32 ? lane + 4 : lane);
    EXPECT_EQ(got.up, lane >= 4 ? lane - 4 : lane);
    EXPECT_EQ(got.up_8, lane % 8 >= 4 ? lane - 4 : lane);
    EXPECT_EQ(got.ballot, 0x49249249u);
    EXPECT_TRUE(got.any);
    EXPECT_FALSE(got.all);
    EXPECT_EQ(got.wide, (lane ^ 1) + 0.5);
  }
}

// Two halves of a warp go separate ways and meet among themselves.
__global__ void HalvesKernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  if (lane < 16) {
    for (int bits = 8; bits > 0; bits /= 2) value += __shfl_xor_sync(0x0000FFFFu, value, bits);
  } else {
    value = __shfl_sync(0xFFFF0000u, value, 20);
  }
  __syncwarp();
  out[lane] = value;
}

TEST(Emulate, DisjointMasksDoNotMeet) {
  Context ctx;
  std::vector<int> out(32);
  Launch(&ctx, 1, 32, 0, HalvesKernel, out.data());
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(out[i], i < 16 ? 120 : 20);
}

__global__ void SumKernel(float* out, const float* in) {
  const float sum = BlockSum<256>(in[blockIdx.x * 256 + threadIdx.x]);
  const float twice = BlockSum<256>(sum);  // the shared array is used again
  if (threadIdx.x == 255) out[blockIdx.x] = twice;
}

TEST(Emulate, BlocksShareNothingAcrossThePool) {
  std::vector<float> in(64 * 256), one(64), many(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 97) * 0.37f;
  Context ctx;
  Launch(&ctx, 64, 256, 0, SumKernel, one.data(), in.data());
  ThreadPool pool(4);
  ctx.pool = &pool;
  Launch(&ctx, 64, 256, 0, SumKernel, many.data(), in.data());
  EXPECT_EQ(one, many);
  double want = 0;
  for (size_t i = 0; i < 256; ++i) want += static_cast<double>(in[i]);
  EXPECT_NEAR(static_cast<double>(one[0]) / (256 * want), 1, 1e-6);
}

TEST(Emulate, ActivationTypesRoundAsTheirStorageDoes) {
  for (uint32_t i = 0; i < 1u << 20; ++i) {
    const float value = std::bit_cast<float>(i * 4093u);
    if (std::isnan(value)) continue;
    EXPECT_EQ(ActType<BF16>::Pack(value, 1.0f), ToBF16(value).bits | 0x3F800000u);
    EXPECT_EQ(ActType<FP16>::Pack(1.0f, value), ToFP16(value).bits << 16 | 0x3C00u);
  }
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    EXPECT_EQ(std::bit_cast<uint32_t>(ActType<BF16>::High(bits << 16)),
              std::bit_cast<uint32_t>(ToFloat(BF16{half})));
    EXPECT_EQ(std::bit_cast<uint32_t>(ActType<FP16>::Low(bits)),
              std::bit_cast<uint32_t>(ToFloat(FP16{half})));
  }
}

TEST(Emulate, BytePermutation) {
  EXPECT_EQ(__byte_perm(0x33221100, 0x77665544, 0x3210), 0x33221100u);
  EXPECT_EQ(__byte_perm(0x33221100, 0x77665544, 0x7531), 0x77553311u);
}

// --- What must not be ----------------------------------------------------------------------------------

__global__ void LostLaneKernel() {
  if (threadIdx.x == 7)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void MasksDisagreeKernel() { __syncwarp(threadIdx.x == 0 ? 0x3u : 0x7u); }
__global__ void TwoBarriersKernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void NothingKernel() {}
__global__ void MisalignedKernel(const unsigned* at) { __ldg(reinterpret_cast<const uint2*>(at)); }
__global__ void BeyondSharedKernel() { DynamicShared<int>()[threadIdx.x] = 1; }
__global__ void NotInMaskKernel() { __syncwarp(0xFFFFFFFEu); }

class EmulateDeathTest : public WantedDeathTest {
 protected:
  static void ReportHere() {
#if defined(__SANITIZE_THREAD__)
    __sanitizer_set_report_fd(reinterpret_cast<void*>(2));
#endif
  }
};

TEST_F(EmulateDeathTest, StopsKernelsThatBreakTheRules) {
  Context ctx;
  EXPECT_DEATH(Launch(&ctx, 1, 32, 0, LostLaneKernel), "waits_for_a_lane_that_never_comes");
  EXPECT_DEATH(Launch(&ctx, 1, 3, 0, MasksDisagreeKernel), "waits_for_a_lane_that_never_comes");
  EXPECT_DEATH(Launch(&ctx, 1, 32, 31 * 4, BeyondSharedKernel), "shared_memory_was_written_outside");
  EXPECT_DEATH(Launch(&ctx, 1, 32, 0, NotInMaskKernel), "mask_names_the_calling_lane");
  EXPECT_DEATH(Launch(&ctx, 1, 64, 0, TwoBarriersKernel), "all_wait_at_the_same_barrier");
  alignas(8) const unsigned words[4] = {};
  Launch(&ctx, 1, 1, 0, MisalignedKernel, words);
  EXPECT_DEATH(Launch(&ctx, 1, 1, 0, MisalignedKernel, words + 1), "access_is_aligned");
}

TEST_F(EmulateDeathTest, StopsLaunchesBeyondADevicesLimits) {
  Context ctx;
  Launch(&ctx, dim3(1, 65535), 1, 0, NothingKernel);
  EXPECT_DEATH(Launch(&ctx, dim3(1, 65536), 1, 0, NothingKernel), "grid_is_within");
  EXPECT_DEATH(Launch(&ctx, dim3(1, 1, 65536), 1, 0, NothingKernel), "grid_is_within");
  EXPECT_DEATH(Launch(&ctx, 1, dim3(1, 1, 65), 0, NothingKernel), "block_is_within");
  EXPECT_DEATH(Launch(&ctx, 1, dim3(32, 33), 0, NothingKernel), "count <= 1024");
  EXPECT_DEATH(Launch(&ctx, 1, 32, 228 * 1024, NothingKernel), "shared_memory_is_within");
}

// A warp's lanes that hand something over in shared memory, with what orders it or without.
template <bool kOrdered>
void HandOverKernel(int* out) {
  __shared__ int shared[32];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if constexpr (kOrdered) __syncwarp();
  // Every lane comes here before any goes on; a GPU's shuffle orders no memory all the same.
  const int neighbour = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  out[threadIdx.x] = shared[neighbour];
}

TEST_F(EmulateDeathTest, ThreadSanitizerSeesMissingBarriers) {
  Context ctx;
  std::vector<int> out(64);
  Launch(&ctx, 1, 32, 0, HandOverKernel<true>, out.data());
#if defined(__SANITIZE_THREAD__)
  EXPECT_DEATH((ReportHere(), Launch(&ctx, 1, 64, 0, RaceKernel, out.data())), "data race");
  EXPECT_DEATH((ReportHere(), Launch(&ctx, 1, 32, 0, HandOverKernel<false>, out.data())), "data race");
#else
  GTEST_SKIP() << "needs the thread sanitizer: ./dev test --full thread";
#endif
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
