// What a model's config says to the kernels, for who calls them with it: training and generation. Pure.
#pragma once

#include <cstdint>

#include "engine/spec/model_config.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// Of a layer: heads, scale, window, cap; who runs it fills in its rows and documents.
kernels::AttentionArgs AttentionArgsOf(const spec::ModelConfig& model, int64_t layer);
// What norms add to their weight.
inline float NormOffset(const spec::ModelConfig& model) { return model.unit_norms ? 1.0f : 0.0f; }
// As transformers has it: a number of the activations' type.
float EmbeddingScale(const spec::ModelConfig& model, kernels::DType act);
inline float LogitCap(const spec::ModelConfig& model) { return static_cast<float>(model.logit_soft_cap); }
inline kernels::Activation ActivationOf(const spec::ModelConfig& model) {
  return model.gelu ? kernels::Activation::kGeluTanh : kernels::Activation::kSilu;
}

}  // namespace nibble::engine
