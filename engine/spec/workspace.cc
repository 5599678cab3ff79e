#include "engine/spec/workspace.h"

#include <algorithm>

namespace nibble::spec {
namespace {

constexpr int64_t kThreadBytes = int64_t{1} << 20;
constexpr int64_t kAttentionBlock = 96;

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t AttentionForward(const OpShape& s, int64_t threads) {
  return threads * (kAttentionBlock * (24 * RoundUp(s.head_dim, 32) + 16 * kAttentionBlock) + 4096);
}

int64_t AttentionBackward(const OpShape& s, int64_t threads) {
  return AttentionForward(s, threads) +
         threads * 20 * RoundUp(s.head_dim, 32) * (s.longest_document + 2 * kAttentionBlock);
}

int64_t CrossEntropy(const OpShape& s, int64_t threads, int64_t act_bytes) {
  const int64_t fit = (int64_t{32} << 20) / (4 * std::max<int64_t>(1, s.vocab)) / 96 * 96;
  const int64_t chunk = std::min(s.m, std::clamp<int64_t>(fit, 96, 1056));
  const int64_t logit_bytes = std::max<int64_t>(4, act_bytes);
  return chunk * (logit_bytes * RoundUp(s.vocab, 64) + 8 * RoundUp(s.k, 64) + 64) +
         threads * (kThreadBytes + 256 * chunk);
}

}  // namespace

int64_t WorkspaceBytes(Op op, const OpShape& s, const DeviceProfile& profile) {
  const int64_t threads = profile.threads;
  switch (op) {
    case Op::kLinearForward:
    case Op::kLinearBackward:
      return threads * (kThreadBytes + 256 * s.m) + 32 * s.m * RoundUp(s.r, 32);
    case Op::kAttentionForward:
      return AttentionForward(s, threads);
    case Op::kAttentionBackward:
      return AttentionBackward(s, threads);
    case Op::kCrossEntropy:
      return CrossEntropy(s, threads, profile.act_bytes);
    default:
      return 0;  // elementwise
  }
}

}  // namespace nibble::spec
