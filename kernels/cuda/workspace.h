// How much of Context::workspace each op of the cuda tables may use: pure functions of shapes, the
// same for every device and for the emulation, so that a plan can be made where no kernel is. Every
// op checks that ctx->workspace_bytes is at least its own figure here. Start the buffer at a
// multiple of 256.
//
// `threads` and `longest_document` of the shape are not used; nor is the act type, which has two
// bytes. Elementwise ops need nothing.
#pragma once

#include <cstdint>

#include "kernels/cpu/workspace.h"  // WorkspaceShape, RoundUp

namespace nibble::kernels::cuda_workspace {

// What the vendor's product may use beside; set once, as the choice of algorithms depends on it.
// Not needed where the library is not (the emulation).
constexpr int64_t kLibraryBytes = int64_t{32} << 20;

// A frozen weight is decoded in panels of at most so many bytes, all of one size but the last.
constexpr int64_t kPanelBytes = int64_t{64} << 20;

constexpr int64_t Least(int64_t a, int64_t b) { return b < a ? b : a; }
constexpr int64_t Most(int64_t a, int64_t b) { return a < b ? b : a; }
constexpr int64_t Pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Rows of a panel of a weight with `count` rows (or columns) of `other` elements each: a multiple
// of 128.
constexpr int64_t PanelRows(int64_t count, int64_t other) {
  const int64_t fit = Most(kPanelBytes / (2 * other) / 128 * 128, 128);
  return Least(count, RoundUp(Pieces(count, Pieces(count, fit)), 128));
}
constexpr int64_t PanelBytes(int64_t n, int64_t k) {
  return RoundUp(2 * Most(PanelRows(n, k) * k, PanelRows(k, n) * n), 256);
}

// Pieces into which the depth of a skinny product is cut so that it fills a large device: about 264
// tiles of 128 rows, pieces of 256 or more.
constexpr int64_t kFillingTiles = 264;
constexpr int64_t TilesAcross(int64_t columns) { return Pieces(columns, columns <= 16 ? 16 : 64); }
constexpr int64_t DepthSplits(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t tiles = Pieces(rows, 128) * TilesAcross(columns);
  return Most(1, Least(Pieces(kFillingTiles, Most(tiles, 1)), Pieces(depth, 256)));
}
constexpr int64_t PartialBytes(int64_t rows, int64_t columns, int64_t depth) {
  return RoundUp(4 * DepthSplits(rows, columns, depth) * rows * columns, 256);
}
// As many as `rows` or fewer ever need: a micro-batch may have fewer rows than were planned for, and one
// tile less may be cut into so many more pieces that it needs more. Of t tiles, c across, there are
// t * ceil(264 / (t c)) pieces, which is at most 263 / c + t.
constexpr int64_t MostPartialBytes(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t filling = (kFillingTiles - 1) / Most(TilesAcross(columns), 1);
  return RoundUp(4 * Least(Pieces(depth, 256) * rows, 128 * (filling + Pieces(rows, 128))) * columns, 256);
}

// Of the adapter of one layer. Forward: partial sums of u. Backward: scale * dy B, partial sums. Fewer rows
// never need more.
constexpr int64_t AdapterPartialBytes(const WorkspaceShape& s) {
  if (s.r == 0) return 0;
  return Most(Most(MostPartialBytes(s.m, s.r, s.k), MostPartialBytes(s.m, s.r, s.n)),
              Most(PartialBytes(s.k, s.r, s.m), PartialBytes(s.n, s.r, s.m)));
}
constexpr int64_t AdapterGradientBytes(const WorkspaceShape& s) { return RoundUp(2 * s.m * s.r, 256); }

// A group of layers (LinearGroup): `s` with the outputs of each. Without kLibraryBytes, and without the
// panel where tiles take its place (DecodeAhead). `apart`: more than one, outputs in arrays of their own;
// then their columns stand side by side here.
constexpr int64_t LinearGroupOwnBytes(WorkspaceShape s, const int64_t* n, int count, bool apart, bool tiles) {
  int64_t all = 0, bytes = 0;
  for (int i = 0; i < count; ++i) {
    s.n = n[i];
    all += n[i];
    bytes += AdapterGradientBytes(s) + AdapterPartialBytes(s);
  }
  return bytes + (tiles ? 0 : PanelBytes(all, s.k)) + (apart ? RoundUp(2 * s.m * all, 256) : 0);
}
constexpr int64_t LinearOwnBytes(const WorkspaceShape& s) {
  return LinearGroupOwnBytes(s, &s.n, 1, false, false);
}
constexpr int64_t LinearWorkspaceBytes(const WorkspaceShape& s) { return LinearOwnBytes(s) + kLibraryBytes; }

// Forward needs nothing; backward one float per query.
constexpr int64_t AttentionBackwardWorkspaceBytes(const WorkspaceShape& s) {
  return RoundUp(4 * s.m * s.heads, 256);
}

// Generation: keys in pieces of 256, each with a sum per element, a largest score and a total.
constexpr int64_t kDecodeKeys = 256;
constexpr int64_t AttentionDecodeWorkspaceBytes(int64_t length, int64_t heads, int64_t head_dim) {
  return RoundUp(4 * Pieces(length, kDecodeKeys) * heads * (head_dim + 2), 256);
}

// Rows with a label whose logits exist at once: 128 MiB of float logits, but 256 to 2048 rows, a multiple of
// 128. Fewer would wait for the head, which every chunk reads twice. Every chunk is multiplied at its full
// size, whatever is left.
constexpr int64_t CrossEntropyRows(int64_t m, int64_t vocab) {
  const int64_t fit = (int64_t{128} << 20) / (4 * Most(vocab, 1)) / 128 * 128;
  return Least(RoundUp(m, 128), Least(Most(fit, 256), 2048));
}
constexpr int64_t CrossEntropyStride(int64_t vocab) { return RoundUp(vocab, 8); }

// A head that is not in the act type is converted a panel at a time; any other is read where it is.
constexpr int64_t HeadPanelBytes(int64_t vocab, int64_t dim, bool converts_head) {
  return converts_head ? RoundUp(2 * PanelRows(vocab, dim) * dim, 256) : 0;
}

// Logits (float, then their gradient in act in the same place), gathered rows (act), their gradient
// (float), the list of labelled rows with its length, and every row's loss (double).
constexpr int64_t CrossEntropyOwnBytes(const WorkspaceShape& s, bool converts_head) {
  const int64_t rows = CrossEntropyRows(s.m, s.vocab);
  return RoundUp(4 * rows * CrossEntropyStride(s.vocab), 256) + RoundUp(2 * rows * s.k, 256) +
         RoundUp(4 * rows * s.k, 256) + RoundUp(4 * (s.m + 1), 256) + RoundUp(8 * s.m, 256) +
         HeadPanelBytes(s.vocab, s.k, converts_head);
}
constexpr int64_t CrossEntropyWorkspaceBytes(const WorkspaceShape& s, bool converts_head) {
  return CrossEntropyOwnBytes(s, converts_head) + kLibraryBytes;
}

constexpr int64_t LogitsOwnBytes(const WorkspaceShape& s, bool converts_head) {
  return HeadPanelBytes(s.vocab, s.k, converts_head);
}
constexpr int64_t LogitsWorkspaceBytes(const WorkspaceShape& s, bool converts_head) {
  return LogitsOwnBytes(s, converts_head) + kLibraryBytes;
}

// One sum in double for each block of its first kernel.
constexpr int64_t kSumSquaresParts = 1024;
constexpr int64_t SumSquaresWorkspaceBytes() { return 8 * kSumSquaresParts; }

}  // namespace nibble::kernels::cuda_workspace
