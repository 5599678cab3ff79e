// What every file of kernels/cuda begins with: CUDA's language from the toolkit or from emulate.h, one way to
// launch a kernel, the activation types, 16-byte memory accesses, and reductions.
//
// The same sources make two libraries: nvcc's, in namespace cuda, and g++'s under emulation, in namespace
// cuda_emulated; NIBBLE_CUDA names the one being built. An op is a template on the activation type, BF16 or
// FP16; its .cu file instantiates both, and table.cu puts them into tables.
//
// Arithmetic. nvcc runs with -fmad=false: a fused multiply-add is one somebody wrote (fmaf), as everywhere
// in kernels/. So emulated results are a GPU's own, but for exp, log, tanh and their kin.
#pragma once

#include <cstdint>
#include <cstdio>

#include "kernels/bf16.h"
#include "kernels/check.h"
#include "kernels/fp16.h"
#include "kernels/kernel_table.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define NIBBLE_CUDA cuda
#else
#include "kernels/cuda/emulate.h"
#define NIBBLE_CUDA cuda_emulated
#endif

namespace nibble::kernels::NIBBLE_CUDA {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <typename T>
__host__ __device__ constexpr T Min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
__host__ __device__ constexpr T Max(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
__host__ __device__ constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// --- Launching ---------------------------------------------------------------------------------------

// Starts `kernel` on ctx->stream: Launch(ctx, grid, threads, shared_bytes, Kernel<BF16>, arguments...). An
// empty grid is nothing to do. After an error of the stream everything is; the first one stays in ctx->error.
#if defined(__CUDACC__)

// True when all is well.
inline bool NoteError(Context* ctx, cudaError_t status) {
  if (status != cudaSuccess && ctx->error == nullptr) ctx->error = cudaGetErrorString(status);
  return ctx->error == nullptr;
}

// The same of a launch: the error says of which kernel. The text stays until another launch fails.
inline void NoteLaunch(Context* ctx, cudaError_t status, const void* kernel, dim3 grid, dim3 block,
                       int64_t shared_bytes) {
  if (status == cudaSuccess || ctx->error != nullptr) return;
  static thread_local char text[512];
  const char* name = nullptr;
#if CUDART_VERSION >= 12030
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = nullptr;
#endif
  std::snprintf(text, sizeof text, "%s: %.300s, grid %u x %u x %u, %u threads, %lld bytes shared",
                cudaGetErrorString(status), name == nullptr ? "a kernel" : name, grid.x, grid.y, grid.z,
                block.x, static_cast<long long>(shared_bytes));
  ctx->error = text;
}

inline cudaStream_t Stream(const Context* ctx) { return static_cast<cudaStream_t>(ctx->stream); }

template <typename... P, typename... A>
void Launch(Context* ctx, dim3 grid, dim3 block, int64_t shared_bytes, void (*kernel)(P...), A... arguments) {
  if (ctx->error != nullptr || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaError_t status = cudaSuccess;
  // Beyond 48 KiB a kernel must be told.
  if (shared_bytes > 48 * 1024)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    kernel<<<grid, block, static_cast<size_t>(shared_bytes), Stream(ctx)>>>(static_cast<P>(arguments)...);
    status = cudaGetLastError();
  }
  NoteLaunch(ctx, status, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes);
}

// What is queued on the stream `waiting` from now on begins after all that `awaited` has so far.
inline void WaitForStream(Context* ctx, void* waiting, void* awaited, void* event) {
  if (ctx->error != nullptr) return;
  const auto mark = static_cast<cudaEvent_t>(event);
  if (NoteError(ctx, cudaEventRecord(mark, static_cast<cudaStream_t>(awaited))))
    NoteError(ctx, cudaStreamWaitEvent(static_cast<cudaStream_t>(waiting), mark, 0));
}

inline void FillBytes(Context* ctx, void* to, uint8_t byte, int64_t bytes) {
  if (ctx->error == nullptr && bytes > 0)
    NoteError(ctx, cudaMemsetAsync(to, byte, static_cast<size_t>(bytes), Stream(ctx)));
}

// The block's dynamic shared memory, aligned to 16 bytes, uninitialized.
template <typename T>
__device__ T* DynamicShared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}

#else

template <typename... P, typename... A>
void Launch(Context* ctx, dim3 grid, dim3 block, int64_t shared_bytes, void (*kernel)(P...), A... arguments) {
  auto thread = [=] { kernel(static_cast<P>(arguments)...); };
  RunGrid(
      ctx->pool, grid, block, shared_bytes, [](void* t) { (*static_cast<decltype(thread)*>(t))(); }, &thread);
}

// One thing after the other anyway.
inline void WaitForStream(Context*, void*, void*, void*) {}

inline void FillBytes(Context*, void* to, uint8_t byte, int64_t bytes) {
  if (bytes > 0) std::memset(to, byte, static_cast<size_t>(bytes));
}

template <typename T>
T* DynamicShared() {
  return static_cast<T*>(DynamicSharedBytes());
}

#endif

// Blocks for `items` when each takes `per_block`, at most so many that a grid stride does the rest. The
// figure must not depend on the device where a reduction's order does.
inline unsigned Blocks(int64_t items, int64_t per_block, int64_t most = 1 << 30) {
  return static_cast<unsigned>(Min(CeilDiv(items, per_block), most));
}

// --- Activation types --------------------------------------------------------------------------------

// Pack rounds to nearest even and holds two values as memory does, the first in the low half.
template <typename Act>
struct ActType;

template <>
struct ActType<BF16> {
  static constexpr DType kType = DType::kBF16;
  static __device__ __forceinline__ float Low(uint32_t pair) { return __uint_as_float(pair << 16); }
  static __device__ __forceinline__ float High(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return RoundBits(low) | RoundBits(high) << 16;
#endif
  }
  static __device__ __forceinline__ uint32_t RoundBits(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;  // NaN
    return (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  }
};

template <>
struct ActType<FP16> {
  static constexpr DType kType = DType::kF16;
#if defined(__CUDA_ARCH__)
  static __device__ __forceinline__ float Low(uint32_t pair) {
    float value;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(pair));
    return value;
  }
  static __device__ __forceinline__ float High(uint32_t pair) {
    float value;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(pair));
    return value;
  }
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    uint32_t pair;
    asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
  }
