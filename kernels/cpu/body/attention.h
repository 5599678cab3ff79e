// What attention's forward, backward and decode share.
//
// A block is 192 keys (forward) or 192 queries and keys (backward). Inside a block everything goes by the
// rows of one micro-kernel tile: scores, softmax and the product with the values of 12 rows stay in the
// first-level cache, and tiles that the causal mask empties are not computed.
//
// Exponentials are powers of two: scores are scaled by scale * log2(e) in the one multiply-add that also
// subtracts the maximum.
#pragma once

#include "kernels/cpu/body/elementwise.h"
#include "kernels/cpu/body/gemm.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kBlock = kAttentionBlock;
static_assert(kBlock % kTileColumns == 0);
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

// Hands out aligned parts of a thread's slice of the workspace.
class Arena {
 public:
  Arena(Context* ctx, int64_t slice_bytes, int thread)
      : at_(static_cast<char*>(ctx->workspace) + slice_bytes * thread), end_(at_ + slice_bytes) {}
  template <typename T>
  T* Take(int64_t count) {
    T* taken = reinterpret_cast<T*>(at_);
    at_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    KERNEL_CHECK(at_ <= end_);
    return taken;
  }

 private:
  char* at_;
  char* end_;
};

static void CheckAttention(const AttentionArgs& args) {
  KERNEL_CHECK(args.heads > 0 && args.kv_heads > 0 && args.heads % args.kv_heads == 0);
  KERNEL_CHECK(args.head_dim > 0 && args.scale > 0 && args.soft_cap >= 0);
  KERNEL_CHECK(args.documents > 0 && args.starts[0] == 0 && args.starts[args.documents] == args.m);
}

static WorkspaceShape AttentionShape(Context* ctx, const AttentionArgs& args) {
  WorkspaceShape shape;
  shape.m = args.m;
  shape.heads = args.heads;
  shape.kv_heads = args.kv_heads;
  shape.head_dim = args.head_dim;
  shape.threads = PoolThreads(ctx->pool);
  for (int64_t d = 0; d < args.documents; ++d) {
    const int64_t length = args.starts[d + 1] - args.starts[d];
    if (length > shape.longest_document) shape.longest_document = length;
  }
  return shape;
}

// Rows of bf16 at `stride`, copied together as operands for the left-hand side; depth is padded with
// zeros to whole steps, which is the copy's stride.
static void CopyRows(const BF16* data, int64_t stride, int64_t rows, int64_t depth, Operand* copy) {
  const int64_t padded = RoundUp(depth, kDepthUnit);
  for (int64_t i = 0; i < rows; ++i, data += stride, copy += padded) {
#if defined(__AVX512BF16__)
    std::memcpy(copy, data, static_cast<size_t>(2 * depth));
#else
    for (int64_t d = 0; d < depth; d += kLanes) StoreSome(copy + d, LoadSome(data + d, depth - d), depth - d);
#endif
    for (int64_t d = depth; d < padded; ++d) copy[d] = Operand{};
  }
}

// Rows of a tile for `count` rows: even, so that pairs of rows stay together.
NIBBLE_INLINE int64_t PairedRows(int64_t count) {
  const int64_t rows = EvenRows(count);
  return rows + rows % kDepthPerStep;
}

// Scores of one row become soft_cap * tanh(scale * score / soft_cap).
static void CapScores(float* scores, int64_t first, int64_t last, const AttentionArgs& args) {
  const F32 inner = Set1(args.scale / args.soft_cap), cap = Set1(args.soft_cap);
  for (int64_t v = first; v < last; v += kLanes)
    Store(scores + v, Mul(cap, Tanh(Mul(Load(scores + v), inner))));
}

// From a score, capped or not, to the exponent of two.
NIBBLE_INLINE float ExponentScale(const AttentionArgs& args) {
  return args.soft_cap > 0 ? kLog2E : args.scale * kLog2E;
}

// What a row's exponents are taken relative to: its largest score so far. Far from zero what rounding took
// away is kept as well: it may be hundreds, and the largest score's own exponent must be nothing.
struct ExponentBase {
  ExponentBase(float largest, float scale) : rounded(largest * scale) {
    const float size = std::fabs(rounded);
    if (size >= 8192.0f && size < INFINITY) rest = std::fma(largest, scale, -rounded);
  }
  // What brings sums made with this base to another.
  float ShrinkTo(const ExponentBase& to) const {
    return std::exp2(rounded - to.rounded + (rest - to.rest));
  }
  float rounded;
  float rest = 0;
};

// fn(weight_of), where weight_of(score) is two to the power of scale * score - base.
template <typename F>
NIBBLE_INLINE void WithWeights(float scale, const ExponentBase& base, const F& fn) {
  const F32 factor = Set1(scale), shift = Set1(base.rounded);
  if (base.rest == 0) {
    fn([&](F32 score) __attribute__((always_inline)) { return Exp2(FmaSub(score, factor, shift)); });
  } else {
    const F32 rest = Set1(base.rest);
    fn([&](F32 score) __attribute__((always_inline)) {
      return Exp2(Sub(FmaSub(score, factor, shift), rest));
    });
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
