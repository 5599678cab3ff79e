// Causal attention over documents in tiles of 96 queries x 96 keys.
//
// Forward: a piece is one head and one block of queries; keys come block by block with a running maximum
// and sum (online softmax).
//
// Backward: a piece is one document and one key/value head with all its query heads, so that dk and dv are
// summed in one order. It works on transposed scores (rows are keys): their probabilities and gradients
// are then rows for dv and dk directly, and packed once, columns for dq. Sums of dk and dv stay in fp32 in
// the workspace, which is why it depends on the longest document.
#pragma once

#include <cmath>

#include "kernels/cpu/body/elementwise.h"
#include "kernels/cpu/body/gemm.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kBlock = kAttentionBlock;
static_assert(kBlock % kTileColumns == 0);

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
  KERNEL_CHECK(args.head_dim > 0);
  KERNEL_CHECK(args.documents > 0 && args.starts[0] == 0 && args.starts[args.documents] == args.m);
}

static WorkspaceShape AttentionShape(Context* ctx, const AttentionArgs& args) {
  WorkspaceShape shape;
  shape.m = args.m;
  shape.head_dim = args.head_dim;
  shape.threads = PoolThreads(ctx->pool);
  for (int64_t d = 0; d < args.documents; ++d) {
    const int64_t length = args.starts[d + 1] - args.starts[d];
    if (length > shape.longest_document) shape.longest_document = length;
  }
  return shape;
}

// Rows of bf16 as operands for the left-hand side: where they are, or widened into `copy`.
struct OperandRows {
  const Operand* data;
  int64_t stride;
};
static OperandRows AsOperands(const BF16* data, int64_t stride, int64_t rows, int64_t depth,
                              Operand* copy) {
#if defined(__AVX512BF16__)
  if (depth % kDepthUnit == 0) return {data, stride};
  const int64_t copy_stride = RoundUp(depth, kDepthUnit);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(copy + i * copy_stride, data + i * stride, static_cast<size_t>(2 * depth));
    for (int64_t d = depth; d < copy_stride; ++d) copy[i * copy_stride + d] = BF16{};
  }
  return {copy, copy_stride};
#else
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < depth; d += kLanes)
      StoreSome(copy + i * depth + d, LoadSome(data + i * stride + d, depth - d), depth - d);
  return {copy, depth};
#endif
}

// Keys a query may see, relative to a block of keys: first <= key < last.
struct KeyRange {
  int64_t first, last;
};
NIBBLE_INLINE KeyRange VisibleKeys(const AttentionArgs& args, int64_t query, int64_t key0, int64_t keys) {
  KeyRange range{0, query + 1 - key0};
  if (range.last > keys) range.last = keys;
  if (args.window > 0 && query - args.window + 1 > key0) range.first = query - args.window + 1 - key0;
  return range;
}

// Scores of one row become soft_cap * tanh(scale * score / soft_cap).
NIBBLE_INLINE void CapScores(float* scores, const AttentionArgs& args) {
  const F32 inner = Set1(args.scale / args.soft_cap), cap = Set1(args.soft_cap);
  for (int64_t v = 0; v < kBlock; v += kLanes)
    Store(scores + v, Mul(cap, Tanh(Mul(Load(scores + v), inner))));
}

// Running softmax of one row of scores: probabilities to `out` (kBlock of them), rescales sums and state.
static void SoftmaxStep(float* scores, KeyRange range, const AttentionArgs& args, int64_t padded_dim,
                        float* top, float* total, float* sums, Operand* out) {
  if (range.last <= range.first) {
    for (int64_t v = 0; v < kBlock; v += kLanes) Store(out + v, Zero());
    return;
  }
  if (args.soft_cap > 0) CapScores(scores, args);
  const float scale = args.soft_cap > 0 ? 1.0f : args.scale;
  const F32 minus = Set1(-INFINITY);
  F32 largest = minus;
  for (int64_t v = 0; v < range.last; v += kLanes)
    largest = Max(largest, KeepLanes(Load(scores + v), range.first - v, range.last - v, minus));
  const float block_top = MaxLanes(largest) * scale;
  const float new_top = block_top > *top ? block_top : *top;
  F32 added = Zero();
  for (int64_t v = 0; v < kBlock; v += kLanes) {
    const F32 e = Exp(Sub(Mul(Load(scores + v), Set1(scale)), Set1(new_top)));
    const F32 p = KeepLanes(e, range.first - v, range.last - v, Zero());
    added = Add(added, p);
    Store(out + v, p);
  }
  if (new_top != *top) {
    const float shrink = *total == 0 ? 0.0f : std::exp(*top - new_top);
    *total *= shrink;
    for (int64_t v = 0; v < padded_dim; v += kLanes)
      Store(sums + v, Mul(Load(sums + v), Set1(shrink)));
    *top = new_top;
  }
  *total += SumLanes(added);
}

