// Attention backward.
//
// A piece is one document and one key/value head with all its query heads, or with some of them where there
// are few key/value heads: then sums of dk and dv of each cut wait in the workspace and are added up last, in
// the heads' order. A piece works on transposed scores (rows are keys): their probabilities and gradients are
// then rows for dv and dk directly, and pairs of them, interleaved as they come, columns for dq. Sums of dk
// and dv stay in fp32 in the workspace, which is why it depends on the longest document.
//
// dq and dk are summed without the factor `scale`, which their last rounding applies.
#pragma once

#include "kernels/cpu/body/attention.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

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

// What a piece keeps.
struct BackwardMemory {
  // Of the document's key/value head.
  float* dk;             // [length, padded]
  float* dv;
  Operand* keys;         // rows
  Operand* values;
  Operand* keys_across;  // [dim, across]
  int64_t across;
  // Of a block of queries of one head.
  float* query_panel;       // columns are queries, depth is the head
  float* gradient_panel;    // the same of dout
  float* query_columns;     // columns are the head, depth is queries
  float* gradient_columns;  // the same of dout
  float* query_sums;        // dq transposed, [padded][kBlock]
  float* lse;               // [kBlock], in powers of two
  float* delta;             // [kBlock], dout . out
  // Of a tile of keys.
  float* scores;         // [kTileRows, kBlock]
  float* products;       // dout . v
  Operand* weights;
  Operand* gradients;
  float* gradient_rows;  // of a block of keys: columns are queries, depth is keys
};

// dk, dv: where they are summed; null = in the arena.
static BackwardMemory TakeBackwardMemory(Arena arena, int64_t dim, int64_t length, float* dk, float* dv) {
  const int64_t padded = RoundUp(dim, kTileColumns), depth = RoundUp(dim, kDepthUnit);
  BackwardMemory m;
  m.across = RoundUp(length, kDepthUnit) + 32;  // not a power of two
  m.dk = dk != nullptr ? dk : arena.Take<float>(length * padded);
  m.dv = dv != nullptr ? dv : arena.Take<float>(length * padded);
  m.keys = arena.Take<Operand>(length * depth);
  m.values = arena.Take<Operand>(length * depth);
  m.keys_across = arena.Take<Operand>(dim * m.across);
  m.query_panel = arena.Take<float>(kBlock * Steps(dim));
  m.gradient_panel = arena.Take<float>(kBlock * Steps(dim));
  m.query_columns = arena.Take<float>(padded * Steps(kBlock));
  m.gradient_columns = arena.Take<float>(padded * Steps(kBlock));
  m.query_sums = arena.Take<float>(padded * kBlock);
  m.lse = arena.Take<float>(kBlock);
  m.delta = arena.Take<float>(kBlock);
  m.scores = arena.Take<float>(kTileRows * kBlock);
  m.products = arena.Take<float>(kTileRows * kBlock);
  m.weights = arena.Take<Operand>(kTileRows * kBlock);
  m.gradients = arena.Take<Operand>((kTileRows + 1) * kBlock);
  m.gradient_rows = arena.Take<float>(kBlock * Steps(kBlock));
  return m;
}

// Queries query0 .. query0 + queries - 1 of a document and one head.
struct QuerySpan {
  int64_t row0;    // of the first in the micro-batch
  int64_t query0;  // in the document
  int64_t queries;
  int64_t head;
};

static void LoadQueries(const AttentionTensors& t, const AttentionArgs& args, const QuerySpan& span,
                        const BackwardMemory& mem) {
  const int64_t dim = args.head_dim, width = args.heads * dim;
  const MatrixSource query{t.q + span.row0 * width + span.head * dim, width};
  const MatrixSource gradient{t.dout + span.row0 * width + span.head * dim, width};
  PackRows(query, 0, span.queries, 0, dim, mem.query_panel);
  PackRows(gradient, 0, span.queries, 0, dim, mem.gradient_panel);
  PackColumns(query, 0, span.queries, 0, dim, mem.query_columns);
  PackColumns(gradient, 0, span.queries, 0, dim, mem.gradient_columns);
  std::memset(mem.query_sums, 0, static_cast<size_t>(RoundUp(dim, kTileColumns) * kBlock * 4));
  for (int64_t i = 0; i < kBlock; ++i) {
    mem.lse[i] = mem.delta[i] = 0;
    if (i >= span.queries) continue;
    const int64_t at = (span.row0 + i) * args.heads + span.head;
    F32 dot = Zero();
    for (int64_t d = 0; d < dim; d += kLanes)
      dot = Fma(LoadSome(t.dout + at * dim + d, dim - d), LoadSome(t.out + at * dim + d, dim - d), dot);
    mem.delta[i] = SumLanes(dot);
    mem.lse[i] = t.lse[at] * kLog2E;
  }
}

