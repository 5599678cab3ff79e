// Products: out[rows, columns] = lhs[rows, depth] * rhs[depth, columns], summed in fp32.
//
// The right-hand side, usually a quantized weight, is decoded a panel at a time (half a MiB, so it stays in
// the second-level cache) and swept by all rows. Depth is cut into blocks only when it is very long; sums
// then wait in a scratch. Every element is summed in one fixed order (branch first, then
// depth ascending), however the work is cut, so results do not depend on the number of threads.
#pragma once

#include "kernels/check.h"
#include "kernels/cpu/body/packers.h"
#include "kernels/cpu/workspace.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kPanelBytes = kThreadBytes / 2;
constexpr int64_t kScratchBytes = kThreadBytes / 4;  // besides 256 per row
// A branch's panel of this size lies beside the main panel, a larger one takes from it: a rank must not
// make the panels of 4096 deep weights half as wide.
constexpr int64_t kBranchBytes = kThreadBytes / 32;
constexpr int64_t kMaxColumns = 256;

// A second, short product whose scaled sum the main one starts from: the LoRA branch.
//   start = scale * lhs * rhs, dropped elements zero
template <typename Packer>
struct Branch {
  Lhs lhs;
  int64_t depth = 0;                 // 0 = no branch
  float scale = 1;
  const Dropout* dropout = nullptr;  // on the result; index row * columns + column
  Packer pack;                       // (first column, columns, first depth, depth, panel)
};

struct ThreadMemory {
  float* panel;
  float* branch_panel;
  void* rows;
  void* branch_rows;
  float* scratch;
};

struct GemmShape {
  int64_t rows = 0, columns = 0, depth = 0;
};

struct GemmPlan {
  int64_t panel_columns, panels, row_chunks, chunk_rows, block_depth, blocks;
};

// Columns of a panel. Four panels per thread keep the threads even when one is held up; wider panels read
// the rows less often. Of that width and those up to twice as much the one that leaves a thread least to
// do: with 576 columns and two threads seven panels of 80 and one of 16 take the time of 320 columns, six
// of 96 that of 288.
NIBBLE_INLINE int64_t EvenPanels(int64_t columns, int64_t threads) {
  const int64_t least = RoundUp((columns + 4 * threads - 1) / (4 * threads), kTileColumns);
  if (threads == 1 || least >= kMaxColumns) return least;
  int64_t best = least, best_work = columns;
  for (int64_t width = least; width <= 2 * least && width <= kMaxColumns; width += kTileColumns) {
    const int64_t panels = (columns + width - 1) / width, rounds = panels / threads;
    int64_t work = rounds * width;  // of the thread with the most
    if (panels % threads == 1) work += columns - (panels - 1) * width;
    if (panels % threads > 1) work += width;
    if (work < best_work) {
      best = width;
      best_work = work;
    }
  }
  return best;
}

// Where making integers of rows for every panel costs more than packing panels again: wider panels, each
// swept by a share of the rows. Returns the number of shares. Costs in hundredths of the products, by
// estimate of their instructions: 680 / columns and 330 / rows.
NIBBLE_INLINE int64_t ShareRows(const GemmShape& shape, int64_t threads, int64_t* columns) {
  constexpr int64_t kLeastRows = 96;
  int64_t best = 1;
  int64_t best_cost = 680 / *columns + 330 / shape.rows;
  for (int64_t shares = 2; shares <= 4 * threads && shape.rows / shares >= kLeastRows; shares *= 2) {
    const int64_t panels = (4 * threads + shares - 1) / shares;
    int64_t width = RoundUp((shape.columns + panels - 1) / panels, kTileColumns);
    if (width > kMaxColumns) width = kMaxColumns;
    const int64_t cost = 680 / width + 330 * shares / shape.rows;
    if (cost >= best_cost) continue;
    best = shares;
    best_cost = cost;
    *columns = width;
  }
  return best;
}

