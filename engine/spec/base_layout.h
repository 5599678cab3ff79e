// Where every array of a quantized base lies in its cache file. The file is this layout, so the
// plan's base bytes are the file's size.
//
// The file: a header page of 4096 bytes (written by engine/base_model), then the entries below in
// order, each at a multiple of 64 bytes, the whole padded to a multiple of 4096. 16-bit parts are
// bf16. Pure functions of the model's numbers; values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::spec {

inline constexpr int64_t kBaseHeaderBytes = 4096;
inline constexpr int64_t kBaseEntryAlignment = 64;
inline constexpr int64_t kQuantBlock = 64;    // weights per absmax
inline constexpr int64_t kNestedBlock = 256;  // absmax codes per nested absmax

enum class BasePart {
  kCodeBook,       // f32 [16], or [256] for INT8; not for BF16
  kNestedMap,      // f32 [256]; double quantization only
  kOffsets,        // f32 [layers * 7]: mean absmax of each linear by NumberOf; double quantization only
  kEmbedding,      // bf16 [vocab, hidden]
  kHead,           // bf16 [vocab, hidden]; absent when tied
  kFinalNorm,      // bf16 [hidden]
  kInputNorm,      // bf16 [hidden], per layer
  kPostNorm,       // bf16 [hidden]: before the gated product
  kAttentionNorm,  // bf16 [hidden]: behind attention and, kMlpNorm, the gated product; post norms only
  kMlpNorm,
  kQueryNorm,  // bf16 [head_dim]; qwen3, gemma3_text
  kKeyNorm,
  kBias,          // bf16 [n], of q, k, v; qwen2
  kCodes,         // packed codes of a linear; the bf16 values for BF16
  kAbsmax,        // f32 [blocks]; without double quantization
  kAbsmaxCodes,   // u8 [blocks]; with
  kNestedAbsmax,  // f32 [ceil(blocks / 256)]; with
};

// An array with some bytes for each block of a matrix whose rows are whole blocks: what can lie in tiles (see
// WeightOrder in kernels/kernel_table.h) as well as in flat order, of the same size in both.
struct TileShape {
  int64_t rows = 0;  // 0: no such array
  int64_t row_blocks = 0;
  int64_t unit_bytes = 0;  // of a block
};

struct BaseEntry {
  BasePart part;
  int32_t layer = -1;          // -1: not of a layer
  Module module = Module::kQ;  // kBias, kCodes and the scales only
  int64_t offset = 0;          // from the start of the file
  int64_t size_bytes = 0;
  TileShape tiles{};
};

// Among kOffsets, of an array of a linear.
inline int64_t OffsetIndex(const BaseEntry& entry) {
  return int64_t{entry.layer} * kNumbersPerLayer + NumberOf(entry.module);
}

struct BaseLayout {
  std::vector<BaseEntry> entries;  // by offset
  int64_t file_bytes = 0;

  // Null when the base has no such part.
  const BaseEntry* Find(BasePart part, int32_t layer = -1, Module module = Module::kQ) const;
};

// Outputs (n) and inputs (k) of a linear.
struct LinearShape {
  int64_t n = 0;
  int64_t k = 0;
};
LinearShape ShapeOf(const ModelConfig& model, Module module);

// `double_quant` is ignored for INT8 and BF16.
BaseLayout LayoutBase(const ModelConfig& model, QuantKind quant, bool double_quant);

// e.g. "layers.3.q_proj.codes", "embedding".
std::string BaseEntryName(const BaseEntry& entry);

}  // namespace nibble::spec
