// Reference AdamW with 8-bit moments.
//
// Every operation is rounded by itself (no fused multiply-adds), in the order written here, so that all
// tables in float come to the same codes and the same parameters bit for bit.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/ref/common.h"

namespace nibble::kernels::ref {

template <typename Real>
struct Adam8 {
  static void Update(Context* ctx, void* p, const void* g, const Adam8State& state, const AdamWArgs& args) {
    KERNEL_CHECK(args.step >= 1);
    float signed_middle[255], unsigned_middle[255];
    Midpoints(state.signed_map, signed_middle);
    Midpoints(state.unsigned_map, unsigned_middle);
    const auto steps = static_cast<double>(args.step);
    const auto beta1 = static_cast<Real>(args.beta1), beta2 = static_cast<Real>(args.beta2);
    const auto rest1 = static_cast<Real>(1 - args.beta1), rest2 = static_cast<Real>(1 - args.beta2);
    const auto rate = static_cast<Real>(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    const auto correction = static_cast<Real>(1 / (1 - std::pow(args.beta2, steps)));
    const auto decay = static_cast<Real>(args.learning_rate * args.weight_decay);
    const auto epsilon = static_cast<Real>(args.epsilon);
    const auto clip = static_cast<Real>(args.gradient_scale);
    RunPieces(ctx->pool, (args.count + kAdam8Block - 1) / kAdam8Block, [&](int64_t block, int) {
      const int64_t first = block * kAdam8Block;
      const int64_t count = std::min(kAdam8Block, args.count - first);
      Real* param = static_cast<Real*>(p) + first;
      const Real* gradients = static_cast<const Real*>(g) + first;
      Real m[kAdam8Block], v[kAdam8Block];
      for (int64_t i = 0; i < count; ++i) {
        const Real gradient = gradients[i] * clip;
        const Real old_m = static_cast<Real>(state.signed_map[state.m[first + i]]) *
                           static_cast<Real>(state.m_absmax[block]);
        const Real old_v = static_cast<Real>(state.unsigned_map[state.v[first + i]]) *
                           static_cast<Real>(state.v_absmax[block]);
        m[i] = beta1 * old_m + rest1 * gradient;
        v[i] = beta2 * old_v + rest2 * gradient * gradient;
        param[i] -= decay * param[i];
        param[i] -= rate * m[i] / (std::sqrt(v[i] * correction) + epsilon);
      }
      Quantize(m, count, signed_middle, state.m + first, state.m_absmax + block);
      Quantize(v, count, unsigned_middle, state.v + first, state.v_absmax + block);
    });
  }

 private:
  static void Midpoints(const float* map, float* middle) {
    for (int i = 0; i < 255; ++i) middle[i] = (map[i] + map[i + 1]) / 2;
  }

  // A block of zeros gets the code that 0 has.
  static void Quantize(const Real* values, int64_t count, const float* middle, uint8_t* codes,
                       float* absmax) {
    Real largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
    *absmax = static_cast<float>(largest);
    for (int64_t i = 0; i < count; ++i) {
      const Real scaled = largest > 0 ? values[i] / largest : Real{0};
      codes[i] = static_cast<uint8_t>(std::lower_bound(middle, middle + 255, scaled) - middle);
    }
  }
};

}  // namespace nibble::kernels::ref
