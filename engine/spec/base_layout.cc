#include "engine/spec/base_layout.h"

#include <algorithm>

#include "base/status.h"
#include "engine/spec/round.h"

namespace nibble::spec {
namespace {

int64_t CodeBytes(QuantKind quant, int64_t count) {
  switch (quant) {
    case QuantKind::kNF4:
    case QuantKind::kFP4:
    case QuantKind::kINT4:
      return CeilDiv(count, 2);
    case QuantKind::kINT8:
      return count;
    case QuantKind::kBF16:
      return 2 * count;
  }
  return 0;
}

class Builder {
 public:
  void Add(BasePart part, int64_t size_bytes, int32_t layer = -1, Module module = Module::kQ,
           TileShape tiles = {}) {
    layout_.entries.push_back({part, layer, module, next_, size_bytes, tiles});
    next_ = RoundUp(next_ + size_bytes, kBaseEntryAlignment);
  }
  BaseLayout Finish() {
    layout_.file_bytes = RoundUp(next_, 4096);
    return std::move(layout_);
  }

 private:
  BaseLayout layout_;
  int64_t next_ = kBaseHeaderBytes;
};

std::string_view PartName(BasePart part) {
  switch (part) {
    case BasePart::kCodeBook:
      return "code_book";
    case BasePart::kNestedMap:
      return "nested_map";
    case BasePart::kOffsets:
      return "offsets";
    case BasePart::kEmbedding:
      return "embedding";
    case BasePart::kHead:
      return "head";
    case BasePart::kFinalNorm:
      return "final_norm";
    case BasePart::kInputNorm:
      return "input_norm";
    case BasePart::kPostNorm:
      return "post_norm";
    case BasePart::kAttentionNorm:
      return "attention_norm";
    case BasePart::kMlpNorm:
      return "mlp_norm";
    case BasePart::kQueryNorm:
      return "q_norm";
    case BasePart::kKeyNorm:
      return "k_norm";
    case BasePart::kBias:
      return "bias";
    case BasePart::kCodes:
      return "codes";
    case BasePart::kAbsmax:
      return "absmax";
    case BasePart::kAbsmaxCodes:
      return "absmax_codes";
    case BasePart::kNestedAbsmax:
      return "nested_absmax";
  }
  return "";
}

bool OfLinear(BasePart part) {
  return part == BasePart::kBias || part == BasePart::kCodes || part == BasePart::kAbsmax ||
         part == BasePart::kAbsmaxCodes || part == BasePart::kNestedAbsmax;
}

void AddLinear(Builder& builder, const ModelConfig& model, QuantKind quant, bool nested,
               int32_t layer, Module module) {
  const LinearShape shape = ShapeOf(model, module);
  const int64_t count = shape.n * shape.k;
  if (quant == QuantKind::kBF16) return builder.Add(BasePart::kCodes, CodeBytes(quant, count), layer, module);
  const auto tiles = [&](int64_t unit_bytes) {
    return shape.k % kQuantBlock == 0 ? TileShape{shape.n, shape.k / kQuantBlock, unit_bytes} : TileShape{};
  };
  builder.Add(BasePart::kCodes, CodeBytes(quant, count), layer, module, tiles(CodeBytes(quant, kQuantBlock)));
  const int64_t blocks = CeilDiv(count, kQuantBlock);
  if (nested) {
    builder.Add(BasePart::kAbsmaxCodes, blocks, layer, module, tiles(1));
    builder.Add(BasePart::kNestedAbsmax, 4 * CeilDiv(blocks, kNestedBlock), layer, module);
  } else {
    builder.Add(BasePart::kAbsmax, 4 * blocks, layer, module, tiles(4));
  }
}

}  // namespace

LinearShape ShapeOf(const ModelConfig& model, Module module) {
  const int64_t hidden = model.hidden_size;
  switch (module) {
    case Module::kQ:
      return {model.QueryWidth(), hidden};
    case Module::kK:
    case Module::kV:
      return {model.KeyValueWidth(), hidden};
    case Module::kQkv:
      return {model.QueryWidth() + 2 * model.KeyValueWidth(), hidden};
    case Module::kO:
      return {hidden, model.QueryWidth()};
    case Module::kGate:
    case Module::kUp:
      return {model.intermediate_size, hidden};
    case Module::kGateUp:
      return {2 * model.intermediate_size, hidden};
    case Module::kDown:
      return {hidden, model.intermediate_size};
  }
  return {};
}

BaseLayout LayoutBase(const ModelConfig& model, QuantKind quant, bool double_quant) {
  const bool nested = double_quant && quant != QuantKind::kINT8 && quant != QuantKind::kBF16;
  const int64_t hidden = model.hidden_size;
  Builder builder;
  if (quant != QuantKind::kBF16) {
    builder.Add(BasePart::kCodeBook, quant == QuantKind::kINT8 ? 1024 : 64);
  }
  if (nested) {
    builder.Add(BasePart::kNestedMap, 1024);
    builder.Add(BasePart::kOffsets, 4 * model.layers * kNumbersPerLayer);
  }
  builder.Add(BasePart::kEmbedding, 2 * model.vocab_size * hidden);
  if (!model.tie_word_embeddings) builder.Add(BasePart::kHead, 2 * model.vocab_size * hidden);
  builder.Add(BasePart::kFinalNorm, 2 * hidden);
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    builder.Add(BasePart::kInputNorm, 2 * hidden, layer);
    builder.Add(BasePart::kPostNorm, 2 * hidden, layer);
    if (model.post_norms) {
      builder.Add(BasePart::kAttentionNorm, 2 * hidden, layer);
      builder.Add(BasePart::kMlpNorm, 2 * hidden, layer);
    }
    if (model.qk_norm) {
      builder.Add(BasePart::kQueryNorm, 2 * model.head_dim, layer);
      builder.Add(BasePart::kKeyNorm, 2 * model.head_dim, layer);
    }
    for (const Module module : ModulesOf(model)) {
      if (model.qkv_bias && module <= Module::kV) {
        builder.Add(BasePart::kBias, 2 * ShapeOf(model, module).n, layer, module);
      }
      AddLinear(builder, model, quant, nested, layer, module);
    }
  }
  return builder.Finish();
}

const BaseEntry* BaseLayout::Find(BasePart part, int32_t layer, Module module) const {
  for (const BaseEntry& entry : entries) {
    if (entry.part == part && entry.layer == layer && (!OfLinear(part) || entry.module == module)) {
      return &entry;
    }
  }
  return nullptr;
}

std::string BaseEntryName(const BaseEntry& entry) {
  std::string name;
  if (entry.layer >= 0) name = "layers." + std::to_string(entry.layer) + ".";
  if (OfLinear(entry.part)) name.append(ModuleName(entry.module)).append(".");
  return name.append(PartName(entry.part));
}

}  // namespace nibble::spec
