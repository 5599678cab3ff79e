// Hopper's warpgroup products in the emulation (kernels/cuda/emulate_wgmma.h): they are the
// products that the PTX ISA describes, and what it forbids, or a descriptor gone wrong, shows.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/attention_hopper.h"
#include "kernels/cuda/emulate_death.h"

namespace nibble::kernels::cuda_emulated {
namespace {

constexpr int kRows = 64, kDim = 128;

// Small whole numbers, so that every product and sum is exact.
int Left(int row, int column) { return (row * 7 + column * 3) % 11 - 5; }
int Right(int row, int column) { return (row * 5 + column) % 13 - 6; }

enum class Fault {
  kNone,
  kNoFence,
  kNoWait,         // sums are read at once
  kSumsTouched,    // and written while a product adds to them
  kOverwritten,    // a tile is written to while products read it
  kLeftChanged,    // a left operand in registers, too
  kNotForTensors,  // copies that no thread made visible
  kOtherSwizzle,   // 64 bytes
  kOtherStride,    // 512 bytes from eight rows to the next
  kOtherBlocks,    // of 64 columns, less apart than they are
  kOtherStart,     // not where the tile begins
  kNeverWaited,
  kBeyondMemory,
  kCopiedLater,  // what a product reads arrives behind its start
};

// out = left right^T, or with kTurned left turned, where left's 64 columns come as fragments.
// kBlocks: of eight columns of the product. Block 0 reads operands late, block 1 early.
template <int kBlocks, bool kTurned, typename Act>
__global__ void ProductKernel(float* out, const Act* left_from, const Act* right_from,
                              Fault fault, unsigned block) {
  if (blockIdx.x != block) return;
  constexpr int kColumns = 8 * kBlocks;
  // The right operand: kColumns rows of depth kDim; turned, kRows of depth by kColumns.
  constexpr int kRightRows = kTurned ? kRows : kColumns, kRightDim = kTurned ? kColumns : kDim;
  Act* left = SwizzledShared<Act>();
  Act* right = left + kRows * kDim;
  AsyncCopies copies;
  LoadRows<kRows, kDim, kWarpgroup, SwizzledAt<kRows>>(&copies, left, left_from, kDim, 0, kRows,
                                                       kDim, true);
  LoadRows<kRightRows, kRightDim, kWarpgroup, SwizzledAt<kRightRows>>(
      &copies, right, right_from, kRightDim, 0, kRightRows, kRightDim, true);
  copies.Commit();
  const auto arrive = [&] {
    copies.Wait<0>();
    if (fault != Fault::kNotForTensors) FenceForTensors();
    __syncthreads();
  };
  if (fault != Fault::kCopiedLater) arrive();
  const int lane = static_cast<int>(threadIdx.x % 32),
            row = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
  float sums[kBlocks][4] = {};
  uint32_t fragments[kRows / 16][4];
  for (int depth = 0; depth < kRows; depth += 16) {
    for (int i = 0; i < 4; ++i) {
      const Act* at = left + SwizzledAt<kRows>(row + i % 2 * 8, depth + i / 2 * 8) + lane % 4 * 2;
      fragments[depth / 16][i] = ActType<Act>::Pack(Get(at), Get(at + 1));
    }
  }
  const uint64_t a = Descriptor(Tile(left) + kStraight);
  uint64_t b = Descriptor(Tile(right) + (kTurned ? BlocksApart(kRightRows * 128) : kStraight));
  if (fault == Fault::kOtherSwizzle) b ^= uint64_t{3} << 62;
  if (fault == Fault::kOtherStride) b ^= uint64_t{(1024 ^ 512) >> 4} << 32;
  if (fault == Fault::kOtherBlocks) b -= uint64_t{1024 >> 4} << 16;
  if (fault == Fault::kOtherStart) b -= 128 >> 4;
  if (fault == Fault::kBeyondMemory) b |= 0x3FFF;
  Warpgroup group;
  if (fault != Fault::kNoFence) group.Fence();
  if constexpr (kTurned) {
    for (int depth = 0; depth < kRows / 16; ++depth)
      group.MultiplyTurned<Act>(sums, fragments[depth],
                                b + static_cast<uint64_t>(depth) * 16 * 128 / 16);
  } else {
    for (int column = 0; column < kDim; column += 16)
      group.Multiply<Act>(sums, a + static_cast<uint64_t>(SwizzledAt<kRows>(0, column) * 2 / 16),
                          b + static_cast<uint64_t>(SwizzledAt<kColumns>(0, column) * 2 / 16),
                          column > 0);
  }
  group.Commit();
  if (fault == Fault::kCopiedLater) arrive();
  if (fault == Fault::kOverwritten && threadIdx.x == 0) right[0] = right[1] = left[0];
  if (fault == Fault::kLeftChanged) fragments[0][0] = 0;
  if (fault == Fault::kSumsTouched) sums[0][0] = 1;
  if (fault == Fault::kNoWait) {
    for (int j = 0; j < kBlocks; ++j) out[row * kColumns + 8 * j + lane % 4 * 2] = sums[j][0];
  }
  if (fault == Fault::kOverwritten) __syncthreads();
  if (fault != Fault::kNeverWaited) group.Wait<0>();
  Arrived(sums);
  if (fault == Fault::kNoWait) return;
  for (int j = 0; j < kBlocks; ++j)
    for (int e = 0; e < 4; ++e)
      out[(row + e / 2 * 8) * kColumns + 8 * j + lane % 4 * 2 + e % 2] = sums[j][e];
}

// Elements of the result that are wrong.
template <int kBlocks, bool kTurned, typename Act>
int Wrong(Fault fault = Fault::kNone, unsigned block = 0) {
  constexpr int kColumns = 8 * kBlocks, kRightRows = kTurned ? kRows : kColumns,
                kRightDim = kTurned ? kColumns : kDim;
  struct alignas(16) Chunk {
    Act act[8];
  };
  std::vector<Chunk> left(kRows * kDim / 8), right(static_cast<size_t>(kRightRows * kRightDim / 8));
  for (int i = 0; i < kRows * kDim; ++i)
    Put(&left[0].act[0] + i, static_cast<float>(Left(i / kDim, i % kDim)));
  for (int i = 0; i < kRightRows * kRightDim; ++i)
    Put(&right[0].act[0] + i, static_cast<float>(Right(i / kRightDim, i % kRightDim)));
  std::vector<float> out(static_cast<size_t>(kRows * kColumns), 12345);
  Context ctx;
  Launch(&ctx, block + 1, kWarpgroup, 2 * (kRows * kDim + kRightRows * kRightDim) + kSwizzleSlack,
         ProductKernel<kBlocks, kTurned, Act>, out.data(), &left[0].act[0], &right[0].act[0],
         fault, block);
  int wrong = 0;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      int want = 0;
      for (int depth = 0; depth < (kTurned ? kRows : kDim); ++depth)
        want += Left(row, depth) * (kTurned ? Right(depth, column) : Right(column, depth));
      wrong += out[static_cast<size_t>(row * kColumns + column)] != static_cast<float>(want);
    }
  }
  return wrong;
}

