#include "engine/spec/adapter_layout.h"

#include "engine/spec/base_layout.h"

namespace nibble::spec {

AdapterLayout LayoutAdapters(const ModelConfig& model, const TrainSpec& spec) {
  const int64_t alignment = spec.optimizer == OptimizerKind::kAdamW8bit ? kMomentBlock : 32;
  AdapterLayout layout;
  const auto take = [&](int64_t elements) {
    const int64_t start = layout.elements;
    layout.parameters += elements;
    layout.elements = (start + elements + alignment - 1) / alignment * alignment;
    return start;
  };
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    for (const Module module : spec.target_modules) {
      const LinearShape shape = ShapeOf(model, module);
      AdapterMatrix matrix{layer, module, shape.k, shape.n};
      matrix.a = take(spec.lora_r * shape.k);
      matrix.b = take(shape.n * spec.lora_r);
      layout.matrices.push_back(matrix);
    }
  }
  return layout;
}

const AdapterMatrix* AdapterLayout::Find(int32_t layer, Module module) const {
  for (const AdapterMatrix& matrix : matrices) {
    if (matrix.layer == layer && matrix.module == module) return &matrix;
  }
  return nullptr;
}

}  // namespace nibble::spec
