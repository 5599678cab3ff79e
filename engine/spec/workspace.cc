#include "engine/spec/workspace.h"

#include <algorithm>

#include "engine/spec/round.h"

namespace nibble::spec {
namespace {

constexpr int64_t kThreadBytes = int64_t{1} << 20;

int64_t AttentionForward(const OpShape& s, int64_t threads) {
  return threads * (4608 * RoundUp(s.head_dim, 32) + 57344);
}

int64_t AttentionBackward(const OpShape& s, int64_t threads) {
  const int64_t dim = RoundUp(s.head_dim, 32);
  const int64_t group = s.kv_heads > 0 ? s.heads / s.kv_heads : 1;
  const int64_t cuts = s.kv_heads > 0 ? std::clamp<int64_t>((15 + s.kv_heads) / s.kv_heads, 1, group) : 1;
  const int64_t thread_bytes = dim * ((cuts == 1 ? 20 : 12) * s.longest_document + 5120) + 262144;
  return threads * thread_bytes + (cuts == 1 ? 0 : 8 * s.m * s.kv_heads * cuts * dim);
}

int64_t CrossEntropy(const OpShape& s, int64_t threads, int64_t act_bytes) {
  const int64_t fit = (int64_t{32} << 20) / (4 * std::max<int64_t>(1, s.vocab)) / 96 * 96;
  const int64_t chunk = std::min(s.m, std::clamp<int64_t>(fit, 96, 1056));
  const int64_t logit_bytes = std::max<int64_t>(4, act_bytes);
  return chunk * (logit_bytes * RoundUp(s.vocab, 64) + 8 * RoundUp(s.k, 64) + 64) +
         threads * (kThreadBytes + 256 * chunk);
}

// kernels/cuda/workspace.h.
namespace cuda {

constexpr int64_t kLibraryBytes = int64_t{32} << 20;
constexpr int64_t kPanelBytes = int64_t{64} << 20;
constexpr int64_t kSumSquaresBytes = int64_t{8} << 10;

constexpr int64_t Pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t PanelRows(int64_t count, int64_t other) {
  const int64_t fit = std::max<int64_t>(kPanelBytes / (2 * other) / 128 * 128, 128);
  return std::min(count, RoundUp(Pieces(count, Pieces(count, fit)), 128));
}

int64_t TilesAcross(int64_t columns) { return Pieces(columns, columns <= 16 ? 16 : 64); }

int64_t PartialBytes(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t tiles = Pieces(rows, 128) * TilesAcross(columns);
  const int64_t splits = std::max<int64_t>(
      1, std::min(Pieces(264, std::max<int64_t>(tiles, 1)), Pieces(depth, 256)));
  return RoundUp(4 * splits * rows * columns, 256);
}

// Of `rows` or fewer.
int64_t MostPartialBytes(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t filling = 263 / std::max<int64_t>(TilesAcross(columns), 1);
  return RoundUp(4 * std::min(Pieces(depth, 256) * rows, 128 * (filling + Pieces(rows, 128))) * columns, 256);
}

int64_t Panel(int64_t n, int64_t k) {
  return RoundUp(2 * std::max(PanelRows(n, k) * k, PanelRows(k, n) * n), 256);
}

int64_t Adapter(const OpShape& s, int64_t n) {
  if (s.r == 0) return 0;
  return RoundUp(2 * s.m * s.r, 256) +
         std::max({MostPartialBytes(s.m, s.r, s.k), MostPartialBytes(s.m, s.r, n),
                   PartialBytes(s.k, s.r, s.m), PartialBytes(n, s.r, s.m)});
}

int64_t Linear(const OpShape& s) {
  int64_t all = s.group > 0 ? 0 : s.n;
  int64_t bytes = s.group > 0 ? 0 : Adapter(s, s.n);
  for (int i = 0; i < s.group; ++i) {
    all += s.group_n[i];
    bytes += Adapter(s, s.group_n[i]);
  }
  return bytes + (s.tiles ? 0 : Panel(all, s.k)) + (s.apart ? RoundUp(2 * s.m * all, 256) : 0) +
         kLibraryBytes;
}

int64_t HeadPanel(const OpShape& s, bool converts_head) {
  return converts_head ? RoundUp(2 * PanelRows(s.vocab, s.k) * s.k, 256) : 0;
}

int64_t CrossEntropy(const OpShape& s, bool converts_head) {
  const int64_t fit =
      (int64_t{128} << 20) / (4 * std::max<int64_t>(s.vocab, 1)) / 128 * 128;
  const int64_t rows =
      std::min(RoundUp(s.m, 128), std::min<int64_t>(std::max<int64_t>(fit, 256), 2048));
  return RoundUp(4 * rows * RoundUp(s.vocab, 8), 256) + RoundUp(2 * rows * s.k, 256) +
         RoundUp(4 * rows * s.k, 256) + RoundUp(4 * (s.m + 1), 256) + RoundUp(8 * s.m, 256) +
         HeadPanel(s, converts_head) + kLibraryBytes;
}

int64_t Bytes(Op op, const OpShape& s, bool converts_head) {
  switch (op) {
    case Op::kLinearForward:
    case Op::kLinearBackward:
      return Linear(s);
    case Op::kAttentionBackward:
      return RoundUp(4 * s.m * s.heads, 256);
    case Op::kCrossEntropy:
      return CrossEntropy(s, converts_head);
    case Op::kSumSquares:
      return kSumSquaresBytes;
    case Op::kAttentionDecode:
      return RoundUp(4 * Pieces(s.longest_document, 256) * s.heads * (s.head_dim + 2), 256);
    case Op::kLogits:
      return HeadPanel(s, converts_head) + kLibraryBytes;
    default:
      return 0;  // elementwise, and attention forward
  }
}

}  // namespace cuda

}  // namespace

bool IsCuda(const DeviceProfile& profile) { return profile.backend.starts_with("cuda"); }

int64_t LinearPanelBytes(int64_t n, int64_t k) { return cuda::Panel(n, k); }

int64_t WorkspaceBytes(Op op, const OpShape& s, const DeviceProfile& profile) {
  if (IsCuda(profile)) return cuda::Bytes(op, s, profile.converts_head);
  const int64_t threads = profile.threads;
  switch (op) {
    case Op::kLinearForward:
    case Op::kLinearBackward:
      return threads * (kThreadBytes + 256 * s.m) + 32 * s.m * RoundUp(s.r, 32);
    case Op::kLogits:
      return threads * (kThreadBytes + 256 * s.m);
    case Op::kAttentionForward:
    case Op::kAttentionDecode:
      return AttentionForward(s, threads);
    case Op::kAttentionBackward:
      return AttentionBackward(s, threads);
    case Op::kCrossEntropy:
      return CrossEntropy(s, threads, profile.act_bytes);
    default:
      return 0;  // elementwise
  }
}

int64_t LinearPartBytes(const OpShape& shape, const DeviceProfile& profile) {
  return WorkspaceBytes(Op::kLinearForward, shape, profile) - profile.threads * kThreadBytes;
}

}  // namespace nibble::spec