static void AttentionForwardBlock(const BF16* q, const BF16* k, const BF16* v, BF16* out, float* lse,
                                  const AttentionArgs& args, int64_t start, int64_t query0,
                                  int64_t queries, int64_t head, Arena arena) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns);
  const int64_t width = args.heads * dim, kv_width = args.kv_heads * dim;
  const int64_t kv_offset = head / (args.heads / args.kv_heads) * dim;
  float* key_panel = arena.Take<float>(kBlock * Steps(dim));
  float* value_panel = arena.Take<float>(padded * Steps(kBlock));
  float* scores = arena.Take<float>(kBlock * kBlock);
  Operand* weights = arena.Take<Operand>(kBlock * kBlock);
  float* sums = arena.Take<float>(kBlock * padded);
  Operand* copy = arena.Take<Operand>(kBlock * RoundUp(dim, kDepthUnit));
  float top[kBlock], total[kBlock];
  for (int64_t i = 0; i < queries; ++i) {
    top[i] = -INFINITY;
    total[i] = 0;
  }
  std::memset(sums, 0, static_cast<size_t>(queries * padded * 4));
  const OperandRows rows = AsOperands(q + (start + query0) * width + head * dim, width, queries, dim, copy);
  const MatrixSource key_source{k + start * kv_width + kv_offset, kv_width};
  const MatrixSource value_source{v + start * kv_width + kv_offset, kv_width};
  int64_t first_key = 0;
  if (args.window > 0 && query0 - args.window + 1 > 0)
    first_key = (query0 - args.window + 1) / kBlock * kBlock;
  for (int64_t key0 = first_key; key0 < query0 + queries; key0 += kBlock) {
    const int64_t left = query0 + queries - key0;
    const int64_t keys = left < kBlock ? left : kBlock;
    PackRows(key_source, key0, keys, 0, dim, key_panel);
    MultiplyPanel(rows.data, rows.stride * static_cast<int64_t>(sizeof(Operand)), key_panel, dim, queries,
                  keys, scores, kBlock, false);
    for (int64_t i = 0; i < queries; ++i)
      SoftmaxStep(scores + i * kBlock, VisibleKeys(args, query0 + i, key0, keys), args, padded, &top[i],
                  &total[i], sums + i * padded, weights + i * kBlock);
    PackColumns(value_source, key0, keys, 0, dim, value_panel);
    MultiplyPanel(weights, kBlock * static_cast<int64_t>(sizeof(Operand)), value_panel, keys, queries, dim,
                  sums, padded, true);
  }
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t at = (start + query0 + i) * args.heads + head;
    const F32 inverse = Set1(1.0f / total[i]);
    for (int64_t d = 0; d < dim; d += kLanes)
      StoreSome(out + at * dim + d, Mul(Load(sums + i * padded + d), inverse), dim - d);
    lse[at] = top[i] + std::log(total[i]);
  }
}

static void AttentionForward(Context* ctx, void* out, void* lse, const void* q, const void* k,
                             const void* v, const AttentionArgs& args) {
  CheckAttention(args);
  const WorkspaceShape shape = AttentionShape(ctx, args);
  const int64_t bytes = AttentionForwardWorkspaceBytes(shape);
  KERNEL_CHECK(ctx->workspace_bytes >= bytes);
  int64_t blocks = 0;
  for (int64_t d = 0; d < args.documents; ++d)
    blocks += (args.starts[d + 1] - args.starts[d] + kBlock - 1) / kBlock;
  RunPieces(ctx->pool, blocks * args.heads, [&](int64_t piece, int thread) {
    int64_t block = piece / args.heads, document = 0;
    for (;; ++document) {
      const int64_t here = (args.starts[document + 1] - args.starts[document] + kBlock - 1) / kBlock;
      if (block < here) break;
      block -= here;
    }
    const int64_t start = args.starts[document], query0 = block * kBlock;
    const int64_t left = args.starts[document + 1] - start - query0;
    AttentionForwardBlock(static_cast<const BF16*>(q), static_cast<const BF16*>(k),
                          static_cast<const BF16*>(v), static_cast<BF16*>(out), static_cast<float*>(lse),
                          args, start, query0, left < kBlock ? left : kBlock, piece % args.heads,
                          Arena(ctx, bytes / shape.threads, thread));
  });
}

