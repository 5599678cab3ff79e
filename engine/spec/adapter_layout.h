// Where each LoRA matrix lies in the flat arrays of a job (masters, gradients, moments, compute
// copies).
//
// All matrices stand behind each other, by layer and module, A before B, each at a multiple of 32
// elements (256 with 8-bit moments, whose blocks then never hold two matrices); the gaps
// hold zeros and stay zero under AdamW. Elements, not bytes: the same for every type.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::spec {

inline constexpr int64_t kMomentBlock = 256;  // elements per absmax of the 8-bit moments

struct AdapterMatrix {
  int32_t layer = 0;
  Module module = Module::kQ;
  int64_t in = 0;
  int64_t out = 0;
  int64_t a = 0;  // first element of A [r, in]
  int64_t b = 0;  // first element of B [out, r]
};

struct AdapterLayout {
  std::vector<AdapterMatrix> matrices;  // by layer, then module
  int64_t elements = 0;                 // with gaps
  int64_t parameters = 0;               // without

  // Null when the module has no adapter.
  const AdapterMatrix* Find(int32_t layer, Module module) const;
};

// `spec` must be resolved.
AdapterLayout LayoutAdapters(const ModelConfig& model, const TrainSpec& spec);

}  // namespace nibble::spec
