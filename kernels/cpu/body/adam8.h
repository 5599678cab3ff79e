// AdamW with 8-bit moments, bit for bit what ref does: every operation rounded by itself.
#pragma once

#include "kernels/cpu/body/elementwise.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// A dynamic map, and the midpoints between its entries as a tree for bisection: level l has 2^l of them, so
// that a step is a look-up in registers. The first levels fill 16 entries.
struct CodeSearch {
  explicit CodeSearch(const float* values) : map(values) {
    for (int level = 0; level < kLevels; ++level) {
      float* const entries = tree + First(level);
      const int step = 128 >> level;
      for (int i = 0; i < 1 << level; ++i) {
        const int at = 2 * step * i + step - 1;
        entries[i] = (values[at] + values[at + 1]) / 2;
      }
    }
  }
  NIBBLE_INLINE F32 Values(const uint8_t* codes) const { return Lookup<256>(map, WidenBytes(codes)); }
  // How many midpoints lie strictly below each value.
  NIBBLE_INLINE I32 Codes(F32 values) const { return Descend<0>(values, SetInt(0)); }

 private:
  static constexpr int kLevels = 8;
  static constexpr int First(int level) { return level < 5 ? 16 * level : 16 * 4 + (1 << level) - 16; }
  template <int kLevel>
  NIBBLE_INLINE I32 Descend(F32 values, I32 code) const {
    if constexpr (kLevel == kLevels) {
      return code;
    } else {
      const F32 middle = Lookup<1 << kLevel>(tree + First(kLevel), code);
      return Descend<kLevel + 1>(values, AddWhereAbove(AddInt(code, code), values, middle, 1));
    }
  }
  const float* map;
  alignas(64) float tree[16 * 4 + 256 - 16] = {};
};

// Codes of a block and its absmax; a block of zeros gets the code that 0 has.
static void QuantizeMoments(const CodeSearch& search, const float* values, int64_t count, uint8_t* codes,
                            float* absmax) {
  F32 largest = Zero();
  for (int64_t i = 0; i < count; i += kLanes) largest = Max(largest, Abs(LoadSome(values + i, count - i)));
  *absmax = MaxLanes(largest);
  const bool zeros = !(*absmax > 0);
  const F32 divisor = Set1(zeros ? 1.0f : *absmax);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 scaled = zeros ? Zero() : Div(LoadSome(values + i, count - i), divisor);
    alignas(64) uint8_t part[kLanes];
    NarrowBytes(part, search.Codes(scaled));
    const int64_t lanes = count - i < kLanes ? count - i : kLanes;
    std::memcpy(codes + i, part, static_cast<size_t>(lanes));
  }
}

static void AdamW8(Context* ctx, void* p, const void* g, const Adam8State& state, const AdamWArgs& args) {
  const CodeSearch first_search(state.signed_map), second_search(state.unsigned_map);
  const AdamWFactors by(args);
  const int64_t blocks = (args.count + kAdam8Block - 1) / kAdam8Block;
  RunRows(ctx, blocks, 4 * kAdam8Block, [&](int64_t block) {
    const int64_t first = block * kAdam8Block;
    const int64_t count = args.count - first < kAdam8Block ? args.count - first : kAdam8Block;
    float* const param = static_cast<float*>(p) + first;
    const float* const gradients = static_cast<const float*>(g) + first;
    alignas(64) float m[kAdam8Block], v[kAdam8Block];
    const F32 m_scale = Set1(state.m_absmax[block]), v_scale = Set1(state.v_absmax[block]);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t lanes = count - i < kLanes ? count - i : kLanes;
      uint8_t m_codes[kLanes] = {}, v_codes[kLanes] = {};
      std::memcpy(m_codes, state.m + first + i, static_cast<size_t>(lanes));
      std::memcpy(v_codes, state.v + first + i, static_cast<size_t>(lanes));
      const F32 gradient = Mul(LoadSome(gradients + i, lanes), by.clip);
      const F32 m1 =
          Add(Mul(by.beta1, Mul(first_search.Values(m_codes), m_scale)), Mul(by.rest1, gradient));
      const F32 m2 = Add(Mul(by.beta2, Mul(second_search.Values(v_codes), v_scale)),
                         Mul(Mul(by.rest2, gradient), gradient));
      const F32 value = LoadSome(param + i, lanes);
      StoreSome(param + i, by.Step(Sub(value, Mul(by.decay, value)), m1, m2), lanes);
      Store(m + i, m1);
      Store(v + i, m2);
    }
    QuantizeMoments(first_search, m, count, state.m + first, state.m_absmax + block);
    QuantizeMoments(second_search, v, count, state.v + first, state.v_absmax + block);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