static void StoreQueryGradient(const AttentionTensors& t, const AttentionArgs& args, const QuerySpan& span,
                               const float* sums) {
  const int64_t dim = args.head_dim;
  const F32 scale = Set1(args.scale);
  for (int64_t i = 0; i < span.queries; i += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      I32 tile[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) tile[j] = LoadInt(sums + (d + j) * kBlock + i);
      Transpose(tile);
      const int64_t rows = span.queries - i < kLanes ? span.queries - i : kLanes;
      for (int64_t j = 0; j < rows; ++j) {
        BF16* to = t.dq + ((span.row0 + i + j) * args.heads + span.head) * dim + d;
        StoreSome(to, Mul(AsFloats(tile[j]), scale), dim - d);
      }
    }
  }
}

// One key: scores and dout . v of columns [begin, end) become probabilities and score gradients; only
// queries [first, last) see the key.
static void ScoreGradients(float* scores, const float* products, int64_t begin, int64_t first, int64_t last,
                           int64_t end, const AttentionArgs& args, const BackwardMemory& mem,
                           Operand* weights, Operand* gradients) {
  const bool capped = args.soft_cap > 0;
  if (capped) CapScores(scores, begin, end, args);
  const F32 factor = Set1(ExponentScale(args)), inverse_cap = Set1(capped ? 1.0f / args.soft_cap : 0.0f);
  for (int64_t v = begin; v < end; v += kLanes) {
    const F32 score = Load(scores + v);
    F32 p = Exp2(FmaSub(score, factor, Load(mem.lse + v)));
    F32 g = Mul(p, Sub(Load(products + v), Load(mem.delta + v)));
    if (capped) {
      const F32 share = Mul(score, inverse_cap);
      g = Mul(g, NegFma(share, share, Set1(1.0f)));
    }
    if (v < first || v + kLanes > last) {
      p = KeepLanes(p, first - v, last - v, Zero());
      g = KeepLanes(g, first - v, last - v, Zero());
    }
    Store(weights + v, p);
    Store(gradients + v, g);
  }
}

// Interleaves the rows of score gradients into the panel for dq, from step `step` on; columns before
// `begin` are zero.
static void PackGradientRows(const Operand* gradients, int64_t rows, int64_t begin, int64_t end,
                             int64_t step, int64_t steps, float* panel) {
  for (int64_t c = 0; c < end; c += kTileColumns) {
    float* out = panel + (c / kTileColumns * steps + step) * kTileColumns;
    for (int64_t i = 0; i < rows; i += kDepthPerStep, out += kTileColumns) {
      const Operand* row = gradients + i * kBlock + c;
      if (c < begin) {
        Store(out, Zero());
        Store(out + kLanes, Zero());
        continue;
      }
#if defined(__AVX512BF16__)
      InterleaveRows(row, row + kBlock, out);
#else
      Store(out, Load(row));
      Store(out + kLanes, Load(row + kLanes));
#endif
    }
  }
}

// A tile of keys (`rows` of them, from `key` on) against the loaded queries.
static void BackwardTile(const BackwardMemory& mem, const AttentionArgs& args, const QuerySpan& span,
                         int64_t key, int64_t rows, int64_t step, int64_t steps) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns), depth = RoundUp(dim, kDepthUnit);
  const auto bytes = static_cast<int64_t>(sizeof(Operand));
  const auto seen = [&](int64_t k) {
    const int64_t end = args.window > 0 ? k + args.window - span.query0 : span.queries;
    return end < span.queries ? end : span.queries;
  };
  const int64_t begin = key > span.query0 ? (key - span.query0) / kTileColumns * kTileColumns : 0;
  const int64_t end = seen(key + rows - 1);
  const int64_t whole = RoundUp(span.queries, kTileColumns);
  const int64_t padded_end = end > begin ? RoundUp(end, kTileColumns) : begin;
  const int64_t head_steps = Steps(dim);
  for (int64_t j = begin; j < end; j += kTileColumns) {
    MultiplyTile(mem.keys + key * depth, depth * bytes, mem.query_panel + j * head_steps, head_steps, rows,
                 end - j, mem.scores + j, kBlock, false);
    MultiplyTile(mem.values + key * depth, depth * bytes, mem.gradient_panel + j * head_steps, head_steps,
                 rows, end - j, mem.products + j, kBlock, false);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t first = key + i > span.query0 ? key + i - span.query0 : 0;
    ScoreGradients(mem.scores + i * kBlock, mem.products + i * kBlock, begin, first, seen(key + i),
                   padded_end, args, mem, mem.weights + i * kBlock, mem.gradients + i * kBlock);
    for (int64_t c = padded_end; c < whole; c += kLanes) Store(mem.gradients + i * kBlock + c, Zero());
  }
  if (rows % kDepthPerStep != 0)
    std::memset(mem.gradients + rows * kBlock, 0, static_cast<size_t>(kBlock * bytes));
  PackGradientRows(mem.gradients, rows, begin, whole, step, steps, mem.gradient_rows);
  if (end <= begin) return;
  const int64_t query_steps = Steps(span.queries), skipped = begin / kDepthPerStep * kTileColumns;
  for (int64_t d = 0; d < dim; d += kTileColumns) {
    MultiplyTile(mem.weights + begin, kBlock * bytes, mem.gradient_columns + d * query_steps + skipped,
                 Steps(end - begin), rows, dim - d, mem.dv + key * padded + d, padded, true);
    MultiplyTile(mem.gradients + begin, kBlock * bytes, mem.query_columns + d * query_steps + skipped,
                 Steps(end - begin), rows, dim - d, mem.dk + key * padded + d, padded, true);
  }
}

