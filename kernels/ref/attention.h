// Reference attention: scores are recomputed instead of stored, so no s x s array exists anywhere.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/ref/common.h"

namespace nibble::kernels::ref {

constexpr int64_t kMaxHeadDim = 1024;  // what a base may have: engine/spec/model_config.cc

template <typename Act, typename Real>
struct Attention {
  static void Forward(Context* ctx, void* out, void* lse, const void* q, const void* k, const void* v,
                      const AttentionArgs& args) {
    Check(args);
    RunPieces(ctx->pool, args.m * args.heads, [&](int64_t piece, int) {
      const int64_t row = piece / args.heads, head = piece % args.heads;
      const int64_t kv = head / (args.heads / args.kv_heads);
      const Real log_sum = OneQuery(
          static_cast<Act*>(out) + piece * args.head_dim,
          static_cast<const Act*>(q) + piece * args.head_dim, static_cast<const Act*>(k),
          static_cast<const Act*>(v), FirstKey(args, DocumentStart(args, row), row), row + 1, kv, args);
      static_cast<Real*>(lse)[piece] = log_sum;
    });
  }

  static void Decode(Context* ctx, void* out, const void* q, const void* k_cache, const void* v_cache,
                     int64_t length, const AttentionArgs& args) {
    KERNEL_CHECK(length > 0 && args.head_dim <= kMaxHeadDim);
    RunPieces(ctx->pool, args.heads, [&](int64_t head, int) {
      OneQuery(static_cast<Act*>(out) + head * args.head_dim,
               static_cast<const Act*>(q) + head * args.head_dim, static_cast<const Act*>(k_cache),
               static_cast<const Act*>(v_cache), FirstKey(args, 0, length - 1), length,
               head / (args.heads / args.kv_heads), args);
    });
  }

  static void Backward(Context* ctx, void* dq, void* dk, void* dv, const void* dout, const void* out,
                       const void* lse, const void* q, const void* k, const void* v,
                       const AttentionArgs& args) {
    Check(args);
    const Tensors t{static_cast<const Act*>(dout), static_cast<const Act*>(out),
                    static_cast<const Real*>(lse), static_cast<const Act*>(q),
                    static_cast<const Act*>(k),    static_cast<const Act*>(v)};
    const int64_t dim = args.head_dim, group = args.heads / args.kv_heads;
    RunPieces(ctx->pool, args.m * args.heads, [&](int64_t piece, int) {
      const int64_t row = piece / args.heads, head = piece % args.heads;
      Real sums[kMaxHeadDim] = {};
      const Real delta = Dot(t.dout + piece * dim, t.out + piece * dim, dim);
      for (int64_t key = FirstKey(args, DocumentStart(args, row), row); key <= row; ++key) {
        const Gradient g = ScoreGradient(t, row, key, head, delta, args);
        const Act* key_row = t.k + (key * args.kv_heads + head / group) * dim;
        for (int64_t i = 0; i < dim; ++i) sums[i] += g.score * Get<Real>(key_row, i);
      }
      for (int64_t i = 0; i < dim; ++i) Put(static_cast<Act*>(dq), piece * dim + i, sums[i]);
    });
    RunPieces(ctx->pool, args.m * args.kv_heads, [&](int64_t piece, int) {
      const int64_t key = piece / args.kv_heads, kv = piece % args.kv_heads;
      int64_t end = DocumentEnd(args, key);
      if (args.window > 0) end = std::min(end, key + args.window);
      Real key_sums[kMaxHeadDim] = {}, value_sums[kMaxHeadDim] = {};
      for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
        for (int64_t row = key; row < end; ++row) {
          const int64_t at = (row * args.heads + head) * dim;
          const Real delta = Dot(t.dout + at, t.out + at, dim);
          const Gradient g = ScoreGradient(t, row, key, head, delta, args);
          for (int64_t i = 0; i < dim; ++i) {
            key_sums[i] += g.score * Get<Real>(t.q, at + i);
            value_sums[i] += g.probability * Get<Real>(t.dout, at + i);
          }
        }
      }
      for (int64_t i = 0; i < dim; ++i) {
        Put(static_cast<Act*>(dk), piece * dim + i, key_sums[i]);
        Put(static_cast<Act*>(dv), piece * dim + i, value_sums[i]);
      }
    });
  }

