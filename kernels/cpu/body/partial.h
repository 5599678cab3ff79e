// Vectors of which only the first lanes count, and frozen parameters in the type they are stored in.
#pragma once

#include "kernels/cpu/body/simd.h"
#include "kernels/kernel_table.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// `lanes` may be more than a vector has.
template <typename T>
NIBBLE_INLINE F32 LoadSome(const T* p, int64_t lanes) {
  return lanes >= kLanes ? Load(p) : Load(p, lanes);
}
template <typename T>
NIBBLE_INLINE void StoreSome(T* p, F32 a, int64_t lanes) {
  if (lanes >= kLanes)
    Store(p, a);
  else
    Store(p, a, lanes);
}

// What an op checks before it reads parameters: all other types would be taken for floats.
static bool IsReadable(const ParamView& view) {
  return view.type == DType::kBF16 || view.type == DType::kF32;
}
NIBBLE_INLINE F32 LoadParam(const ParamView& view, int64_t at, int64_t lanes) {
  if (view.type == DType::kBF16) return LoadSome(static_cast<const BF16*>(view.data) + at, lanes);
  return LoadSome(static_cast<const float*>(view.data) + at, lanes);
}
// fn(weights) with the weights in their own type.
template <typename F>
static void WithParam(const ParamView& view, const F& fn) {
  if (view.type == DType::kBF16)
    fn(static_cast<const BF16*>(view.data));
  else
    fn(static_cast<const float*>(view.data));
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
