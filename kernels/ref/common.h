// What the reference ops share: reading and writing the storage types, dropout, and slices of workspace.
//
// The reference ops are templates on the stored activation type and on the real type they compute in:
// <float, float> and <double, double> are the ref tables, <BF16, float> is the portable cpu body.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/check.h"
#include "kernels/counter.h"
#include "kernels/cpu/workspace.h"
#include "kernels/fp16.h"
#include "kernels/kernel_table.h"
#include "kernels/nf4.h"
#include "kernels/parallel.h"

namespace nibble::kernels::ref {

template <typename Real>
Real Get(const BF16* values, int64_t i) { return static_cast<Real>(ToFloat(values[i])); }
template <typename Real>
Real Get(const float* values, int64_t i) { return static_cast<Real>(values[i]); }
template <typename Real>
Real Get(const double* values, int64_t i) { return static_cast<Real>(values[i]); }

inline void Put(BF16* values, int64_t i, float value) { values[i] = ToBF16(value); }
inline void Put(float* values, int64_t i, float value) { values[i] = value; }
inline void Put(double* values, int64_t i, double value) { values[i] = value; }

template <typename Real>
Real GetParam(const ParamView& view, int64_t i) {
  switch (view.type) {
    case DType::kF32: return static_cast<Real>(static_cast<const float*>(view.data)[i]);
    case DType::kBF16: return static_cast<Real>(ToFloat(static_cast<const BF16*>(view.data)[i]));
    case DType::kF64: return static_cast<Real>(static_cast<const double*>(view.data)[i]);
    case DType::kF16: return static_cast<Real>(ToFloat(static_cast<const FP16*>(view.data)[i]));
  }
  return 0;
}

// What element (row, column) of a module's input is multiplied with.
template <typename Real>
Real DropoutFactor(const DropoutKey& key, int64_t row, int64_t column, int64_t columns) {
  if (key.p == 0) return 1;
  const auto index = static_cast<uint64_t>(row * columns + column);
  return CounterKeep(key.seed, key.stream, index, key.p) ? Real{1} / (Real{1} - static_cast<Real>(key.p))
                                                         : Real{0};
}

// A thread's private slice of the first bytes of the workspace.
template <typename T>
T* ThreadSlice(Context* ctx, int thread, int64_t count) {
  const int64_t bytes = RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
  KERNEL_CHECK(bytes * PoolThreads(ctx->pool) <= ctx->workspace_bytes);
  return reinterpret_cast<T*>(static_cast<char*>(ctx->workspace) + bytes * thread);
}

}  // namespace nibble::kernels::ref