TEST(EmulatedWgmma, MultipliesTiles) {
  EXPECT_EQ((Wrong<8, false, BF16>()), 0);
  EXPECT_EQ((Wrong<16, false, BF16>()), 0);
  EXPECT_EQ((Wrong<8, false, FP16>()), 0);
  EXPECT_EQ((Wrong<16, false, FP16>()), 0);
  EXPECT_EQ((Wrong<16, false, BF16>(Fault::kNone, 1)), 0);
}

TEST(EmulatedWgmma, MultipliesFragmentsAndTurnedTiles) {
  EXPECT_EQ((Wrong<8, true, BF16>()), 0);
  EXPECT_EQ((Wrong<16, true, BF16>()), 0);
  EXPECT_EQ((Wrong<8, true, FP16>()), 0);
  EXPECT_EQ((Wrong<16, true, FP16>()), 0);
  EXPECT_EQ((Wrong<16, true, BF16>(Fault::kNone, 1)), 0);
}

// The 128-byte swizzle as the ISA draws it: in eight rows of eight chunks, row r has chunk c at
// place c ^ r.
TEST(EmulatedWgmma, DescriptorsReadTheSwizzledPlaces) {
  const uint64_t straight = uint64_t{1} << 62 | uint64_t{64} << 32 | 2048 >> 4;
  EXPECT_EQ(OperandAddress(straight, false, 0, 0), 2048u);
  EXPECT_EQ(OperandAddress(straight, false, 0, 9), 2048u + 16 + 2);
  EXPECT_EQ(OperandAddress(straight, false, 3, 0), 2048u + 3 * 128 + 3 * 16);
  EXPECT_EQ(OperandAddress(straight, false, 3, 8), 2048u + 3 * 128 + 2 * 16);
  EXPECT_EQ(OperandAddress(straight, false, 13, 0), 2048u + 1024 + 5 * 128 + 5 * 16);
  EXPECT_EQ(OperandAddress(straight + 2, false, 3, 0),
            2048u + 3 * 128 + 1 * 16);  // the next 16 of depth
  const uint64_t turned = straight | uint64_t{8192 >> 4} << 16;
  EXPECT_EQ(OperandAddress(turned, true, 0, 1), 2048u + 128 + 16);
  EXPECT_EQ(OperandAddress(turned, true, 9, 2), 2048u + 2 * 128 + 3 * 16 + 2);
  EXPECT_EQ(OperandAddress(turned, true, 64, 10), 2048u + 8192 + 1024 + 2 * 128 + 2 * 16);
}

TEST(EmulatedWgmma, FaultsShowAsWrongResults) {
  EXPECT_GT((Wrong<16, false, BF16>(Fault::kNoWait)), 0);
  EXPECT_GT((Wrong<16, false, BF16>(Fault::kOtherStride)), 0);
  EXPECT_GT((Wrong<16, false, BF16>(Fault::kOtherStart)), 0);
  EXPECT_GT((Wrong<16, true, BF16>(Fault::kOtherBlocks)), 0);
  EXPECT_GT((Wrong<16, true, BF16>(Fault::kLeftChanged)), 0);
#if !defined(__SANITIZE_THREAD__)  // which stops it
  EXPECT_GT((Wrong<16, false, BF16>(Fault::kOverwritten)), 0);
  EXPECT_GT((Wrong<16, false, BF16>(Fault::kCopiedLater, 1)), 0);
#endif
}

using EmulatedWgmmaDeathTest = WantedDeathTest;

TEST_F(EmulatedWgmmaDeathTest, WhatTheIsaForbidsStops) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kNoFence)), "registers_were_fenced");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kSumsTouched)), "sums_in_flight_were_left_alone");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kNotForTensors)), "fenced_for_the_tensor_cores");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kOtherSwizzle)), "swizzled_by_128_bytes");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kNeverWaited)), "every_product_was_waited_for");
  EXPECT_DEATH((Wrong<16, false, BF16>(Fault::kBeyondMemory)), "lies_in_shared_memory");
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