// `copied`: rows that could be read where they are but for the cache, so that deep and narrow panels, each of
// which copies them again, are no gain.
template <typename Format>
static GemmPlan PlanGemm(const GemmShape& shape, int64_t branch_depth, int threads, bool copied) {
  constexpr int64_t kCopiedDepth = 2048, kCopiedColumns = 128;
  int64_t most_depth = Format::kMostDepth;
  // Columns of which the sums of all rows find room in the scratch.
  const int64_t fit = (kScratchBytes + 256 * shape.rows) / (4 * RoundUp(shape.rows, Format::kRows));
  if (copied && most_depth > kCopiedDepth && fit >= kCopiedColumns) most_depth = kCopiedDepth;
  int64_t columns = EvenPanels(shape.columns, threads);
  // Few columns, many rows: one panel each, rows shared out.
  if (shape.columns <= 2 * kTileColumns && shape.rows > shape.columns)
    columns = RoundUp(shape.columns, kTileColumns);
  int64_t shares = 1;
  if (Format::kFixed && threads > 1 && shape.depth <= most_depth)
    shares = ShareRows(shape, threads, &columns);
  if (columns > kMaxColumns) columns = kMaxColumns;
  const bool split = shape.depth > most_depth;
  if (split) {
    if (columns > fit / kTileColumns * kTileColumns) columns = fit / kTileColumns * kTileColumns;
  }
  const auto depth_of = [&](int64_t width) {
    const int64_t branch_bytes = 4 * width * Steps(branch_depth);
    const int64_t over = branch_bytes > kBranchBytes ? branch_bytes - kBranchBytes : 0;
    return Format::DepthWithin(kPanelBytes - over, width);
  };
  GemmPlan plan{};
  plan.blocks = 1;
  if (split) {
    // Shallower blocks than this cost more than narrow panels, so a large branch makes panels narrow.
    constexpr int64_t kLeastDepth = 512;
    while (columns > kTileColumns && depth_of(columns) < kLeastDepth) columns -= kTileColumns;
    if (columns < kTileColumns) columns = kTileColumns;
    int64_t budget = depth_of(columns) < most_depth ? depth_of(columns) : most_depth;
    if (budget < kLeastDepth) budget = kLeastDepth;
    plan.blocks = (shape.depth + budget - 1) / budget;
  } else {
    while (columns > kTileColumns && depth_of(columns) < shape.depth) columns -= kTileColumns;
  }
  plan.block_depth = RoundUp((shape.depth + plan.blocks - 1) / plan.blocks, Format::kDepthMultiple);
  plan.blocks = (shape.depth + plan.block_depth - 1) / plan.block_depth;
  plan.panel_columns = columns;
  plan.panels = (shape.columns + columns - 1) / columns;
  int64_t chunks = shares;
  if (plan.panels < threads && shares == 1) chunks = (threads + plan.panels - 1) / plan.panels;
  plan.chunk_rows = RoundUp((shape.rows + chunks - 1) / chunks, Format::kRows);
  plan.row_chunks = (shape.rows + plan.chunk_rows - 1) / plan.chunk_rows;
  return plan;
}

// Some of the rows of a product: what they are made of and where their sums go. finish(row, rows, column,
// columns, sums, stride), rows counted within the part, gets every finished tile once.
template <typename BranchPacker, typename Finish>
struct RowPart {
  int64_t rows = 0;
  Lhs lhs;
  Branch<BranchPacker> branch;
  const Finish* finish = nullptr;
};

// A panel of the right-hand side, and a thread's memory for multiplying with it.
struct PanelBlock {
  int64_t column0, columns, first, depth, stride;  // stride of the scratch
  bool begins, ends;                               // the first, the last block of the depth
  bool split;                                      // there are more than one: sums wait in the scratch
};

// Rows from .. to - 1 of a part times a panel. `scratch` is where the sums of row `from` wait.
template <typename Format, typename BranchPacker, typename Finish>
static void SweepRows(const RowPart<BranchPacker, Finish>& part, int64_t all_columns, int64_t from,
                      int64_t to, const PanelBlock& block, const ThreadMemory& mem, float* scratch) {
  const Branch<BranchPacker>& branch = part.branch;
  const bool branches = block.begins && branch.depth > 0;
  const int64_t tile_rows = EvenRows(to - from, Format::kRows);
  const int64_t branch_steps = Steps(branch.depth);
  const int64_t panel_floats = Format::TileFloats(block.depth) / kTileColumns;  // a column
  static_assert(Format::kRows <= kTileRows);
  alignas(64) float local[kTileRows * kTileColumns];
  if (branches) branch.pack(block.column0, block.columns, int64_t{0}, branch.depth, mem.branch_panel);
  for (int64_t row = from; row < to; row += tile_rows) {
    const int64_t rows = to - row < tile_rows ? to - row : tile_rows;
    const typename Format::Rows a = Format::Prepare(part.lhs, row, rows, block.first, block.depth, mem.rows);
    PreparedRows b{};
    if (branches)
      b = PrepareRows(branch.lhs, row, rows, 0, branch.depth, static_cast<Operand*>(mem.branch_rows));
    for (int64_t j = 0; j < block.columns; j += kTileColumns) {
      const int64_t width = block.columns - j < kTileColumns ? block.columns - j : kTileColumns;
      float* tile = local;
      int64_t stride = kTileColumns;
      if (block.split) {
        tile = scratch + (row - from) * block.stride + j;
        stride = block.stride;
      }
      if (branches) {
        MultiplyTile(b.data, b.stride_bytes, mem.branch_panel + j * branch_steps, branch_steps, rows, width,
                     tile, stride, false);
        for (int64_t r = 0; r < rows; ++r) {
          float* sums = tile + r * stride;
          if (branch.scale != 1)
            for (int64_t v = 0; v < width; v += kLanes)
              Store(sums + v, Mul(Load(sums + v), Set1(branch.scale)));
          if (branch.dropout != nullptr)
            ZeroDropped(*branch.dropout,
                        static_cast<uint64_t>((row + r) * all_columns + block.column0 + j), width, sums);
        }
      }
      Format::Multiply(a, block.depth, mem.panel + j * panel_floats, rows, width, tile, stride,
                       !block.begins || branches, j == 0);
      if (block.ends) (*part.finish)(row, rows, block.column0 + j, width, tile, stride);
    }
  }
}

