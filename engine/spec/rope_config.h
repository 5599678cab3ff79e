// What config.json says of RoPE, at the top level and in rope_parameters or rope_scaling. Of model_config.cc
// and its test alone; pure.
#pragma once

#include "absl/status/status.h"
#include "engine/spec/model_config.h"
#include "nlohmann/json_fwd.hpp"

namespace nibble::spec {

// model_type, head_dim and max_positions must be there already. Absent keys are what transformers takes them
// for.
absl::Status ReadRope(const nlohmann::json& config, ModelConfig& model);

// Layers of a SmolLM3 whose queries and keys know no position.
absl::Status ReadUnturnedLayers(const nlohmann::json& config, ModelConfig& model);

}  // namespace nibble::spec