#elif !defined(__CUDACC__)
  static float Low(uint32_t pair) { return nibble::kernels::ToFloat(FP16{static_cast<uint16_t>(pair)}); }
  static float High(uint32_t pair) {
    return nibble::kernels::ToFloat(FP16{static_cast<uint16_t>(pair >> 16)});
  }
  static uint32_t Pack(float low, float high) {
    return ToFP16(low).bits | static_cast<uint32_t>(ToFP16(high).bits) << 16;
  }
#else  // nvcc's pass for the host only looks
  static __device__ float Low(uint32_t);
  static __device__ float High(uint32_t);
  static __device__ uint32_t Pack(float, float);
#endif
};

// One value, of an activation or float array.
template <typename Act>
__device__ __forceinline__ float Get(const Act* at) {
  return ActType<Act>::Low(at->bits);
}
__device__ __forceinline__ float Get(const float* at) { return *at; }
template <typename Act>
__device__ __forceinline__ void Put(Act* at, float value) {
  at->bits = static_cast<uint16_t>(ActType<Act>::Pack(value, 0));
}
__device__ __forceinline__ void Put(float* at, float value) { *at = value; }

// --- Sixteen bytes at a time ---------------------------------------------------------------------------

constexpr int64_t kVectorBytes = 16;

// Whether sixteen-byte accesses may be used on all of these; the tests pass arrays that are not aligned.
template <typename... T>
bool Aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kVectorBytes == 0) && ...);
}

// A vector in memory, aligned to its size.
template <typename V, typename T>
__device__ __forceinline__ const V& VectorAt(const T* at) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const V*>(at);
#else
  return *AlignedAccess(reinterpret_cast<const V*>(at));
#endif
}

