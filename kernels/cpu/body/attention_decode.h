// Attention of one new token against a cache.
//
// A piece is up to four of the query heads that share a key/value head: a block of 64 keys is read from
// memory once for them. Scores are sums over registers, kLanes keys at a time, so that one transposition
// adds up the lanes of all of them.
#pragma once

#include "kernels/cpu/body/attention.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kDecodeHeads = 4;   // of a piece
constexpr int64_t kDecodeKeys = 64;   // of a block
constexpr int64_t kDecodeDim = 1024;  // at most
constexpr int kDecodeVectors = kLanes == 16 ? 4 : 2;  // of a head summed together

// Whether a key becomes floats once for all heads. With AVX-512 widening is cheap, or the dot takes bf16 as
// it is.
constexpr bool kSharesKeys = kLanes == 8;

struct DecodeHead {
  const BF16* query;
  alignas(64) float query_values[kSharesKeys ? kDecodeDim + kLanes : 1] = {};
  alignas(64) float scores[kDecodeKeys];
  float largest = -INFINITY;  // score
  alignas(64) float weights[kDecodeKeys];
  alignas(64) float total[kLanes] = {};
  alignas(64) float sums[kDecodeDim + kDecodeVectors * kLanes] = {};
};

// The row of a cache that is used sixteen tokens from now: rows of one head lie far apart.
NIBBLE_INLINE void FetchRow(const BF16* row, int64_t kv_width, int64_t dim) {
  for (int64_t d = 0; d < dim; d += 32) __builtin_prefetch(row + 16 * kv_width + d);
}

NIBBLE_INLINE F32 DotLanes(const BF16* a, const BF16* b, int64_t dim) {
  F32 dot = Zero();
  int64_t d = 0;
#if defined(__AVX512BF16__)
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes)
    dot = MulAdd((F32)LoadInt(a + d), (F32)LoadInt(b + d), dot);
#endif
  for (; d < dim; d += kLanes) dot = Fma(LoadSome(a + d, dim - d), LoadSome(b + d, dim - d), dot);
  return dot;
}

// The sums of the lanes of kLanes dots.
NIBBLE_INLINE void StoreSums(const F32* parts, float* sums) {
  I32 across[kLanes];
  std::memcpy(across, parts, sizeof across);
  Transpose(across);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) {
      const F32 sum = Add(AsFloats(across[i]), AsFloats(across[i + width]));
      std::memcpy(&across[i], &sum, sizeof sum);
    }
  Store(sums, AsFloats(across[0]));
}

// A key's dots with the queries of kHeads heads, by lanes: every sum has the same order however many they
// are.
template <int kHeads>
NIBBLE_INLINE void Dots(const DecodeHead* heads, const BF16* key, int64_t dim, F32* dots) {
  if constexpr (kSharesKeys) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      const F32 values = LoadSome(key + d, dim - d);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) dots[h] = Fma(Load(heads[h].query_values + d), values, dots[h]);
    }
  } else {
    for (int h = 0; h < kHeads; ++h) dots[h] = DotLanes(heads[h].query, key, dim);
  }
}

// Products of the heads' queries with `count` keys.
template <int kHeads>
static void DecodeScores(DecodeHead* heads, const BF16* keys, int64_t kv_width, int64_t count, int64_t dim) {
  for (int64_t j = 0; j < RoundUp(count, kLanes); j += kLanes) {
    F32 parts[kHeads][kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const BF16* key = keys + (j + i) * kv_width;
      FetchRow(key, kv_width, dim);
      F32 dots[kHeads];
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) dots[h] = Zero();
      if (j + i < count) Dots<kHeads>(heads, key, dim, dots);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) parts[h][i] = dots[h];
    }
    for (int h = 0; h < kHeads; ++h) StoreSums(parts[h], heads[h].scores + j);
  }
}

// Scores of `count` keys become weights; sums and total shrink when the maximum grows.
static void DecodeWeights(DecodeHead& head, int64_t count, const AttentionArgs& args) {
  float* const scores = head.scores;
  const int64_t dim = args.head_dim, end = RoundUp(count, kLanes);
  if (args.soft_cap > 0) CapScores(scores, 0, end, args);
  const float scale = ExponentScale(args);
  F32 largest = Set1(-INFINITY);
  for (int64_t v = 0; v < end; v += kLanes)
    largest = Max(largest, KeepLanes(Load(scores + v), 0, count - v, Set1(-INFINITY)));
  const float top = MaxLanes(largest);
  F32 total = Load(head.total);
  if (top > head.largest) {
    const F32 shrink = Set1(ExponentBase(head.largest, scale).ShrinkTo({top, scale}));  // 0 the first time
    total = Mul(total, shrink);
    for (int64_t d = 0; d < dim; d += kLanes) Store(head.sums + d, Mul(Load(head.sums + d), shrink));
    head.largest = top;
  }
  WithWeights(scale, {head.largest, scale}, [&](const auto& weight_of) __attribute__((always_inline)) {
    for (int64_t v = 0; v < end; v += kLanes) {
      const F32 kept = KeepLanes(weight_of(Load(scores + v)), 0, count - v, Zero());
      total = Add(total, kept);
      Store(head.weights + v, kept);
    }
  });
  Store(head.total, total);
}