// What the backward reads and writes, and its shapes.
struct AttentionTensors {
  const BF16* dout;
  const BF16* out;
  const float* lse;
  const BF16* q;
  const BF16* k;
  const BF16* v;
  BF16* dq;
  BF16* dk;
  BF16* dv;
};

// Everything of one block of queries of one head that the blocks of keys need.
struct QueryBlock {
  float* query_panel;          // columns are queries, depth is the head
  float* gradient_panel;       // the same of dout
  float* query_columns;        // columns are the head, depth is queries
  float* gradient_columns;     // the same of dout
  float* query_sums;           // dq transposed, [padded dim][kBlock]
  alignas(64) float lse[kBlock];
  alignas(64) float delta[kBlock];  // dout . out
};

// Turns a row of scores (one key, kBlock queries) and of dout . v into probabilities and score gradients.
NIBBLE_INLINE void ScoreGradientRow(float* scores, const float* products, const QueryBlock& block,
                                    int64_t first, int64_t last, const AttentionArgs& args,
                                    Operand* weights, Operand* gradients) {
  const bool capped = args.soft_cap > 0;
  if (capped) CapScores(scores, args);
  const F32 scale = Set1(args.scale), inverse_cap = Set1(capped ? 1.0f / args.soft_cap : 0.0f);
  for (int64_t v = 0; v < kBlock; v += kLanes) {
    const F32 score = capped ? Load(scores + v) : Mul(Load(scores + v), scale);
    const F32 exponent = Sub(score, Load(block.lse + v));
    const F32 p = KeepLanes(Exp(exponent), first - v, last - v, Zero());
    F32 g = Mul(Mul(p, Sub(Load(products + v), Load(block.delta + v))), scale);
    if (capped) {
      const F32 share = Mul(score, inverse_cap);
      g = Mul(g, NegFma(share, share, Set1(1.0f)));
    }
    Store(weights + v, p);
    Store(gradients + v, KeepLanes(g, first - v, last - v, Zero()));
  }
}

static void LoadQueryBlock(const AttentionTensors& t, const AttentionArgs& args, int64_t row0,
                           int64_t queries, int64_t head, QueryBlock* block) {
  const int64_t dim = args.head_dim, width = args.heads * dim;
  const MatrixSource query{t.q + row0 * width + head * dim, width};
  const MatrixSource gradient{t.dout + row0 * width + head * dim, width};
  PackRows(query, 0, queries, 0, dim, block->query_panel);
  PackRows(gradient, 0, queries, 0, dim, block->gradient_panel);
  PackColumns(query, 0, queries, 0, dim, block->query_columns);
  PackColumns(gradient, 0, queries, 0, dim, block->gradient_columns);
  for (int64_t i = 0; i < kBlock; ++i) {
    block->lse[i] = block->delta[i] = 0;
    if (i >= queries) continue;
    const int64_t at = (row0 + i) * args.heads + head;
    F32 dot = Zero();
    for (int64_t d = 0; d < dim; d += kLanes)
      dot = Fma(LoadSome(t.dout + at * dim + d, dim - d), LoadSome(t.out + at * dim + d, dim - d), dot);
    block->delta[i] = SumLanes(dot);
    block->lse[i] = t.lse[at];
  }
}

static void StoreQueryGradient(const AttentionTensors& t, const AttentionArgs& args, int64_t row0,
                               int64_t queries, int64_t head, const QueryBlock& block) {
  const int64_t dim = args.head_dim;
  for (int64_t i = 0; i < queries; i += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      I32 tile[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) tile[j] = LoadInt(block.query_sums + (d + j) * kBlock + i);
      Transpose(tile);
      const int64_t rows = queries - i < kLanes ? queries - i : kLanes;
      for (int64_t j = 0; j < rows; ++j) {
        float values[kLanes];
        StoreInt(values, tile[j]);
        StoreSome(t.dq + ((row0 + i + j) * args.heads + head) * dim + d, Load(values), dim - d);
      }
    }
  }
}

