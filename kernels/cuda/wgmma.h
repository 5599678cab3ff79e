// Products of a warpgroup, 128 threads, on Hopper's tensor cores (wgmma, compute capability 9.0
// alone): 64 x N x 16, the right operand and if need be the left one read from shared memory, while
// the threads go on.
//
// Layouts (PTX ISA, wgmma.mma_async). Warp w of the group has rows 16 w .. 16 w + 15 of the left
// operand and of the sums, and there a lane has what mma.m16n8k16 gives it (mma.h): sums[j] are
// columns 8j .. 8j + 7. In shared memory an operand is told by a descriptor (Tile). Ours are of
// 16-bit elements in blocks of 64 columns: a row of a block takes 128 bytes, eight rows 1024, at a
// multiple of that, and the 16-byte chunks of row r lie at chunk ^ (r % 8), which is the hardware's
// 128-byte swizzle and TileAt<64> (attention.h).
//
// Asynchronous. Fence comes before the first product after any other access to sums or left
// operands in registers. From a product on until Wait has let its group pass nobody may touch its
// sums, change its left operand or write to what it reads in shared memory. Arrived tells the
// compiler that sums are there. What threads wrote to shared memory must have been made visible to
// the tensor cores by each that wrote (FenceForTensors), before the barrier.
//
// In the emulation (emulate_wgmma.h) products run as late as allowed, and read their operands by
// the descriptor.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/mma.h"
#if !defined(__CUDACC__)
#include "kernels/cuda/emulate_wgmma.h"
#endif

namespace nibble::kernels::NIBBLE_CUDA {

constexpr int kWarpgroup = 128;

// Whether this pass compiles them; elsewhere kernels made of them are empty.
constexpr bool kCompilesWgmma =
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    true;
#else
    false;
#endif

// The descriptor of a matrix in shared memory, of blocks of 64 columns. As the rows of the product's
// left operand, or the columns of its right one, the tile's rows count, from the address on, and its
// columns are the depth: 16 of one block. Turned, the tile's rows are the depth and its columns the
// product's.
//   bits 0 .. 13   address / 16
//   bits 16 .. 29  turned, of more blocks than one: bytes from one to the next, / 16; else not looked
//                  at: 1, or turned 0, as NVIDIA's own libraries have it
//   bits 32 .. 45  bytes from eight rows to the next eight, / 16
//   bits 62, 63    1: swizzled by 128 bytes
// Its lower half is Tile plus kStraight or BlocksApart; bytes / 16 may be added. The upper half is
// always the same.
constexpr uint32_t kStraight = 1u << 16;
constexpr uint32_t BlocksApart(int bytes) { return static_cast<uint32_t>(bytes >> 4) << 16; }
__device__ __forceinline__ uint32_t Tile(const void* at) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
#else
  const uint32_t address = SharedAddress(at);
#endif
  return (address & 0x3FFFF) >> 4;
}
__device__ __forceinline__ uint64_t Descriptor(uint32_t tile) {
  return uint64_t{uint32_t{1} << 30 | 1024 >> 4} << 32 | tile;
}

// Dynamic shared memory from the next multiple of 1024 on: a kernel asks for kSwizzleSlack bytes
// more.
constexpr int kSwizzleSlack = 1024;
template <typename T>
__device__ __forceinline__ T* SwizzledShared() {
  auto* at = DynamicShared<unsigned char>();
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
#else
  const uint32_t address = SharedAddress(at);
#endif
  return reinterpret_cast<T*>(at + (-address & 1023));
}

#if defined(__CUDACC__)

#define NIBBLE_REGISTERS_32                                                                        \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,"                                                                                       \
  "%28,%29,%30,%31"
#define NIBBLE_REGISTERS_64                                                                        \
  NIBBLE_REGISTERS_32                                                                              \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%" \
  "55,%56,"                                                                                        \
  "%57,%58,%59,%60,%61,%62,%63"
#define NIBBLE_SUMS_4(j) "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
#define NIBBLE_SUMS_16(j) \
  NIBBLE_SUMS_4(j), NIBBLE_SUMS_4(j + 1), NIBBLE_SUMS_4(j + 2), NIBBLE_SUMS_4(j + 3)
