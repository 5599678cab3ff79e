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

struct DecodeHead {
  const BF16* query;
  float top = -INFINITY;  // exponent of two
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

// Scores of `count` keys become weights; sums and total shrink when the maximum grows.
static void DecodeWeights(DecodeHead& head, const BF16* keys, int64_t kv_width, int64_t count,
                          const AttentionArgs& args) {
  alignas(64) float scores[kDecodeKeys];
  const int64_t dim = args.head_dim, end = RoundUp(count, kLanes);
  for (int64_t j = 0; j < end; j += kLanes) {
    F32 parts[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const BF16* key = keys + (j + i) * kv_width;
      FetchRow(key, kv_width, dim);
      parts[i] = j + i < count ? DotLanes(head.query, key, dim) : Zero();
    }
    I32 across[kLanes];
    std::memcpy(across, parts, sizeof parts);
    Transpose(across);
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) {
        const F32 sum = Add(AsFloats(across[i]), AsFloats(across[i + width]));
        std::memcpy(&across[i], &sum, sizeof sum);
      }
    Store(scores + j, AsFloats(across[0]));
  }
  if (args.soft_cap > 0) CapScores(scores, 0, end, args);
  const float scale = ExponentScale(args);
  F32 largest = Set1(-INFINITY);
  for (int64_t v = 0; v < end; v += kLanes)
    largest = Max(largest, KeepLanes(Load(scores + v), 0, count - v, Set1(-INFINITY)));
  const float top = MaxLanes(largest) * scale;
  F32 total = Load(head.total);
  if (top > head.top) {
    const F32 shrink = Set1(std::exp2(head.top - top));  // 0 the first time
    total = Mul(total, shrink);
    for (int64_t d = 0; d < dim; d += kLanes) Store(head.sums + d, Mul(Load(head.sums + d), shrink));
    head.top = top;
  }
  for (int64_t v = 0; v < end; v += kLanes) {
    const F32 p = Exp2(FmaSub(Load(scores + v), Set1(scale), Set1(head.top)));
    const F32 kept = KeepLanes(p, 0, count - v, Zero());
    total = Add(total, kept);
    Store(head.weights + v, kept);
  }
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
    for (int64_t h = 0; h < count; ++h) heads[h].query = static_cast<const BF16*>(q) + (head0 + h) * dim;
    for (int64_t key0 = first; key0 < length; key0 += kDecodeKeys) {
      const int64_t keys = length - key0 < kDecodeKeys ? length - key0 : kDecodeKeys;
      const int64_t at = key0 * kv_width + kv * dim;
      for (int64_t h = 0; h < count; ++h)
        DecodeWeights(heads[h], static_cast<const BF16*>(k_cache) + at, kv_width, keys, args);
      const BF16* values = static_cast<const BF16*>(v_cache) + at;
      switch (count) {
        case 1: AddValues<1>(heads, values, kv_width, keys, dim); break;
        case 2: AddValues<2>(heads, values, kv_width, keys, dim); break;
        case 3: AddValues<3>(heads, values, kv_width, keys, dim); break;
        default: AddValues<4>(heads, values, kv_width, keys, dim); break;
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