template <typename Act>
__device__ __forceinline__ void Unpack8(float (&values)[8], uint4 word) {
  values[0] = ActType<Act>::Low(word.x), values[1] = ActType<Act>::High(word.x);
  values[2] = ActType<Act>::Low(word.y), values[3] = ActType<Act>::High(word.y);
  values[4] = ActType<Act>::Low(word.z), values[5] = ActType<Act>::High(word.z);
  values[6] = ActType<Act>::Low(word.w), values[7] = ActType<Act>::High(word.w);
}

// Eight values, from at[0 .. left-1] when there are fewer (the others 0). `vector`: `at` is aligned.
template <typename Act>
__device__ __forceinline__ void Load8(float (&values)[8], const Act* at, int64_t left, bool vector) {
  if (vector && left >= 8) {
    Unpack8<Act>(values, VectorAt<uint4>(at));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = i < left ? Get(at + i) : 0.0f;
}

__device__ __forceinline__ void Load8(float (&values)[8], const float* at, int64_t left, bool vector) {
  if (vector && left >= 8) {
    const float4 a = VectorAt<float4>(at), b = VectorAt<float4>(at + 4);
    values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
    values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = i < left ? at[i] : 0.0f;
}

template <typename Act>
__device__ __forceinline__ uint4 Pack8(const float (&values)[8]) {
  return make_uint4(ActType<Act>::Pack(values[0], values[1]), ActType<Act>::Pack(values[2], values[3]),
                    ActType<Act>::Pack(values[4], values[5]), ActType<Act>::Pack(values[6], values[7]));
}

// An ordinary store of sixteen bytes; an assignment may be cut into four.
__device__ __forceinline__ void StoreVector(void* at, uint4 word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(word.x),
               "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
#elif defined(__CUDACC__)  // nvcc's pass for the host only looks
  *static_cast<uint4*>(at) = word;
#else
  *AlignedAccess(static_cast<uint4*>(at)) = word;
#endif
}
__device__ __forceinline__ void StoreVector(float* at, float a, float b, float c, float d) {
  StoreVector(at, make_uint4(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d)));
}

template <typename Act>
__device__ __forceinline__ void Store8(Act* at, const float (&values)[8], int64_t left, bool vector) {
  if (vector && left >= 8) {
    StoreVector(at, Pack8<Act>(values));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) Put(at + i, values[i]);
}

__device__ __forceinline__ void Store8(float* at, const float (&values)[8], int64_t left, bool vector) {
  if (vector && left >= 8) {
    StoreVector(at, values[0], values[1], values[2], values[3]);
    StoreVector(at + 4, values[4], values[5], values[6], values[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) at[i] = values[i];
}

// A frozen array's type is a run-time matter; the branch is the same for all threads.
__device__ __forceinline__ void LoadParam8(float (&values)[8], ParamView view, int64_t first, int64_t left,
                                           bool vector) {
  if (view.type == DType::kF32)
    Load8(values, static_cast<const float*>(view.data) + first, left, vector);
  else if (view.type == DType::kF16)
    Load8(values, static_cast<const FP16*>(view.data) + first, left, vector);
  else
    Load8(values, static_cast<const BF16*>(view.data) + first, left, vector);
}

__device__ __forceinline__ float GetParam(ParamView view, int64_t i) {
  if (view.type == DType::kF32) return static_cast<const float*>(view.data)[i];
  if (view.type == DType::kF16) return Get(static_cast<const FP16*>(view.data) + i);
  return Get(static_cast<const BF16*>(view.data) + i);
}

// --- Reductions ----------------------------------------------------------------------------------------

// Over all lanes of a warp, in one order, the result in every lane.
template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value = value + __shfl_xor_sync(kAllLanes, value, bits);
  return value;
}
__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, bits));
  return value;
}

// Over a block of kThreads in one dimension, in one order, the result in every thread. All must come.
template <int kThreads, typename T>
__device__ __forceinline__ T BlockSum(T value) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  value = WarpSum(value);
  if constexpr (kThreads > 32) {
    __shared__ T warps[kThreads / 32];
    __syncthreads();  // the last sum's readers are done
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = warps[0];
#pragma unroll
    for (int i = 1; i < kThreads / 32; ++i) value = value + warps[i];
  }
  return value;
}

}  // namespace nibble::kernels::NIBBLE_CUDA