 private:
  struct Tensors {
    const Act* dout;
    const Act* out;
    const Real* lse;
    const Act* q;
    const Act* k;
    const Act* v;
  };
  struct Gradient {
    Real probability;
    Real score;  // d loss / d (q . k)
  };

  static void Check(const AttentionArgs& args) {
    KERNEL_CHECK(args.heads > 0 && args.kv_heads > 0 && args.heads % args.kv_heads == 0);
    KERNEL_CHECK(args.head_dim > 0 && args.head_dim <= kMaxHeadDim && args.soft_cap >= 0);
    KERNEL_CHECK(args.documents > 0 && args.starts[0] == 0 && args.starts[args.documents] == args.m);
  }

  static int64_t DocumentStart(const AttentionArgs& args, int64_t row) {
    return *(std::upper_bound(args.starts, args.starts + args.documents + 1, row) - 1);
  }
  static int64_t DocumentEnd(const AttentionArgs& args, int64_t row) {
    return *std::upper_bound(args.starts, args.starts + args.documents + 1, row);
  }
  static int64_t FirstKey(const AttentionArgs& args, int64_t start, int64_t row) {
    return args.window > 0 ? std::max(start, row - args.window + 1) : start;
  }

  static Real Dot(const Act* a, const Act* b, int64_t count) {
    Real sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += Get<Real>(a, i) * Get<Real>(b, i);
    return sum;
  }

  static Real Capped(Real score, const AttentionArgs& args) {
    const auto cap = static_cast<Real>(args.soft_cap);
    return cap > 0 ? cap * std::tanh(score / cap) : score;
  }

  // One query against keys first .. end-1; the log of the sum of exponentials.
  static Real OneQuery(Act* out, const Act* q, const Act* k, const Act* v, int64_t first, int64_t end,
                       int64_t kv, const AttentionArgs& args) {
    const int64_t dim = args.head_dim;
    const auto scale = static_cast<Real>(args.scale);
    const auto score = [&](int64_t key) {
      return Capped(Dot(q, k + (key * args.kv_heads + kv) * dim, dim) * scale, args);
    };
    Real largest = -std::numeric_limits<Real>::infinity();
    for (int64_t key = first; key < end; ++key) largest = std::max(largest, score(key));
    Real total = 0;
    Real sums[kMaxHeadDim] = {};
    for (int64_t key = first; key < end; ++key) {
      const Real weight = std::exp(score(key) - largest);
      total += weight;
      const Act* value = v + (key * args.kv_heads + kv) * dim;
      for (int64_t i = 0; i < dim; ++i) sums[i] += weight * Get<Real>(value, i);
    }
    for (int64_t i = 0; i < dim; ++i) Put(out, i, sums[i] / total);
    return largest + std::log(total);
  }

  static Gradient ScoreGradient(const Tensors& t, int64_t row, int64_t key, int64_t head, Real delta,
                                const AttentionArgs& args) {
    const int64_t dim = args.head_dim;
    const int64_t at = row * args.heads + head;
    const int64_t kv = key * args.kv_heads + head / (args.heads / args.kv_heads);
    const auto scale = static_cast<Real>(args.scale);
    const Real score = Capped(Dot(t.q + at * dim, t.k + kv * dim, dim) * scale, args);
    const Real p = std::exp(score - t.lse[at]);
    const Real dp = Dot(t.dout + at * dim, t.v + kv * dim, dim);
    Real slope = scale;  // of the capped score by q . k
    if (args.soft_cap > 0) {
      const Real share = score / static_cast<Real>(args.soft_cap);
      slope *= 1 - share * share;
    }
    return {p, p * (dp - delta) * slope};
  }
};

}  // namespace nibble::kernels::ref
