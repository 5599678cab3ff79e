// What the tensor-core kernels are made of: 16 x 8 x 16 products of a warp, loads of their operands
// from shared memory, and copies from global to shared memory that run beside the arithmetic.
//
// A warp's product, lane = 4 g + t (PTX ISA, mma.m16n8k16):
//   A 16 x 16: a[0] = (row g, columns 2t, 2t+1), a[1] = (row g + 8, same), a[2] = (row g, columns 2t + 8,
//     2t + 9), a[3] = (row g + 8, those).
//   B 16 x 8:  b[0] = (rows 2t, 2t+1, column g), b[1] = (rows 2t + 8, 2t + 9, column g).
//   C 16 x 8:  c[0], c[1] = (row g, columns 2t, 2t+1), c[2], c[3] = (row g + 8, same).
//
// Three ways to the same product: the tensor core's instruction where the architecture has it for
// the type (bf16 from 8.0, fp16 from 7.5); the twin, multiply-adds over shuffles, on any other; and
// in the emulation an exchange between the lanes, with the same fragments, so that the kernels' own
// source is what is tested.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#if !defined(__CUDACC__)
#include "kernels/cuda/emulate_proxies.h"
#include "kernels/cuda/emulate_sanitizers.h"
#endif

namespace nibble::kernels::NIBBLE_CUDA {

// *sum += the product of two pairs.
template <typename T>
__device__ __forceinline__ void Dot(float* sum, uint32_t x, uint32_t y) {
  *sum = fmaf(ActType<T>::Low(x), ActType<T>::Low(y), *sum);
  *sum = fmaf(ActType<T>::High(x), ActType<T>::High(y), *sum);
}

// c += a b by multiply-adds: for architectures whose tensor cores do not know the type.
template <typename T>
__device__ __forceinline__ void MmaTwin(float* c, const uint32_t* a, const uint32_t* b) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t left = __shfl_sync(kAllLanes, b[half], 8 * t + s);
      const uint32_t right = __shfl_sync(kAllLanes, b[half], 8 * t + 4 + s);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const uint32_t x = __shfl_sync(kAllLanes, a[2 * half + row], 4 * g + s);
        Dot<T>(&c[2 * row], x, left);
        Dot<T>(&c[2 * row + 1], x, right);
      }
    }
  }
}

#if !defined(__CUDACC__)

struct MmaOperands {
  float a[8], b[4];
};

// Where a lane leaves its operands for the others. Two in turn: nobody's next product begins before all
// have brought theirs, so what was read for the last but one may go.
inline MmaOperands* NextMmaOperands() {
  static thread_local MmaOperands operands[2][1024];
  static thread_local uint8_t turns[1024];
  const unsigned thread = threadIdx.x;
  return &operands[turns[thread]++ & 1][thread];
}

// c += a b, in the twin's order. No fmaf: fp32 holds a product of two 16-bit values exactly.
template <typename T>
NIBBLE_UNSEEN inline void Mma(float* c, const uint32_t* a, const uint32_t* b) {
  MmaOperands* mine = NextMmaOperands();
  for (int i = 0; i < 4; ++i) {
    mine->a[2 * i] = ActType<T>::Low(a[i]);
    mine->a[2 * i + 1] = ActType<T>::High(a[i]);
  }
  for (int i = 0; i < 2; ++i) {
    mine->b[2 * i] = ActType<T>::Low(b[i]);
    mine->b[2 * i + 1] = ActType<T>::High(b[i]);
  }
  const uint64_t* all = Bring(kAllLanes, mine);
  const auto of = [&](int l) -> const MmaOperands& {
    return *ReadLane<const MmaOperands*>(all, static_cast<unsigned>(l));
  };
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  for (int s = 0; s < 4; ++s) {
    const MmaOperands &rows = of(4 * g + s), &left = of(8 * t + s), &right = of(8 * t + 4 + s);
    for (int half = 0; half < 2; ++half) {
      for (int row = 0; row < 2; ++row) {
        for (int i = 0; i < 2; ++i) {
          const float x = rows.a[4 * half + 2 * row + i];
          c[2 * row] += x * left.b[2 * half + i];
          c[2 * row + 1] += x * right.b[2 * half + i];
        }
      }
    }
  }
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l hands in the address of row l %
// 8 of matrix l / 8 and gets from matrix i, as out[i], elements 2t and 2t + 1 of row g; transposed,
// the elements of rows 2t and 2t + 1 in column g.
template <bool kTransposed>
inline void LoadMatrices(uint32_t* out, const void* row) {
  const uint64_t* all = Bring(kAllLanes, AlignedAccess(static_cast<const uint4*>(row)));
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int r, int c) {
      return static_cast<uint32_t>(ReadLane<const uint16_t*>(all, static_cast<unsigned>(8 * i + r))[c]);
    };
    out[i] = kTransposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                         : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
}