static void AttentionBackwardDocument(const AttentionTensors& t, const AttentionArgs& args, int64_t start,
                                      int64_t length, int64_t kv, Arena arena) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns);
  const int64_t kv_width = args.kv_heads * dim, group = args.heads / args.kv_heads;
  const int64_t across = RoundUp(length, kDepthUnit);
  const auto operand_bytes = static_cast<int64_t>(sizeof(Operand));
  float* dk = arena.Take<float>(length * padded);
  float* dv = arena.Take<float>(length * padded);
  Operand* keys_across = arena.Take<Operand>(dim * across);
  const int64_t copied = kPairs && dim % kDepthUnit == 0 ? 0 : length * RoundUp(dim, kDepthUnit);
  Operand* key_copy = arena.Take<Operand>(copied);
  Operand* value_copy = arena.Take<Operand>(copied);
  QueryBlock block;
  block.query_panel = arena.Take<float>(kBlock * Steps(dim));
  block.gradient_panel = arena.Take<float>(kBlock * Steps(dim));
  block.query_columns = arena.Take<float>(padded * Steps(kBlock));
  block.gradient_columns = arena.Take<float>(padded * Steps(kBlock));
  block.query_sums = arena.Take<float>(padded * kBlock);
  float* scores = arena.Take<float>(kBlock * kBlock);
  float* products = arena.Take<float>(kBlock * kBlock);
  Operand* weights = arena.Take<Operand>(kBlock * kBlock);
  Operand* gradients = arena.Take<Operand>(kBlock * kBlock);
  float* gradient_rows = arena.Take<float>(kBlock * Steps(kBlock));

  std::memset(dk, 0, static_cast<size_t>(length * padded * 4));
  std::memset(dv, 0, static_cast<size_t>(length * padded * 4));
  const BF16* k = t.k + start * kv_width + kv * dim;
  const BF16* v = t.v + start * kv_width + kv * dim;
  const OperandRows key_rows = AsOperands(k, kv_width, length, dim, key_copy);
  const OperandRows value_rows = AsOperands(v, kv_width, length, dim, value_copy);
  for (int64_t key = 0; key < length; ++key) {
    for (int64_t d = 0; d < dim; ++d)
      keys_across[d * across + key] = ToOperand(k[key * kv_width + d]);
  }
  for (int64_t key = length; key < across; ++key)
    for (int64_t d = 0; d < dim; ++d) keys_across[d * across + key] = Operand{};

  for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
    for (int64_t query0 = 0; query0 < length; query0 += kBlock) {
      const int64_t queries = length - query0 < kBlock ? length - query0 : kBlock;
      LoadQueryBlock(t, args, start + query0, queries, head, &block);
      std::memset(block.query_sums, 0, static_cast<size_t>(padded * kBlock * 4));
      int64_t first_key = 0;
      if (args.window > 0 && query0 - args.window + 1 > 0)
        first_key = (query0 - args.window + 1) / kBlock * kBlock;
      for (int64_t key0 = first_key; key0 < query0 + queries; key0 += kBlock) {
        const int64_t keys = length - key0 < kBlock ? length - key0 : kBlock;
        MultiplyPanel(key_rows.data + key0 * key_rows.stride, key_rows.stride * operand_bytes,
                      block.query_panel, dim, keys, queries, scores, kBlock, false);
        MultiplyPanel(value_rows.data + key0 * value_rows.stride, value_rows.stride * operand_bytes,
                      block.gradient_panel, dim, keys, queries, products, kBlock, false);
        for (int64_t j = 0; j < keys; ++j) {
          // The queries that see this key.
          const int64_t key = key0 + j;
          const int64_t first = key > query0 ? key - query0 : 0;
          int64_t last = queries;
          if (args.window > 0 && key + args.window - query0 < last) last = key + args.window - query0;
          ScoreGradientRow(scores + j * kBlock, products + j * kBlock, block, first, last, args,
                           weights + j * kBlock, gradients + j * kBlock);
        }
        MultiplyPanel(weights, kBlock * operand_bytes, block.gradient_columns, queries, keys, dim,
                      dv + key0 * padded, padded, true);
        MultiplyPanel(gradients, kBlock * operand_bytes, block.query_columns, queries, keys, dim,
                      dk + key0 * padded, padded, true);
        PackOperandColumns(gradients, kBlock, keys, RoundUp(queries, kTileColumns), gradient_rows);
        MultiplyPanel(keys_across + key0, across * operand_bytes, gradient_rows, keys, dim, queries,
                      block.query_sums, kBlock, true);
      }
      StoreQueryGradient(t, args, start + query0, queries, head, block);
    }
  }
  for (int64_t key = 0; key < length; ++key) {
    const int64_t at = (start + key) * kv_width + kv * dim;
    for (int64_t d = 0; d < dim; d += kLanes) {
      StoreSome(t.dk + at + d, Load(dk + key * padded + d), dim - d);
      StoreSome(t.dv + at + d, Load(dv + key * padded + d), dim - d);
    }
  }
}

