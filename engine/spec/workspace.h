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
  kColumns,
  kEmbedding,
  kCrossEntropy,
  kAdamW,
  kSumSquares,
  kToAct,
  // Of generation only:
  kAttentionDecode,
  kLogits,
};

// Which weights an op reads: of `count` modules of a layer from `first` on; 0 = none.
struct LinearUse {
  int32_t layer = 0;
  Module first = Module::kQ;
  int32_t count = 0;
  bool backward = false;
};

struct OpShape {
  int64_t m = 0;  // tokens
  int64_t k = 0;  // inputs of a linear; hidden size for the loss
  int64_t n = 0;  // outputs of a linear
  int64_t r = 0;  // rank; 0 = no adapter
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t longest_document = 0;  // tokens; of generation all that is remembered
  // Of layers that are one op: the outputs of each (n is not used), r the largest rank. `apart`: their
  // outputs are tensors of their own.
  int64_t group_n[3] = {};
  int group = 0;
  bool apart = false;
  bool tiles = false;  // of linears: panels are not in the workspace (BaseCache::kAhead)
};

// The profile is one of a device whose memory is not the host's: "cuda", or in tests "cuda-emulated".
bool IsCuda(const DeviceProfile& profile);

int64_t WorkspaceBytes(Op op, const OpShape& shape, const DeviceProfile& profile);
// What one more part adds to a product of several (LinearPart in kernels/kernel_table.h); the first needs
// WorkspaceBytes. Of the host.
int64_t LinearPartBytes(const OpShape& shape, const DeviceProfile& profile);

// On a cuda device: the most that is decoded at once of linears with n outputs in all and k inputs.
int64_t LinearPanelBytes(int64_t n, int64_t k);

}  // namespace nibble::spec
