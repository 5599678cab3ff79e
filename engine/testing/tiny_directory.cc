#include "engine/testing/tiny_directory.h"

#include <deque>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/checkpoint_tensors.h"
#include "kernels/counter.h"
#include "nlohmann/json.hpp"

namespace nibble::engine::testing {
namespace {

using nlohmann::json;

constexpr int kByteBase = 3;  // ids 0 to 2 are special

// The byte-to-character table of byte-level tokenizers: printable bytes stand for themselves, the
// others follow from U+0100 on.
std::vector<std::string> ByteCharacters() {
  std::vector<std::string> characters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : next++;
    std::string text;
    if (code < 128) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xC0 | code >> 6);
      text += static_cast<char>(0x80 | (code & 63));
    }
    characters.push_back(text);
  }
  return characters;
}

std::string TokenizerJson() {
  json vocab = json::object();
  const std::vector<std::string> characters = ByteCharacters();
  json added = json::array();
  const char* const specials[] = {"<s>", "</s>", "<pad>"};
  for (int i = 0; i < 3; ++i) {
    vocab[specials[i]] = i;
    added.push_back({{"id", i},
                     {"content", specials[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (int i = 0; i < 256; ++i) vocab[characters[static_cast<size_t>(i)]] = kByteBase + i;
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"decoder", byte_level},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {bos, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"pair", json::array()},
        {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {0}}, {"tokens", {"<s>"}}}}}}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", json::array()}}}};
  return tokenizer.dump();
}

class Weights {
 public:
  explicit Weights(uint64_t seed) : seed_(seed) {}
  void Add(const std::string& name, std::vector<int64_t> shape, double scale, double offset = 0) {
    int64_t count = 1;
    for (const int64_t side : shape) count *= side;
    std::vector<float>& values = arrays_.emplace_back(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(
          offset + scale * (2.0 * kernels::CounterUniform(seed_, arrays_.size(), i) - 1));
    }
    tensors_.push_back({name, TensorType::kF32, std::move(shape), values.data()});
  }
  std::string Serialize() const { return SerializeSafetensors(tensors_, {{"format", "pt"}}); }

 private:
  uint64_t seed_;
  std::deque<std::vector<float>> arrays_;
  std::vector<TensorToWrite> tensors_;
};

std::string TinyConfig(int64_t hidden, const std::string& kind) {
  json config = {{"model_type", kind == "longrope" ? "llama" : kind},
                 {"vocab_size", kByteBase + 256},
                 {"hidden_size", hidden},
                 {"intermediate_size", 2 * hidden},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", hidden / 4},
                 {"max_position_embeddings", 128},
                 {"rms_norm_eps", 1e-5},
                 {"tie_word_embeddings", true},
                 {"torch_dtype", "float32"},
                 {"bos_token_id", 0},
                 {"eos_token_id", 1}};
  if (kind == "gemma2" || kind == "gemma3_text" || kind == "gemma3") {
    config.update({{"query_pre_attn_scalar", 11}, {"sliding_window", 4}});
    config["layer_types"] = {"sliding_attention", "full_attention"};
  }
  if (kind == "gemma2") config.update({{"attn_logit_softcapping", 5.0}, {"final_logit_softcapping", 6.0}});
  if (kind == "smollm3") config["no_rope_layers"] = {1, 0};
  if (kind == "longrope") {
    const auto pairs = static_cast<size_t>(hidden / 8);
    config["rope_scaling"] = {{"type", "longrope"},
                              {"original_max_position_embeddings", 20},
                              {"short_factor", std::vector<double>(pairs, 1)},
                              {"long_factor", std::vector<double>(pairs, 8)}};
  }
  if (kind == "gemma3") {
    config["model_type"] = "gemma3_text";
    return json{{"model_type", kind}, {"text_config", config}, {"eos_token_id", 1}}.dump();
  }
  return config.dump();
}

}  // namespace

spec::ModelConfig TinyDirectoryConfig(int64_t hidden, const std::string& kind) {
  const auto model = spec::ParseModelConfig(TinyConfig(hidden, kind));
  CHECK_OK(model.status());
  return *model;
}

void WriteTinyDirectory(const std::string& directory, uint64_t seed, int64_t hidden,
                        const std::string& kind) {
  const spec::ModelConfig model = TinyDirectoryConfig(hidden, kind);
  Weights weights(seed);
  for (const spec::CheckpointTensor& tensor : spec::CheckpointTensors(model)) {
    const bool norm = tensor.shape.size() == 1;
    const bool table = tensor.part == spec::BasePart::kEmbedding;
    weights.Add(tensor.name, tensor.shape,
                norm    ? 0.2
                : table ? 0.5
                        : 0.25,
                norm && !model.unit_norms ? 1 : 0);
  }
  if (model.HasVision()) weights.Add("vision_tower.encoder.layers.0.self_attn.q_proj.weight", {5, 7}, 0.5);
  CHECK_OK(MakeDirs(directory));
  CHECK_OK(WriteFileAtomic(JoinPath(directory, "config.json"), TinyConfig(hidden, kind)));
  CHECK_OK(WriteFileAtomic(JoinPath(directory, "model.safetensors"), weights.Serialize()));
  CHECK_OK(WriteFileAtomic(JoinPath(directory, "tokenizer.json"), TokenizerJson()));
  const json tokenizer_config = {
      {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"pad_token", "<pad>"}, {"add_bos_token", true}};
  CHECK_OK(WriteFileAtomic(JoinPath(directory, "tokenizer_config.json"), tokenizer_config.dump()));
}

void WriteTinyDataset(const std::string& path, int rows, uint64_t seed) {
  Random random(seed);
  std::string text;
  for (int i = 0; i < rows; ++i) {
    std::string word;
    for (int64_t n = random.Between(2, 9); n > 0; --n)
      word += static_cast<char>('a' + random.Below(6));
    const json row = {{"prompt", "upper " + word + ": "},
                      {"completion", std::string(static_cast<size_t>(word.size()), word.front())}};
    text += row.dump() + "\n";
  }
  CHECK_OK(WriteFileAtomic(path, text));
}

}  // namespace nibble::engine::testing
