// The frozen base as the executor reads it: one pointer per array. Points into a BaseModel, or in
// tests into arrays of their own; immutable while anybody runs on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/spec/train_spec.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

class BaseModel;

struct BaseView {
  struct Layer {
    kernels::WeightView linear[spec::kModuleCount];
    kernels::ParamView bias[spec::kModuleCount];  // data null = none
    kernels::ParamView input_norm, post_norm, q_norm, k_norm;
  };
  std::vector<Layer> layers;
  kernels::ParamView final_norm, embedding, head;
};

// `base` must outlive the view.
BaseView ViewOf(const BaseModel& base);
// The same view of arrays that were copied, as they lay, from `from` to `to`.
BaseView MovedView(BaseView view, const std::byte* from, std::byte* to);

}  // namespace nibble::engine
