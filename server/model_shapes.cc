#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/base_layout.h"
#include "server/model_check.h"

namespace nibble::server {
namespace {

using Shape = std::vector<int64_t>;

// What config.json asks for, by name as transformers has it.
std::map<std::string, Shape> WantedTensors(const spec::ModelConfig& config) {
  std::map<std::string, Shape> wanted;
  const Shape table = {config.vocab_size, config.hidden_size}, norm = {config.hidden_size};
  wanted["model.embed_tokens.weight"] = table;
  wanted["model.norm.weight"] = norm;
  if (!config.tie_word_embeddings) wanted["lm_head.weight"] = table;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    wanted[prefix + "input_layernorm.weight"] = wanted[prefix + "post_attention_layernorm.weight"] = norm;
    if (config.qk_norm) {
      wanted[prefix + "self_attn.q_norm.weight"] = wanted[prefix + "self_attn.k_norm.weight"] = {
          config.head_dim};
    }
    for (int m = 0; m < spec::kModuleCount; ++m) {
      const auto module = static_cast<spec::Module>(m);
      const std::string_view part = spec::ModuleName(module);
      const std::string linear = absl::StrCat(prefix, module <= spec::Module::kO ? "self_attn." : "mlp.",
                                              absl::string_view(part.data(), part.size()));
      const spec::LinearShape shape = spec::ShapeOf(config, module);
      wanted[linear + ".weight"] = {shape.n, shape.k};
      if (config.qkv_bias && module <= spec::Module::kV) wanted[linear + ".bias"] = {shape.n};
    }
  }
  return wanted;
}

__int128 Elements(const Shape& shape) {
  __int128 count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string Text(const Shape& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::Status Bad(std::string_view what) {
  return Error(Reason::kModelFileInvalid,
               absl::StrCat("model.safetensors: ", absl::string_view(what.data(), what.size())))
      .With("file", "model.safetensors");
}

// Of one that is there.
absl::Status CheckOne(const std::string& name, const TensorFacts& tensor, const Shape& wanted) {
  if (tensor.dtype == "U8" && wanted.size() == 2) {
    // Two weights a byte, in whatever shape bitsandbytes gave them; the engine reads the rest of it.
    if (Elements(tensor.shape) == (Elements(wanted) + 1) / 2) return absl::OkStatus();
    return Bad(absl::StrCat(name, " has shape ", Text(tensor.shape), " in four bits, config.json asks for ",
                            Text(wanted)));
  }
  if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
    return Bad(absl::StrCat(name, " has type ", tensor.dtype,
                            "; a base must be given in F32, F16 or BF16, or in four bits by bitsandbytes"));
  }
  if (tensor.shape == wanted) return absl::OkStatus();
  return Bad(absl::StrCat(name, " has shape ", Text(tensor.shape), ", config.json asks for ", Text(wanted),
                          "; they are not of the same model"));
}

}  // namespace

absl::Status CheckTensors(const std::map<std::string, TensorFacts>& tensors,
                          const spec::ModelConfig& config) {
  std::map<std::string, Shape> wanted = WantedTensors(config);
  std::map<std::string, bool> used;  // and whether in four bits
  for (const auto& [name, shape] : wanted) {
    auto found = tensors.find(name);
    // Checkpoints saved from the inner model lack the prefix.
    if (found == tensors.end() && absl::StartsWith(name, "model.")) found = tensors.find(name.substr(6));
    if (found == tensors.end())
      return Bad(absl::StrCat("no shard holds ", name, ", which config.json asks for"));
    RETURN_IF_ERROR(CheckOne(found->first, found->second, shape));
    used[found->first] = found->second.dtype == "U8";
  }
  // A weight in four bits has companions: "….weight.absmax". They come right after it in this order.
  std::string companions = "\x01";
  for (const auto& [name, tensor] : tensors) {
    const auto mine = used.find(name);
    if (mine != used.end()) {
      if (mine->second) companions = name + ".";
      continue;
    }
    if (absl::StartsWith(name, companions) || absl::EndsWith(name, "rotary_emb.inv_freq")) continue;
    if (name == "lm_head.weight" && config.tie_word_embeddings) continue;  // the embedding again
    return Bad(absl::StrCat(name.substr(0, 128), " has no place in a ", config.model_type, " model with ",
                            config.layers, " layers; training would leave it out"));
  }
  return absl::OkStatus();
}

}  // namespace nibble::server
