// Which tensors a base model's files have: what transformers calls them, and their shapes. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/spec/base_layout.h"
#include "engine/spec/model_config.h"

namespace nibble::spec {

struct CheckpointTensor {
  BasePart part;
  int32_t layer = -1;          // -1: not of a layer
  Module module = Module::kQ;  // of kCodes and kBias
  std::string name;
  std::vector<int64_t> shape;
};

// All of them, in the order of the layout. A linear (kCodes) is [outputs, inputs]; with tied embeddings there
// is no head.
std::vector<CheckpointTensor> CheckpointTensors(const ModelConfig& model);

// The name of one; empty for a part that is made and not read.
std::string CheckpointName(const ModelConfig& model, BasePart part, int64_t layer, Module module);

// What else a file may call it: as an inner model saved it, or another edition of transformers. The same name
// where there is no other.
std::string OtherCheckpointName(const ModelConfig& model, std::string_view name);

// Tensors that training does without by right: tables that follow from config.json, the head where it is the
// embedding, and what sees pictures.
bool IsLeftOut(const ModelConfig& model, std::string_view name);

// Of a module as transformers names it, the adapter's tensors too: "model.layers.3.self_attn.q_proj".
std::string ModulePath(const ModelConfig& model, int64_t layer, Module module);

}  // namespace nibble::spec
