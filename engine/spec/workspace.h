// How much scratch each operation of a backend wants. The kernels say it themselves
// (kernels/<table>/workspace.h); this is the same arithmetic for those who must not know kernels. A
// test in engine/ holds the two together.
//
// Pure; grows with m, so the bytes planned for a full micro-batch serve every smaller one.
#pragma once

#include <cstdint>

#include "engine/spec/memory_plan.h"

namespace nibble::spec {

enum class Op : uint8_t {
  kLinearForward,
  kLinearBackward,
  kRmsNormForward,
  kRmsNormBackward,
  kAdd,
  kRope,
  kAttentionForward,
  kAttentionBackward,
  kGatedForward,
  kGatedBackward,
  kEmbedding,
  kCrossEntropy,
  kAdamW,
  kSumSquares,
  kToAct,
  // Of generation only:
  kAttentionDecode,
  kLogits,
};

struct OpShape {
  int64_t m = 0;  // tokens
  int64_t k = 0;  // inputs of a linear; hidden size for the loss
  int64_t n = 0;  // outputs of a linear
  int64_t r = 0;  // rank; 0 = no adapter
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t longest_document = 0;  // tokens; of generation all that is remembered
};

// The profile is one of a device whose memory is not the host's: "cuda", or in tests "cuda-emulated".
bool IsCuda(const DeviceProfile& profile);

int64_t WorkspaceBytes(Op op, const OpShape& shape, const DeviceProfile& profile);

}  // namespace nibble::spec