// sums += weights * values, for kHeads heads at once.
template <int kHeads>
static void AddValues(DecodeHead* heads, const BF16* values, int64_t kv_width, int64_t count, int64_t dim) {
  for (int64_t d = 0; d < dim; d += kDecodeVectors * kLanes) {
    F32 sums[kHeads][kDecodeVectors];
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kDecodeVectors; ++v) sums[h][v] = Load(heads[h].sums + d + v * kLanes);
    const BF16* at = values + d;
    const bool whole = d + kDecodeVectors * kLanes <= dim;
    for (int64_t j = 0; j < count; ++j, at += kv_width) {
      if (d == 0) FetchRow(at, kv_width, dim);
      F32 row[kDecodeVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kDecodeVectors; ++v)
        row[v] = whole ? Load(at + v * kLanes) : Load(at + v * kLanes, dim - d - v * kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const F32 weight = Set1(heads[h].weights[j]);
#pragma GCC unroll 4
        for (int v = 0; v < kDecodeVectors; ++v) sums[h][v] = Fma(weight, row[v], sums[h][v]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kDecodeVectors; ++v) Store(heads[h].sums + d + v * kLanes, sums[h][v]);
  }
}

static void AttentionDecode(Context* ctx, void* out, const void* q, const void* k_cache,
                            const void* v_cache, int64_t length, const AttentionArgs& args) {
  const int64_t dim = args.head_dim, group = args.heads / args.kv_heads, kv_width = args.kv_heads * dim;
  KERNEL_CHECK(length > 0 && args.heads % args.kv_heads == 0 && dim <= kDecodeDim);
  const int64_t first = args.window > 0 && length > args.window ? length - args.window : 0;
  const int64_t slices = (group + kDecodeHeads - 1) / kDecodeHeads;
  RunPieces(ctx->pool, args.kv_heads * slices, [&](int64_t piece, int) {
    const int64_t kv = piece / slices, slice = piece % slices * kDecodeHeads;
    const int64_t count = group - slice < kDecodeHeads ? group - slice : kDecodeHeads;
    const int64_t head0 = kv * group + slice;
    DecodeHead heads[kDecodeHeads];
    for (int64_t h = 0; h < count; ++h) {
      heads[h].query = static_cast<const BF16*>(q) + (head0 + h) * dim;
      if constexpr (kSharesKeys)
        for (int64_t d = 0; d < dim; ++d) heads[h].query_values[d] = ToFloat(heads[h].query[d]);
    }
    for (int64_t key0 = first; key0 < length; key0 += kDecodeKeys) {
      const int64_t keys = length - key0 < kDecodeKeys ? length - key0 : kDecodeKeys;
      const int64_t at = key0 * kv_width + kv * dim;
      const BF16* values = static_cast<const BF16*>(v_cache) + at;
      const auto together = [&]<int kHeads>() {
        const BF16* const cached = static_cast<const BF16*>(k_cache) + at;
        if constexpr (kSharesKeys) DecodeScores<kHeads>(heads, cached, kv_width, keys, dim);
        for (int h = 0; h < kHeads; ++h) {
          if constexpr (!kSharesKeys) DecodeScores<1>(heads + h, cached, kv_width, keys, dim);
          DecodeWeights(heads[h], keys, args);
        }
        AddValues<kHeads>(heads, values, kv_width, keys, dim);
      };
      switch (count) {
        case 1: together.template operator()<1>(); break;
        case 2: together.template operator()<2>(); break;
        case 3: together.template operator()<3>(); break;
        default: together.template operator()<4>(); break;
      }
    }
    for (int64_t h = 0; h < count; ++h) {
      const F32 inverse = Set1(1.0f / SumLanes(Load(heads[h].total)));
      BF16* const to = static_cast<BF16*>(out) + (head0 + h) * dim;
      for (int64_t d = 0; d < dim; d += kLanes)
        StoreSome(to + d, Mul(Load(heads[h].sums + d), inverse), dim - d);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