#define NIBBLE_SUMS_32 NIBBLE_SUMS_16(0), NIBBLE_SUMS_16(4)
#define NIBBLE_SUMS_64 NIBBLE_SUMS_32, NIBBLE_SUMS_16(8), NIBBLE_SUMS_16(12)

// Both operands in shared memory; a, b and add_at number the operands behind the sums.
#define NIBBLE_WGMMA_TILES(shape, type, count, a, b, add_at)                            \
  asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" #add_at                         \
               ", 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type         \
               " {" NIBBLE_REGISTERS_##count "}, %" #a ", %" #b ", adds, 1, 1, 0, 0; }" \
               : NIBBLE_SUMS_##count                                                    \
               : "l"(left), "l"(right), "r"(static_cast<int>(add)))
// The left one in registers, the right one turned.
#define NIBBLE_WGMMA_TURNED(shape, type, count, a0, a1, a2, a3, b)                              \
  asm volatile("{ .reg .pred adds; setp.ne.b32 adds, 1, 0; wgmma.mma_async.sync.aligned." shape \
               ".f32." type "." type " {" NIBBLE_REGISTERS_##count                              \
               "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", adds, 1, 1, 1; }"            \
               : NIBBLE_SUMS_##count                                                            \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))

class Warpgroup {
 public:
  __device__ __forceinline__ void Fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  }
  // sums (+)= left right^T, of two tiles' rows.
  template <typename Act, int kBlocks>
  __device__ __forceinline__ void Multiply(float (&sums)[kBlocks][4], uint64_t left, uint64_t right,
                                           bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static_assert(kBlocks == 8 || kBlocks == 16);
    if constexpr (kBlocks == 8 && std::is_same_v<Act, BF16>)
      NIBBLE_WGMMA_TILES("m64n64k16", "bf16", 32, 32, 33, 34);
    else if constexpr (kBlocks == 8)
      NIBBLE_WGMMA_TILES("m64n64k16", "f16", 32, 32, 33, 34);
    else if constexpr (std::is_same_v<Act, BF16>)
      NIBBLE_WGMMA_TILES("m64n128k16", "bf16", 64, 64, 65, 66);
    else
      NIBBLE_WGMMA_TILES("m64n128k16", "f16", 64, 64, 65, 66);
#endif
  }
  // sums += left right, where right is a turned tile.
  template <typename Act, int kBlocks>
  __device__ __forceinline__ void MultiplyTurned(float (&sums)[kBlocks][4],
                                                 const uint32_t (&left)[4], uint64_t right) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static_assert(kBlocks == 8 || kBlocks == 16);
    if constexpr (kBlocks == 8 && std::is_same_v<Act, BF16>)
      NIBBLE_WGMMA_TURNED("m64n64k16", "bf16", 32, 32, 33, 34, 35, 36);
    else if constexpr (kBlocks == 8)
      NIBBLE_WGMMA_TURNED("m64n64k16", "f16", 32, 32, 33, 34, 35, 36);
    else if constexpr (std::is_same_v<Act, BF16>)
      NIBBLE_WGMMA_TURNED("m64n128k16", "bf16", 64, 64, 65, 66, 67, 68);
    else
      NIBBLE_WGMMA_TURNED("m64n128k16", "f16", 64, 64, 65, 66, 67, 68);
#endif
  }
  // Ends a group.
  __device__ __forceinline__ void Commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
  // Until all groups but the newest kPending are through.
  template <int kPending>
  __device__ __forceinline__ void Wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
  }
};

// After the Wait that let them pass: nothing reads these sums earlier than here.
template <int kBlocks>
__device__ __forceinline__ void Arrived(float (&sums)[kBlocks][4]) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[j][e])::"memory");
}

__device__ __forceinline__ void FenceForTensors() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#else

template <int kBlocks>
inline void Arrived(float (&)[kBlocks][4]) {}
inline void FenceForTensors() { Unfenced().Fence(); }

#endif

}  // namespace nibble::kernels::NIBBLE_CUDA
