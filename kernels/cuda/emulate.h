// CUDA's kernel language on the host: with this header a .cu file is ordinary C++, and its kernels run where
// there is no GPU, under a debugger, the sanitizers and the parity tests.
//
// What a kernel may use is what is here: the built-in indices, __shared__ arrays and one dynamic one,
// __syncthreads, the *_sync warp operations, vector types and a handful of intrinsics.
// A kernel that needs more adds it here, in the meaning the CUDA programming guide gives it. Tensor-core
// instructions have their twins in mma.h and emulate_wgmma.h; a vendor's library is not there.
//
// How it runs. The threads of a block are fibers: each has a stack of its own and runs until it waits, at a
// barrier or for the other lanes of a warp operation; then the next one runs (emulate.cc). So barriers may
// be anywhere, also inside divergent code, as long as the guide allows it. What it forbids stops the process
// with a sentence: a warp operation that a named lane never reaches with that mask, threads of a block at
// different barriers, dynamic shared memory written beyond its end, a vector access that is not aligned, a
// launch beyond a device's limits. The order of threads and warps changes from block to block and from launch
// to launch, so that a missing barrier shows as a wrong result; shared memory starts out as NaN where it is
// dynamic. Under the thread sanitizer a missing barrier is reported whatever the order was
// (emulate_sanitizers.h).
//
// Threads of the host. Blocks are spread over the context's pool, one block at a time on each: __shared__ is
// thread_local. Fibers stay on the thread that started their block.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/check.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local

// --- Built-in types and variables ----------------------------------------------------------------

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim, gridDim;

namespace nibble::kernels {
class ThreadPool;
}

namespace nibble::kernels::cuda_emulated {

// Runs every block of a grid; `thread` is called once for every thread, with the variables above set.
void RunGrid(ThreadPool* pool, dim3 grid, dim3 block, int64_t shared_bytes, void (*thread)(void*),
             void* argument);

// The running block's dynamic shared memory, aligned to 16 bytes, as long as the launch said.
void* DynamicSharedBytes();
int64_t DynamicSharedSize();

// The next launch's orders are those of the first one of the process. For tests of the emulation.
void BeginOrders();
// Since then.
uint64_t Launches();

// `place` tells barriers of a kernel from each other.
void SyncThreads(int place);

// Waits until every running lane of `mask` has brought a value with the same mask. Returns the
// values, 32 of them; lanes that are not there have all bits set. Valid until this lane's next operation.
// orders_memory: what each lane did before comes before what the others do after.
const uint64_t* ExchangeInWarp(unsigned mask, uint64_t value, bool orders_memory = false);

inline unsigned LaneId() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

template <typename T>
T ReadLane(const uint64_t* values, unsigned lane) {
  T value;
  std::memcpy(&value, &values[lane], sizeof value);
  return value;
}

template <typename T>
const uint64_t* Bring(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return ExchangeInWarp(mask, bits);
}

}  // namespace nibble::kernels::cuda_emulated

// --- Barriers and warp operations ------------------------------------------------------------------

inline void __syncthreads(int place = __builtin_LINE()) {
  nibble::kernels::cuda_emulated::SyncThreads(place);
}
inline void __syncwarp(unsigned mask = ~0u) { nibble::kernels::cuda_emulated::ExchangeInWarp(mask, 0, true); }

// Of the lanes 0 .. 31 in pieces of `width` (a power of two); a source outside of the piece is oneself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  using namespace nibble::kernels::cuda_emulated;
  const unsigned lane = LaneId(), base = lane & ~static_cast<unsigned>(width - 1);
  return ReadLane<T>(Bring(mask, value),
                     base | (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  using namespace nibble::kernels::cuda_emulated;
  const unsigned lane = LaneId(), other = lane ^ static_cast<unsigned>(bits);
  const unsigned end = (lane & ~static_cast<unsigned>(width - 1)) + static_cast<unsigned>(width);
  return ReadLane<T>(Bring(mask, value), other < end ? other : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace nibble::kernels::cuda_emulated;
  const unsigned lane = LaneId(),
                 end = (lane & ~static_cast<unsigned>(width - 1)) + static_cast<unsigned>(width);
  return ReadLane<T>(Bring(mask, value), lane + delta < end ? lane + delta : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace nibble::kernels::cuda_emulated;
  const unsigned lane = LaneId(), base = lane & ~static_cast<unsigned>(width - 1);
  return ReadLane<T>(Bring(mask, value), lane >= base + delta ? lane - delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* values = nibble::kernels::cuda_emulated::Bring(mask, predicate != 0 ? 1 : 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) != 0 && values[lane] == 1) ballot |= 1u << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

// --- Memory ----------------------------------------------------------------------------------------

namespace nibble::kernels::cuda_emulated {

// A device's accesses must be aligned to what they access.
template <typename T>
T* AlignedAccess(T* at) {
  const bool access_is_aligned = reinterpret_cast<uintptr_t>(at) % sizeof(T) == 0;
  KERNEL_CHECK(access_is_aligned);
  return at;
}

}  // namespace nibble::kernels::cuda_emulated

template <typename T>
T __ldg(const T* at) {
  return *nibble::kernels::cuda_emulated::AlignedAccess(at);
}
template <typename T>
T __ldcs(const T* at) {
  return *nibble::kernels::cuda_emulated::AlignedAccess(at);
}

// --- Arithmetic --------------------------------------------------------------------------------------

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
// On a GPU these are approximate, to about two units in the last place.
inline float __expf(float a) { return std::exp(a); }
inline float __fdividef(float a, float b) { return a / b; }

inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline int __popc(unsigned a) { return std::popcount(a); }
// Byte i of the result is byte (selector nibble i, three bits of it) of the eight bytes b:a.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; ++i)
    out |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return out;
}
