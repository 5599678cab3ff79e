// Attention forward.
//
// A piece is one document, one key/value head, some of the query heads that share it, and about 384 rows
// of them: so a packed block of keys and values serves many rows, and the partition depends on shapes
// alone. Keys come block by block with a running maximum and sum (online softmax).
#pragma once

#include "kernels/cpu/body/attention.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// How a group of query heads is cut into pieces.
struct ForwardCut {
  explicit ForwardCut(const AttentionArgs& args) : group(args.heads / args.kv_heads) {
    heads = group < 8 ? group : 8;
    slices = (group + heads - 1) / heads;
    queries = kAttentionRows / heads / kTileRows * kTileRows;
  }
  int64_t Chunks(int64_t length) const { return (length + queries - 1) / queries; }
  int64_t group;    // query heads of a key/value head
  int64_t heads;    // of a piece, at most
  int64_t slices;   // of a group
  int64_t queries;  // of each head in a piece
};

struct ForwardPiece {
  int64_t start, length;    // of the document
  int64_t query0, queries;  // within the document
  int64_t head0, heads, kv;
};

static ForwardPiece FindPiece(const AttentionArgs& args, const ForwardCut& cut, int64_t piece) {
  const int64_t across = args.kv_heads * cut.slices;
  int64_t chunk = piece / across, document = 0;
  for (;; ++document) {
    const int64_t here = cut.Chunks(args.starts[document + 1] - args.starts[document]);
    if (chunk < here) break;
    chunk -= here;
  }
  ForwardPiece found;
  found.start = args.starts[document];
  found.length = args.starts[document + 1] - found.start;
  found.query0 = chunk * cut.queries;
  const int64_t left = found.length - found.query0;
  found.queries = left < cut.queries ? left : cut.queries;
  found.kv = piece % across / cut.slices;
  const int64_t slice = piece % cut.slices * cut.heads;
  found.head0 = found.kv * cut.group + slice;
  found.heads = cut.group - slice < cut.heads ? cut.group - slice : cut.heads;
  return found;
}

// What a row carries from one block of keys to the next.
struct RowState {
  float* sums;     // [padded]
  float* total;    // [kLanes], to be added up
  float* largest;  // score
};

// Running softmax over the columns [first, last) of a row of scores; columns [begin, end) around them are
// written: weights, or zero.
static void SoftmaxRow(float* scores, int64_t begin, int64_t first, int64_t last, int64_t end,
                       int64_t padded, const AttentionArgs& args, const RowState& row, Operand* out) {
  if (last <= first) {
    for (int64_t v = begin; v < end; v += kLanes) Store(out + v, Zero());
    return;
  }
  if (args.soft_cap > 0) CapScores(scores, begin, end, args);
  const F32 minus = Set1(-INFINITY);
  F32 largest = minus;
  for (int64_t v = begin; v < end; v += kLanes) {
    const F32 s = Load(scores + v);
    const bool whole = v >= first && v + kLanes <= last;
    largest = Max(largest, whole ? s : KeepLanes(s, first - v, last - v, minus));
  }
  const float scale = ExponentScale(args), top = MaxLanes(largest);
  F32 total = Load(row.total);
  if (top > *row.largest) {
    const float shrink = ExponentBase(*row.largest, scale).ShrinkTo({top, scale});  // 0 the first time
    total = Mul(total, Set1(shrink));
    for (int64_t v = 0; v < padded; v += kLanes)
      Store(row.sums + v, Mul(Load(row.sums + v), Set1(shrink)));
    *row.largest = top;
  }
  WithWeights(scale, {*row.largest, scale}, [&](const auto& weight_of) __attribute__((always_inline)) {
    for (int64_t v = begin; v < end; v += kLanes) {
      F32 p = weight_of(Load(scores + v));
      if (v < first || v + kLanes > last) p = KeepLanes(p, first - v, last - v, Zero());
      total = Add(total, p);
      Store(out + v, p);
    }
  });
  Store(row.total, total);
}

struct ForwardMemory {
  float* key_panel;
  float* value_panel;
  float* scores;     // [kTileRows, kBlock]
  Operand* weights;  // the same
  Operand* queries;  // [kAttentionRows, dim]
  float* sums;       // [kAttentionRows, padded]
  float* total;      // [kAttentionRows, kLanes]
  float* largest;    // [kAttentionRows]
};

static ForwardMemory TakeForwardMemory(Arena arena, int64_t dim, int64_t padded) {
  ForwardMemory m;
  m.key_panel = arena.Take<float>(kBlock * Steps(dim));
  m.value_panel = arena.Take<float>(padded * Steps(kBlock));
  m.scores = arena.Take<float>(kTileRows * kBlock);
  m.weights = arena.Take<Operand>(kTileRows * kBlock);
  m.queries = arena.Take<Operand>(kAttentionRows * RoundUp(dim, kDepthUnit));
  m.sums = arena.Take<float>(kAttentionRows * padded);
  m.total = arena.Take<float>(kAttentionRows * kLanes);
  m.largest = arena.Take<float>(kAttentionRows);
  return m;
}

