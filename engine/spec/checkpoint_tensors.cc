#include "engine/spec/checkpoint_tensors.h"

#include "absl/strings/str_cat.h"

namespace nibble::spec {

namespace {

// Of a model with pictures: what files on the hub have, and what transformers names the modules since 4.52.
constexpr std::string_view kText = "language_model.model.", kTextModule = "model.language_model.";

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

std::string PathBehind(std::string_view inner, int64_t layer, Module module) {
  return absl::StrCat(View(inner), "layers.", layer, module <= Module::kO ? ".self_attn." : ".mlp.",
                      View(ModuleName(module)));
}

}  // namespace

std::string ModulePath(const ModelConfig& model, int64_t layer, Module module) {
  return PathBehind(model.HasVision() ? kTextModule : "model.", layer, module);
}

std::string OtherCheckpointName(const ModelConfig& model, std::string_view name) {
  if (model.HasVision()) {
    if (name.starts_with(kText)) return absl::StrCat(View(kTextModule), View(name.substr(kText.size())));
  } else if (name.starts_with("model.")) {
    name.remove_prefix(6);
  }
  return std::string(name);
}

bool IsLeftOut(const ModelConfig& model, std::string_view name) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  if (model.tie_word_embeddings && name == "lm_head.weight") return true;
  if (!model.HasVision()) return false;
  if (name == "language_model.lm_head.weight") return true;
  if (name.starts_with("model.")) name.remove_prefix(6);
  return name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.");
}

std::string CheckpointName(const ModelConfig& model, BasePart part, int64_t layer, Module module) {
  const std::string inner(model.HasVision() ? kText : "model.");
  const std::string prefix = absl::StrCat(inner, "layers.", layer, ".");
  const auto linear = [&](const char* suffix) { return PathBehind(inner, layer, module) + suffix; };
  switch (part) {
    case BasePart::kEmbedding:
      return inner + "embed_tokens.weight";
    case BasePart::kHead:
      return "lm_head.weight";
    case BasePart::kFinalNorm:
      return inner + "norm.weight";
    case BasePart::kInputNorm:
      return prefix + "input_layernorm.weight";
    case BasePart::kPostNorm:
      return prefix +
             (model.post_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight");
    case BasePart::kAttentionNorm:
      return prefix + "post_attention_layernorm.weight";
    case BasePart::kMlpNorm:
      return prefix + "post_feedforward_layernorm.weight";
    case BasePart::kQueryNorm:
      return prefix + "self_attn.q_norm.weight";
    case BasePart::kKeyNorm:
      return prefix + "self_attn.k_norm.weight";
    case BasePart::kBias:
      return linear(".bias");
    case BasePart::kCodes:
      return linear(".weight");
    default:
      return "";
  }
}

std::vector<CheckpointTensor> CheckpointTensors(const ModelConfig& model) {
  std::vector<CheckpointTensor> all;
  const auto add = [&](BasePart part, int32_t layer, Module module, std::vector<int64_t> shape) {
    all.push_back({part, layer, module, CheckpointName(model, part, layer, module), std::move(shape)});
  };
  const std::vector<int64_t> table = {model.vocab_size, model.hidden_size}, norm = {model.hidden_size};
  add(BasePart::kEmbedding, -1, Module::kQ, table);
  if (!model.tie_word_embeddings) add(BasePart::kHead, -1, Module::kQ, table);
  add(BasePart::kFinalNorm, -1, Module::kQ, norm);
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    add(BasePart::kInputNorm, layer, Module::kQ, norm);
    add(BasePart::kPostNorm, layer, Module::kQ, norm);
    if (model.post_norms) {
      add(BasePart::kAttentionNorm, layer, Module::kQ, norm);
      add(BasePart::kMlpNorm, layer, Module::kQ, norm);
    }
    if (model.qk_norm) {
      add(BasePart::kQueryNorm, layer, Module::kQ, {model.head_dim});
      add(BasePart::kKeyNorm, layer, Module::kQ, {model.head_dim});
    }
    for (const Module module : ModulesOf(model)) {
      const LinearShape shape = ShapeOf(model, module);
      if (model.qkv_bias && module <= Module::kV) add(BasePart::kBias, layer, module, {shape.n});
      add(BasePart::kCodes, layer, module, {shape.n, shape.k});
    }
  }
  return all;
}

}  // namespace nibble::spec