#else

template <typename T>
__device__ __forceinline__ void Mma(float* c, const uint32_t* a, const uint32_t* b) {
  if constexpr (std::is_same_v<T, BF16>) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    MmaTwin<T>(c, a, b);
#endif
  } else {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
    // Two products of half the depth: the same fragments, split between a[1] and a[2], b[0] and
    // b[1].
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
          "{%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
    MmaTwin<T>(c, a, b);
#endif
  }
}

template <bool kTransposed>
__device__ __forceinline__ void LoadMatrices(uint32_t* out, const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
  }
}

#endif

// A fragment of rows 0 .. 15, columns 0 .. 15 of a tile stored with its rows one behind the other.
template <int kStride, typename T>
__device__ __forceinline__ void LoadA(uint32_t* a, const T* tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<false>(a, tile + lane % 16 * kStride + lane / 16 * 8);
}
// The same fragment of a tile stored transposed: tile[column][row].
template <int kStride, typename T>
__device__ __forceinline__ void LoadATransposed(uint32_t* a, const T* tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<true>(a, tile + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
}
// Two B fragments side by side (columns 0 .. 15) of a tile stored as tile[column][depth]: b[0],
// b[1] and b[2], b[3].
template <int kStride, typename T>
__device__ __forceinline__ void LoadB(uint32_t* b, const T* tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<false>(b, tile + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
}
// The same of a tile stored as tile[depth][column].
template <int kStride, typename T>
__device__ __forceinline__ void LoadBTransposed(uint32_t* b, const T* tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<true>(b, tile + lane % 16 * kStride + lane / 16 * 8);
}

// A thread's copies from global to shared memory, in groups; on 8.0 and later they run in the
// background. Until Wait has returned nobody may read what was copied, and until then barrier
// nobody but this thread.
class AsyncCopies {
 public:
  // 16 bytes, both addresses multiples of 16; beyond the first `valid` bytes zeros, and nothing is
  // read.
  __device__ __forceinline__ void Copy16(void* shared, const void* global, int valid);
  // All sixteen or, where `there` is false, zeros; fewer instructions.
  __device__ __forceinline__ void Copy16OrZeros(void* shared, const void* global, bool there);
  // Four bytes, both addresses multiples of 4.
  __device__ __forceinline__ void Copy4(void* shared, const void* global);
  // Ends a group.
  __device__ __forceinline__ void Commit();
  // Until all groups but the newest `kPending` have arrived.
  template <int kPending>
  __device__ __forceinline__ void Wait();

#if !defined(__CUDACC__)
 private:
  struct Copy {
    void* to;
    const void* from;
    int size, valid;
    int group;
  };
  void Queue(const Copy& copy);
  static constexpr int kMost = 512;
  Copy queue_[kMost];
  int queued_ = 0;
  int group_ = 0;
#endif
};

#if !defined(__CUDACC__)

// As late as allowed, so that a missing Wait shows.
inline void AsyncCopies::Queue(const Copy& copy) {
  KERNEL_CHECK(queued_ < kMost);
  KERNEL_CHECK(reinterpret_cast<uintptr_t>(copy.to) % static_cast<unsigned>(copy.size) == 0 &&
               reinterpret_cast<uintptr_t>(copy.from) % static_cast<unsigned>(copy.size) == 0);
  std::memset(copy.to, 0xFF, static_cast<size_t>(copy.size));
  queue_[queued_++] = copy;
}
inline void AsyncCopies::Copy16(void* shared, const void* global, int valid) {
  Queue({shared, global, 16, valid, group_});
}
inline void AsyncCopies::Copy16OrZeros(void* shared, const void* global, bool there) {
  Queue({shared, global, 16, there ? 16 : 0, group_});
}
inline void AsyncCopies::Copy4(void* shared, const void* global) { Queue({shared, global, 4, 4, group_}); }
inline void AsyncCopies::Commit() { ++group_; }
template <int kPending>
inline void AsyncCopies::Wait() {
  int kept = 0;
  for (int i = 0; i < queued_; ++i) {
    const Copy& copy = queue_[i];
    if (copy.group >= group_ - kPending) {
      queue_[kept++] = copy;
      continue;
    }
    std::memset(copy.to, 0, static_cast<size_t>(copy.size));
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
    if (copy.size == 16) Unfenced().Note(copy.to);
  }
  queued_ = kept;
}

#else

__device__ __forceinline__ void AsyncCopies::Copy16(void* shared, const void* global, int valid) {
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(valid) : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (valid == 16) {
    value = *static_cast<const uint4*>(global);
  } else {
    auto* words = reinterpret_cast<uint16_t*>(&value);
    for (int i = 0; i < 8; ++i)
      if (2 * i < valid) words[i] = static_cast<const uint16_t*>(global)[i];
  }
  *static_cast<uint4*>(shared) = value;
#endif
}
__device__ __forceinline__ void AsyncCopies::Copy16OrZeros(void* shared, const void* global, bool there) {
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{ .reg .pred ignore; setp.eq.s32 ignore, %2, 0;"
      " cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(at),
      "l"(global), "r"(static_cast<int>(there))
      : "memory");
#else
  *static_cast<uint4*>(shared) = there ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void AsyncCopies::Copy4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(global) : "memory");
#else
  *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}
__device__ __forceinline__ void AsyncCopies::Commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
__device__ __forceinline__ void AsyncCopies::Wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

#endif

// A tile of kRows x kColumns of a row-major matrix into shared memory with rows kStride apart: rows
// row0 .., columns column0 ..; outside of rows x columns zeros. kThreads threads share the work.
// When `vector`, every row of the matrix starts at a multiple of 16 bytes, and column0 is a
// multiple of 8.
template <int kRows, int kColumns, int kStride, int kThreads, typename T>
__device__ __forceinline__ void LoadTile(AsyncCopies* copies, T* tile, const T* matrix, int64_t stride,
                                         int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                                         bool vector) {
  constexpr int kChunks = kColumns / 8;
  const int thread = static_cast<int>(threadIdx.x);
  if (vector) {
#pragma unroll 4
    for (int chunk = thread; chunk < kRows * kChunks; chunk += kThreads) {
      const int r = chunk / kChunks, c = chunk % kChunks * 8;
      const int64_t left = row0 + r < rows ? columns - (column0 + c) : 0;
      const int count = left >= 8 ? 8 : left > 0 ? static_cast<int>(left) : 0;
      // Nothing is read where count is 0; the address stays inside the matrix anyway.
      const T* from = count > 0 ? matrix + (row0 + r) * stride + column0 + c : matrix;
      copies->Copy16(tile + r * kStride + c, from, 2 * count);
    }
    return;
  }
  // The same chunks by the same threads.
#pragma unroll 1
  for (int chunk = thread; chunk < kRows * kChunks; chunk += kThreads) {
    const int64_t row = row0 + chunk / kChunks;
    T* to = tile + chunk / kChunks * kStride + chunk % kChunks * 8;
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const int64_t column = column0 + chunk % kChunks * 8 + i;
      to[i] = row < rows && column < columns ? matrix[row * stride + column] : T{0};
    }
  }
}

}  // namespace nibble::kernels::NIBBLE_CUDA
