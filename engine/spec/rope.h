// The angles that queries and keys turn by (RoPE), and how a document's tokens find theirs. Pure.
//
// longrope has frequencies for documents up to the model's original positions and others for longer ones.
// Which a document gets depends on its own length alone, never on what it shares a batch with: as
// transformers does it for a document that comes by itself. A table for more than the original positions has
// both: rows [0, original) for short documents, behind them the rows of long ones.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/spec/model_config.h"

namespace nibble::spec {

// cos and sin of every row and frequency, fp32 arithmetic as transformers has it, for documents of up to
// `positions` tokens: f32 [RopeTables(), rows, RotaryWidth() / 2, 2].
std::vector<float> RopeTable(const ModelConfig& model, int64_t positions);
int64_t RopeTableElements(const ModelConfig& model, int64_t positions);

// First element of the table of one layer.
int64_t RopeTableBegin(const ModelConfig& model, int64_t layer, int64_t positions);

// Row of the first token of a document with so many tokens; the others follow.
int32_t RopeFirstRow(const ModelConfig& model, int64_t tokens);

// What RopeTable's angles are positions times, [RotaryWidth() / 2]; of longrope for documents of so many
// tokens.
std::vector<float> RopeFrequencies(const ModelConfig& model, int64_t tokens);

}  // namespace nibble::spec
