// What config.json says of the Gemma kinds beyond what all kinds say. Of model_config.cc alone; pure.
#pragma once

#include "absl/status/status.h"
#include "engine/spec/model_config.h"
#include "nlohmann/json_fwd.hpp"

namespace nibble::spec {

// gemma, gemma2, gemma3_text
bool IsGemma(const ModelConfig& model);

// Activation, norms, caps, windows by layer. The numbers that all kinds have must be there already. Absent
// keys are what transformers takes them for.
absl::Status ReadGemma(const nlohmann::json& config, ModelConfig& model);

}  // namespace nibble::spec