// One tile of rows (queries of one head, from `query` on) against the block of keys in the panels.
static void ForwardTile(const ForwardMemory& mem, const AttentionArgs& args, int64_t query, int64_t rows,
                        int64_t state, int64_t key0, int64_t keys) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns);
  const int64_t last_query = query + rows - 1;
  const int64_t end = last_query + 1 - key0 < keys ? last_query + 1 - key0 : keys;
  int64_t begin = 0;
  if (args.window > 0 && query - args.window + 1 > key0)
    begin = (query - args.window + 1 - key0) / kTileColumns * kTileColumns;
  if (begin >= end) return;
  const int64_t key_steps = Steps(dim), depth_stride = RoundUp(dim, kDepthUnit);
  const auto bytes = static_cast<int64_t>(sizeof(Operand));
  for (int64_t j = begin; j < end; j += kTileColumns)
    MultiplyTile(mem.queries + state * depth_stride, depth_stride * bytes, mem.key_panel + j * key_steps,
                 key_steps, rows, end - j, mem.scores + j, kBlock, false);
  const int64_t padded_end = RoundUp(end, kTileColumns);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t last = query + i + 1 - key0 < end ? query + i + 1 - key0 : end;
    int64_t first = 0;
    if (args.window > 0 && query + i - args.window + 1 > key0) first = query + i - args.window + 1 - key0;
    const int64_t at = state + i;
    SoftmaxRow(mem.scores + i * kBlock, begin, first, last, padded_end, padded, args,
               {mem.sums + at * padded, mem.total + at * kLanes, mem.largest + at}, mem.weights + i * kBlock);
  }
  const int64_t value_steps = Steps(keys), skipped = begin / kDepthPerStep;
  for (int64_t d = 0; d < dim; d += kTileColumns)
    MultiplyTile(mem.weights + begin, kBlock * bytes,
                 mem.value_panel + d * value_steps + skipped * kTileColumns, Steps(end - begin), rows,
                 dim - d, mem.sums + state * padded + d, padded, true);
}

static void AttentionForwardPiece(const BF16* q, const BF16* k, const BF16* v, BF16* out, float* lse,
                                  const AttentionArgs& args, const ForwardPiece& piece,
                                  const ForwardMemory& mem) {
  const int64_t dim = args.head_dim, padded = RoundUp(dim, kTileColumns);
  const int64_t width = args.heads * dim, kv_width = args.kv_heads * dim;
  const int64_t rows = piece.heads * piece.queries, row0 = piece.start + piece.query0;
  for (int64_t h = 0; h < piece.heads; ++h)
    CopyRows(q + row0 * width + (piece.head0 + h) * dim, width, piece.queries, dim,
             mem.queries + h * piece.queries * RoundUp(dim, kDepthUnit));
  std::memset(mem.sums, 0, static_cast<size_t>(rows * padded * 4));
  std::memset(mem.total, 0, static_cast<size_t>(rows * kLanes * 4));
  for (int64_t i = 0; i < rows; ++i) mem.largest[i] = -INFINITY;

  const MatrixSource key_source{k + piece.start * kv_width + piece.kv * dim, kv_width};
  const MatrixSource value_source{v + piece.start * kv_width + piece.kv * dim, kv_width};
  const int64_t query_end = piece.query0 + piece.queries, tile_rows = EvenRows(piece.queries);
  int64_t first_key = 0;
  if (args.window > 0 && piece.query0 - args.window + 1 > 0)
    first_key = (piece.query0 - args.window + 1) / kTileColumns * kTileColumns;
  for (int64_t key0 = first_key; key0 < query_end; key0 += kBlock) {
    const int64_t keys = query_end - key0 < kBlock ? query_end - key0 : kBlock;
    PackRows(key_source, key0, keys, 0, dim, mem.key_panel);
    PackColumns(value_source, key0, keys, 0, dim, mem.value_panel);
    for (int64_t h = 0; h < piece.heads; ++h) {
      for (int64_t i = 0; i < piece.queries; i += tile_rows) {
        const int64_t part = piece.queries - i < tile_rows ? piece.queries - i : tile_rows;
        if (piece.query0 + i + part > key0)
          ForwardTile(mem, args, piece.query0 + i, part, h * piece.queries + i, key0, keys);
      }
    }
  }
  for (int64_t h = 0; h < piece.heads; ++h) {
    for (int64_t i = 0; i < piece.queries; ++i) {
      const int64_t at = (row0 + i) * args.heads + piece.head0 + h, state = h * piece.queries + i;
      const float total = SumLanes(Load(mem.total + state * kLanes));
      const F32 inverse = Set1(1.0f / total);
      for (int64_t d = 0; d < dim; d += kLanes)
        StoreSome(out + at * dim + d, Mul(Load(mem.sums + state * padded + d), inverse), dim - d);
      lse[at] = mem.largest[state] * ExponentScale(args) * kLn2 + std::log(total);
    }
  }
}

static void AttentionForward(Context* ctx, void* out, void* lse, const void* q, const void* k,
                             const void* v, const AttentionArgs& args) {
  CheckAttention(args);
  const WorkspaceShape shape = AttentionShape(ctx, args);
  const int64_t bytes = AttentionForwardWorkspaceBytes(shape);
  KERNEL_CHECK(ctx->workspace_bytes >= bytes);
  const ForwardCut cut(args);
  int64_t chunks = 0;
  for (int64_t d = 0; d < args.documents; ++d) chunks += cut.Chunks(args.starts[d + 1] - args.starts[d]);
  const int64_t dim = args.head_dim;
  const int64_t pieces = chunks * args.kv_heads * cut.slices;
  // From the end, where a document's pieces see most keys.
  RunPieces(ctx->pool, pieces, [&](int64_t piece, int thread) {
    const Arena arena(ctx, bytes / shape.threads, thread);
    AttentionForwardPiece(static_cast<const BF16*>(q), static_cast<const BF16*>(k),
                          static_cast<const BF16*>(v), static_cast<BF16*>(out), static_cast<float*>(lse),
                          args, FindPiece(args, cut, pieces - 1 - piece),
                          TakeForwardMemory(arena, dim, RoundUp(dim, kTileColumns)));
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
