#include "engine/model_args.h"

#include <cmath>

#include "engine/model/floats.h"

namespace nibble::engine {

kernels::AttentionArgs AttentionArgsOf(const spec::ModelConfig& model, int64_t layer) {
  return {.heads = model.heads,
          .kv_heads = model.kv_heads,
          .head_dim = model.head_dim,
          .scale = model.ScoreScale(),
          .window = model.WindowOf(layer),
          .soft_cap = static_cast<float>(model.attention_soft_cap)};
}

float EmbeddingScale(const spec::ModelConfig& model, kernels::DType act) {
  if (!model.scaled_embedding) return 1;
  const float root = std::sqrt(static_cast<float>(model.hidden_size));
  if (act == kernels::DType::kBF16) return FloatFromBf16(Bf16FromFloat(root));
  if (act == kernels::DType::kF16) return FloatFromF16(F16FromFloat(root));
  return root;
}

}  // namespace nibble::engine