// The loaded queries against all the keys they see.
static void BackwardQueries(const BackwardMemory& mem, const AttentionArgs& args, const QuerySpan& span) {
  const int64_t dim = args.head_dim, query_end = span.query0 + span.queries;
  const int64_t across_bytes = mem.across * static_cast<int64_t>(sizeof(Operand));
  int64_t first_key = 0;
  if (args.window > 0 && span.query0 - args.window + 1 > 0)
    first_key = (span.query0 - args.window + 1) / kTileColumns * kTileColumns;
  for (int64_t key0 = first_key; key0 < query_end; key0 += kBlock) {
    const int64_t keys = query_end - key0 < kBlock ? query_end - key0 : kBlock;
    const int64_t steps = Steps(keys), tile_rows = PairedRows(keys);
    for (int64_t i = 0; i < keys; i += tile_rows)
      BackwardTile(mem, args, span, key0 + i, keys - i < tile_rows ? keys - i : tile_rows,
                   i / kDepthPerStep, steps);
    ZeroSteps(mem.gradient_rows, (keys + kDepthPerStep - 1) / kDepthPerStep, steps,
              RoundUp(span.queries, kTileColumns));
    // dq: queries of a tile see keys up to their own.
    const int64_t dim_rows = EvenRows(dim);
    for (int64_t c = 0; c < span.queries; c += kTileColumns) {
      const int64_t last = span.query0 + c + kTileColumns - key0;
      if (last <= 0) continue;
      const int64_t depth = last < keys ? last : keys;
      for (int64_t d = 0; d < dim; d += dim_rows)
        MultiplyTile(mem.keys_across + d * mem.across + key0, across_bytes, mem.gradient_rows + c * steps,
                     Steps(depth), dim - d < dim_rows ? dim - d : dim_rows, span.queries - c,
                     mem.query_sums + d * kBlock + c, kBlock, true);
    }
  }
}

// Sums of dk, then those of dv, of the cuts of all key/value heads: [kv_heads, cuts, m, padded] each.
struct CutSums {
  CutSums(const Context* ctx, const WorkspaceShape& shape)
      : cuts(AttentionBackwardCuts(shape.heads, shape.kv_heads)),
        padded(RoundUp(shape.head_dim, kTileColumns)),
        m(shape.m),
        count(shape.kv_heads * cuts * m * padded) {
    const int64_t before = AttentionBackwardWorkspaceBytes(shape) - AttentionCutBytes(shape);
    at = reinterpret_cast<float*>(static_cast<char*>(ctx->workspace) + before);
  }
  float* Dk(int64_t kv, int64_t cut, int64_t row) const {
    return at + ((kv * cuts + cut) * m + row) * padded;
  }
  float* Dv(int64_t kv, int64_t cut, int64_t row) const { return Dk(kv, cut, row) + count; }
  int64_t cuts, padded, m;

 private:
  int64_t count;
  float* at;
};

struct BackwardPiece {
  int64_t start, length;  // of the document
  int64_t kv;
  int64_t first_head, end_head;
};

// dk and dv of a row from their sums of one cut or of several, `stride` apart.
static void StoreKeyGradient(const AttentionTensors& t, const AttentionArgs& args, int64_t row, int64_t kv,
                             const float* dk, const float* dv, int64_t cuts, int64_t stride) {
  const int64_t dim = args.head_dim, at = (row * args.kv_heads + kv) * dim;
  const F32 scale = Set1(args.scale);
  for (int64_t d = 0; d < dim; d += kLanes) {
    F32 key = Load(dk + d), value = Load(dv + d);
    for (int64_t cut = 1; cut < cuts; ++cut) {
      key = Add(key, Load(dk + cut * stride + d));
      value = Add(value, Load(dv + cut * stride + d));
    }
    StoreSome(t.dk + at + d, Mul(key, scale), dim - d);
    StoreSome(t.dv + at + d, value, dim - d);
  }
}