// The rows of all parts times one right-hand side of `columns` x `depth`, each panel of which is packed once.
// pack(first column, columns, first depth, depth, panel) fills a panel. `reserved` bytes at the workspace's
// beginning are the op's. A row's bits do not depend on the parts: its sums have an order of their own.
template <typename Packer, typename BranchPacker, typename Finish>
static void GemmParts(Context* ctx, int64_t reserved, int64_t columns, int64_t depth, const Packer& pack,
                      const RowPart<BranchPacker, Finish>* parts, int64_t count) {
  GemmShape shape{0, columns, depth};
  int64_t branch_depth = 0;
  for (int64_t p = 0; p < count; ++p) {
    shape.rows += parts[p].rows;
    if (parts[p].branch.depth > branch_depth) branch_depth = parts[p].branch.depth;
  }
  if (shape.rows == 0 || shape.columns == 0 || shape.depth == 0) return;
  const int threads = PoolThreads(ctx->pool);
  using Format = typename Packer::Format;
  const GemmPlan plan = PlanGemm<Format>(shape, branch_depth, threads, parts[0].lhs.Crowded(Format::kRows));
  const int64_t panel_floats = Format::TileFloats(plan.block_depth) / kTileColumns * plan.panel_columns;
  const int64_t branch_floats = Steps(branch_depth) * plan.panel_columns;
  const int64_t row_bytes = Format::RowBytes(plan.block_depth);
  const int64_t branch_row_bytes = OperandFormat::RowBytes(branch_depth);
  const int64_t scratch_floats = plan.blocks > 1 ? plan.chunk_rows * plan.panel_columns : 0;
  const int64_t thread_bytes =
      RoundUp(4 * panel_floats, 64) + RoundUp(4 * branch_floats, 64) + RoundUp(row_bytes, 64) +
      RoundUp(branch_row_bytes, 64) + RoundUp(4 * scratch_floats, 64);
  KERNEL_CHECK(reserved + threads * thread_bytes <= ctx->workspace_bytes);
  const auto memory = [&](int thread) {
    char* at = static_cast<char*>(ctx->workspace) + reserved + thread * thread_bytes;
    const auto take = [&at](int64_t bytes) {
      char* const taken = at;
      at += RoundUp(bytes, 64);
      return taken;
    };
    ThreadMemory m;
    m.panel = reinterpret_cast<float*>(take(4 * panel_floats));
    m.branch_panel = reinterpret_cast<float*>(take(4 * branch_floats));
    m.rows = take(row_bytes);
    m.branch_rows = take(branch_row_bytes);
    m.scratch = reinterpret_cast<float*>(take(4 * scratch_floats));
    return m;
  };

  RunPieces(ctx->pool, plan.panels * plan.row_chunks, [&](int64_t piece, int thread) {
    const ThreadMemory mem = memory(thread);
    const int64_t column0 = piece / plan.row_chunks * plan.panel_columns;
    const int64_t row0 = piece % plan.row_chunks * plan.chunk_rows;
    PanelBlock block{};
    block.column0 = column0;
    block.columns =
        shape.columns - column0 < plan.panel_columns ? shape.columns - column0 : plan.panel_columns;
    block.stride = plan.panel_columns;
    block.split = plan.blocks > 1;
    const int64_t end = shape.rows - row0 < plan.chunk_rows ? shape.rows : row0 + plan.chunk_rows;
    for (int64_t i = 0; i < plan.blocks; ++i) {
      block.first = i * plan.block_depth;
      const int64_t left = shape.depth - block.first;
      block.depth = left < plan.block_depth ? left : plan.block_depth;
      block.begins = i == 0;
      block.ends = i + 1 == plan.blocks;
      pack(column0, block.columns, block.first, block.depth, mem.panel);
      int64_t before = 0;  // rows of the parts before this one
      for (int64_t p = 0; p < count; before += parts[p++].rows) {
        const int64_t from = row0 > before ? row0 - before : 0;
        const int64_t to = end - before < parts[p].rows ? end - before : parts[p].rows;
        if (from >= to) continue;
        SweepRows<Format>(parts[p], shape.columns, from, to, block, mem,
                  mem.scratch + (before + from - row0) * plan.panel_columns);
      }
    }
  });
}

struct NoPacker {
  using Format = OperandFormat;
  void operator()(int64_t, int64_t, int64_t, int64_t, float*) const {}
};

template <typename Packer, typename Finish>
static void Gemm(Context* ctx, int64_t reserved, const GemmShape& shape, const Lhs& lhs,
                 const Packer& pack, const Finish& finish) {
  const RowPart<NoPacker, Finish> all{shape.rows, lhs, {}, &finish};
  GemmParts(ctx, reserved, shape.columns, shape.depth, pack, &all, 1);
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