static void AttentionBackward(Context* ctx, void* dq, void* dk, void* dv, const void* dout,
                              const void* out, const void* lse, const void* q, const void* k,
                              const void* v, const AttentionArgs& args) {
  CheckAttention(args);
  const WorkspaceShape shape = AttentionShape(ctx, args);
  const int64_t bytes = AttentionBackwardWorkspaceBytes(shape);
  KERNEL_CHECK(ctx->workspace_bytes >= bytes);
  const AttentionTensors t{static_cast<const BF16*>(dout), static_cast<const BF16*>(out),
                           static_cast<const float*>(lse), static_cast<const BF16*>(q),
                           static_cast<const BF16*>(k),    static_cast<const BF16*>(v),
                           static_cast<BF16*>(dq),         static_cast<BF16*>(dk),
                           static_cast<BF16*>(dv)};
  RunPieces(ctx->pool, args.documents * args.kv_heads, [&](int64_t piece, int thread) {
    const int64_t document = piece / args.kv_heads;
    const int64_t start = args.starts[document];
    const int64_t length = args.starts[document + 1] - start;
    if (length > 0)
      AttentionBackwardDocument(t, args, start, length, piece % args.kv_heads,
                                Arena(ctx, bytes / shape.threads / 64 * 64, thread));
  });
}

// One query against a cache: no tiles, a running softmax over keys.
static void AttentionDecode(Context* ctx, void* out, const void* q, const void* k_cache,
                            const void* v_cache, int64_t length, const AttentionArgs& args) {
  KERNEL_CHECK(length > 0 && args.heads % args.kv_heads == 0);
  constexpr int64_t kMaxDim = 512;
  const int64_t dim = args.head_dim, kv_width = args.kv_heads * dim;
  KERNEL_CHECK(dim <= kMaxDim);
  const int64_t first = args.window > 0 && length > args.window ? length - args.window : 0;
  RunPieces(ctx->pool, args.heads, [&](int64_t head, int) {
    const BF16* query = static_cast<const BF16*>(q) + head * dim;
    const int64_t offset = head / (args.heads / args.kv_heads) * dim;
    const BF16* keys = static_cast<const BF16*>(k_cache) + offset;
    const BF16* values = static_cast<const BF16*>(v_cache) + offset;
    alignas(64) float sums[kMaxDim + kLanes] = {};
    float top = -INFINITY, total = 0;
    for (int64_t key = first; key < length; ++key) {
      F32 dot = Zero();
      for (int64_t d = 0; d < dim; d += kLanes)
        dot = Fma(LoadSome(query + d, dim - d), LoadSome(keys + key * kv_width + d, dim - d), dot);
      float score = SumLanes(dot) * args.scale;
      if (args.soft_cap > 0) score = args.soft_cap * std::tanh(score / args.soft_cap);
      float shrink = 1.0f, weight = 1.0f;
      if (score > top) {
        shrink = std::exp(top - score);
        top = score;
      } else {
        weight = std::exp(score - top);
      }
      total = total * shrink + weight;
      for (int64_t d = 0; d < dim; d += kLanes)
        Store(sums + d, Fma(Set1(weight), LoadSome(values + key * kv_width + d, dim - d),
                            Mul(Load(sums + d), Set1(shrink))));
    }
    for (int64_t d = 0; d < dim; d += kLanes)
      StoreSome(static_cast<BF16*>(out) + head * dim + d, Div(Load(sums + d), Set1(total)), dim - d);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