// Rows of keys, packed, as columns; what is missing of `across` is zero.
static void LayAcross(const Operand* keys, int64_t length, int64_t dim, int64_t across, Operand* out) {
  const int64_t depth = RoundUp(dim, kDepthUnit);
  int64_t whole = 0;  // keys that went by tiles
  if constexpr (!kPairs) {
    if (dim % kLanes == 0) whole = length / kLanes * kLanes;
    for (int64_t key = 0; key < whole; key += kLanes) {
      for (int64_t d = 0; d < dim; d += kLanes) {
        I32 tile[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) tile[i] = LoadInt(keys + (key + i) * depth + d);
        Transpose(tile);
        for (int64_t i = 0; i < kLanes; ++i) StoreInt(out + (d + i) * across + key, tile[i]);
      }
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t key = whole; key < length; ++key) out[d * across + key] = keys[key * depth + d];
    for (int64_t key = length; key < across; ++key) out[d * across + key] = Operand{};
  }
}

static void AttentionBackwardPiece(const AttentionTensors& t, const AttentionArgs& args,
                                   const BackwardPiece& piece, const BackwardMemory& mem) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns);
  const int64_t kv_width = args.kv_heads * dim, length = piece.length;
  std::memset(mem.dk, 0, static_cast<size_t>(length * padded * 4));
  std::memset(mem.dv, 0, static_cast<size_t>(length * padded * 4));
  const BF16* k = t.k + piece.start * kv_width + piece.kv * dim;
  CopyRows(k, kv_width, length, dim, mem.keys);
  CopyRows(t.v + piece.start * kv_width + piece.kv * dim, kv_width, length, dim, mem.values);
  LayAcross(mem.keys, length, dim, mem.across, mem.keys_across);
  for (int64_t head = piece.first_head; head < piece.end_head; ++head) {
    for (int64_t query0 = 0; query0 < length; query0 += kBlock) {
      const QuerySpan span{piece.start + query0, query0, length - query0 < kBlock ? length - query0 : kBlock,
                           head};
      LoadQueries(t, args, span, mem);
      BackwardQueries(mem, args, span);
      StoreQueryGradient(t, args, span, mem.query_sums);
    }
  }
}

static void AttentionBackward(Context* ctx, void* dq, void* dk, void* dv, const void* dout,
                              const void* out, const void* lse, const void* q, const void* k,
                              const void* v, const AttentionArgs& args) {
  CheckAttention(args);
  const WorkspaceShape shape = AttentionShape(ctx, args);
  const int64_t bytes = AttentionBackwardWorkspaceBytes(shape) - AttentionCutBytes(shape);
  KERNEL_CHECK(ctx->workspace_bytes >= bytes + AttentionCutBytes(shape));
  const AttentionTensors t{static_cast<const BF16*>(dout), static_cast<const BF16*>(out),
                           static_cast<const float*>(lse), static_cast<const BF16*>(q),
                           static_cast<const BF16*>(k),    static_cast<const BF16*>(v),
                           static_cast<BF16*>(dq),         static_cast<BF16*>(dk),
                           static_cast<BF16*>(dv)};
  const CutSums sums(ctx, shape);
  const int64_t group = args.heads / args.kv_heads, cuts = sums.cuts;
  RunPieces(ctx->pool, args.documents * args.kv_heads * cuts, [&](int64_t index, int thread) {
    const int64_t cut = index % cuts, kv = index / cuts % args.kv_heads;
    const int64_t document = index / (cuts * args.kv_heads);
    BackwardPiece piece{args.starts[document], 0, kv, kv * group + cut * group / cuts,
                        kv * group + (cut + 1) * group / cuts};
    piece.length = args.starts[document + 1] - piece.start;
    if (piece.length == 0) return;
    const bool own = cuts == 1;
    const BackwardMemory mem = TakeBackwardMemory(
        Arena(ctx, bytes / shape.threads, thread), args.head_dim, piece.length,
        own ? nullptr : sums.Dk(kv, cut, piece.start), own ? nullptr : sums.Dv(kv, cut, piece.start));
    AttentionBackwardPiece(t, args, piece, mem);
    for (int64_t key = 0; own && key < piece.length; ++key)
      StoreKeyGradient(t, args, piece.start + key, kv, mem.dk + key * sums.padded,
                       mem.dv + key * sums.padded, 1, 0);
  });
  if (cuts == 1) return;
  RunRows(ctx, args.m, args.kv_heads * args.head_dim * cuts, [&](int64_t row) {
    for (int64_t kv = 0; kv < args.kv_heads; ++kv)
      StoreKeyGradient(t, args, row, kv, sums.Dk(kv, 0, row), sums.Dv(kv, 0, row), cuts,
                       sums.m * sums.padded);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
