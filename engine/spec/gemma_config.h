// What config.json says of the Gemma kinds beyond what all kinds say. Of model_config.cc alone; pure.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"
#include "nlohmann/json_fwd.hpp"

namespace nibble::spec {

// gemma, gemma2, gemma3_text, gemma3
bool IsGemma(const ModelConfig& model);
bool IsGemma3(const ModelConfig& model);

// Of a Gemma 3 the config of the text model, with what transformers takes for a key that is absent; of one
// that sees pictures (gemma3) it lies in text_config. Any other config comes back as it is.
absl::StatusOr<nlohmann::json> Gemma3TextConfig(const nlohmann::json& config);

// Activation, norms, caps, windows by layer. The numbers that all kinds have must be there already. Absent
// keys are what transformers takes them for.
absl::Status ReadGemma(const nlohmann::json& config, ModelConfig& model);

}  // namespace nibble::spec
