// The frozen base as the executor reads it: one pointer per array. Points into a BaseModel, or in
// tests into arrays of their own; immutable while anybody runs on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/spec/train_spec.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

struct BaseView {
  struct Layer {
    kernels::WeightView linear[spec::kModuleCount];
    kernels::ParamView bias[spec::kModuleCount];  // data null = none, here and below
    kernels::ParamView input_norm, post_norm, q_norm, k_norm;
    kernels::ParamView attention_norm, mlp_norm;
  };
  std::vector<Layer> layers;
  kernels::ParamView final_norm, embedding, head;  // head: the embedding when tied
};

// The same view of arrays that were copied, as they lay, from `from` to `to`.
BaseView MovedView(BaseView view, const std::byte* from, std::byte* to);

}  // namespace nibble::engine
