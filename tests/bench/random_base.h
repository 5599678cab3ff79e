// A frozen base of a named shape with seeded random weights, straight in the cache layout: what a
// benchmark needs of a model without making one. Quantized scales are small, so the loss stays
// finite.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/base_view.h"
#include "engine/region.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::bench {

// demo, 135m (SmolLM2), 1.1b (TinyLlama), 7b and 13b (Llama-2), 8b and 70b (Llama-3.1), qwen3-0.6b, -1.7b,
// -4b, -8b, gemma3-270m, -1b; empty model_type when unknown. `layers` 0 = as published.
spec::ModelConfig NamedShape(const std::string& name, int64_t layers);

class RandomBase {
 public:
  // In the backend's memory, which must outlive it. Arrays repeat what fits 4 MiB. On the host weights lie in
  // tiles, as in a cache file, or all in flat order: the same values, which are a device's, too.
  static absl::StatusOr<RandomBase> Make(kernels::Backend& backend, const spec::ModelConfig& model,
                                         spec::QuantKind quant, bool double_quant, uint64_t seed,
                                         bool tiles = true);
  const engine::BaseView& view() const { return view_; }
  int64_t bytes() const { return region_.mapped_bytes(); }

 private:
  engine::Region region_;
  engine::BaseView view_;
};

}  // namespace nibble::bench
