// The building blocks of the tensor-core kernels, emulated, against the layouts as the PTX ISA describes them
// (section on mma.m16n8k16): with these right, what the parity tests say of the kernels holds for the
// instructions, too.
#include <gtest/gtest.h>

#include "kernels/cuda/mma.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cuda_emulated {
namespace {

constexpr int kStride = 24;

// The PTX ISA's formulas, by lane and element.
int RowOfA(int lane, int i) { return lane / 4 + ((i < 2 || (i >= 4 && i < 6)) ? 0 : 8); }
int ColumnOfA(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0); }
int RowOfB(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0); }
int ColumnOfB(int lane, int /*i*/) { return lane / 4; }
int RowOfC(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
int ColumnOfC(int lane, int i) { return lane % 4 * 2 + (i & 1); }

struct Results {
  uint32_t a[32][4], a_transposed[32][4], b[32][4], b_transposed[32][4];
  float product[32][2][4], twin[32][2][4];
};

// A 16 x 16 and B 16 x 16 (two products side by side) of small whole numbers, each stored both ways.
template <typename Act>
void Kernel(Results* results) {
  __shared__ Act a[16 * kStride], a_turned[16 * kStride], b[16 * kStride], b_turned[16 * kStride];
  const auto lane = static_cast<int>(threadIdx.x);
  for (int at = lane; at < 256; at += 32) {
    const int row = at / 16, column = at % 16;
    Put(&a[row * kStride + column], static_cast<float>(at));
    Put(&a_turned[column * kStride + row], static_cast<float>(at));
    Put(&b[row * kStride + column], static_cast<float>(at % 37));
    Put(&b_turned[column * kStride + row], static_cast<float>(at % 37));
  }
  __syncthreads();
  LoadA<kStride>(results->a[lane], a);
  LoadATransposed<kStride>(results->a_transposed[lane], a_turned);
  LoadBTransposed<kStride>(results->b_transposed[lane], b);  // stored [depth][column]
  LoadB<kStride>(results->b[lane], b_turned);                // stored [column][depth]
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) results->product[lane][half][i] = results->twin[lane][half][i] = 1;
    Mma<Act>(results->product[lane][half], results->a[lane], results->b[lane] + 2 * half);
    MmaTwin<Act>(results->twin[lane][half], results->a[lane], results->b[lane] + 2 * half);
  }
}

template <typename Act>
float Element(const uint32_t* fragment, int i) {
  return i % 2 == 0 ? ActType<Act>::Low(fragment[i / 2]) : ActType<Act>::High(fragment[i / 2]);
}

template <typename Act>
void Check() {
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  Results r;
  Launch(&ctx, 1, 32, 0, Kernel<Act>, &r);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const auto want = static_cast<float>(RowOfA(lane, i) * 16 + ColumnOfA(lane, i));
      EXPECT_EQ(Element<Act>(r.a[lane], i), want) << "A, lane " << lane << ", element " << i;
      EXPECT_EQ(Element<Act>(r.a_transposed[lane], i), want)
          << "A transposed, lane " << lane << ", element " << i;
    }
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        const auto want = static_cast<float>((RowOfB(lane, i) * 16 + ColumnOfB(lane, i) + 8 * half) % 37);
        EXPECT_EQ(Element<Act>(r.b[lane] + 2 * half, i), want) << "B, lane " << lane << ", element " << i;
        EXPECT_EQ(Element<Act>(r.b_transposed[lane] + 2 * half, i), want)
            << "B transposed, lane " << lane << ", element " << i;
        float sum = 1;
        const int row = RowOfC(lane, i), column = ColumnOfC(lane, i) + 8 * half;
        for (int depth = 0; depth < 16; ++depth)
          sum += static_cast<float>((row * 16 + depth) * ((depth * 16 + column) % 37));
        EXPECT_EQ(r.product[lane][half][i], sum) << "C, lane " << lane << ", element " << i;
        EXPECT_EQ(r.twin[lane][half][i], sum) << "twin, lane " << lane << ", element " << i;
      }
    }
  }
}

TEST(CudaMma, FragmentsAndProductInBf16) { Check<BF16>(); }
TEST(CudaMma, FragmentsAndProductInFp16) { Check<FP16>(); }

// Copies arrive no sooner than they are waited for, oldest group first; what is beyond `valid` is zero.
void CopyKernel(const uint16_t* from, bool* early, uint16_t* out) {
  __shared__ __attribute__((aligned(16))) uint16_t first[8], second[8];
  AsyncCopies copies;
  copies.Copy16(first, from, 16);
  copies.Commit();
  copies.Copy16(second, from, 6);
  copies.Commit();
  early[0] = first[0] == from[0];
  copies.Wait<1>();
  early[1] = second[0] == from[0];
  for (int i = 0; i < 8; ++i) out[i] = first[i];
  copies.Wait<0>();
  for (int i = 0; i < 8; ++i) out[8 + i] = second[i];
}

TEST(CudaMma, CopiesArriveWhenWaitedFor) {
  alignas(16) const uint16_t from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  bool early[2];
  uint16_t out[16];
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  Launch(&ctx, 1, 1, 0, CopyKernel, from, early, out);
  EXPECT_FALSE(early[0]);
  EXPECT_FALSE(early[1]);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(out[i], from[i]);
    EXPECT_EQ(out[8 + i], i < 3 ? from[i] : 0);
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
