#include "engine/text/tokenizer.h"

#include <deque>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "engine/text/text.h"
#include "engine/text/tokenizer_pipeline.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using tokenizer::Pipeline;

constexpr int64_t kMaxTokenizerBytes = 64 << 20;
constexpr int64_t kMaxConfigBytes = 4 << 20;

// "bos_token": a string, or an object with its content.
std::optional<int32_t> SpecialId(const Pipeline& pipeline, const json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  const json* content = &*it;
  if (it->is_object() && it->contains("content")) content = &(*it)["content"];
  if (!content->is_string()) return std::nullopt;
  const auto id = pipeline.ids.find(content->get_ref<const std::string&>());
  return id == pipeline.ids.end() ? std::nullopt : std::optional(id->second);
}

// A string, or a list of named templates of which "default" is meant.
std::string TemplateOf(const json& config) {
  const auto it = config.find("chat_template");
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return "";
  for (const json& entry : *it) {
    if (entry.is_object() && entry.value("name", json()) == "default" &&
        entry.value("template", json()).is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return "";
}

absl::Status ApplyConfig(std::string_view config_json, Pipeline& pipeline) {
  if (config_json.empty()) return absl::OkStatus();
  if (JsonDepth(config_json) > kMaxJsonDepth) {
    return Error(Reason::kTokenizerUnsupported, "tokenizer_config.json is nested too deep");
  }
  const json config = json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return Error(Reason::kTokenizerUnsupported, "tokenizer_config.json is no JSON object");
  }
  pipeline.bos = SpecialId(pipeline, config, "bos_token");
  pipeline.eos = SpecialId(pipeline, config, "eos_token");
  pipeline.pad = SpecialId(pipeline, config, "pad_token");
  if (pipeline.chat_template.empty()) pipeline.chat_template = TemplateOf(config);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadIfThere(const std::string& path, int64_t max_bytes) {
  if (!FileExists(path)) return std::string();
  return ReadFile(path, max_bytes);
}

// bos_token_id or eos_token_id of a model's config.json: a number, or a list whose first we take.
void FillFromModelConfig(std::string_view config_json, Pipeline& pipeline) {
  if (JsonDepth(config_json) > kMaxJsonDepth) return;
  const json config = json::parse(config_json, nullptr, false);
  if (!config.is_object()) return;
  const auto fill = [&](const char* key, std::optional<int32_t>& id) {
    json value = config.value(key, json());
    if (value.is_array() && !value.empty()) value = json(value.front());
    if (id || !value.is_number_unsigned()) return;
    const auto number = value.get<uint64_t>();
    if (number < pipeline.contents.size() && !pipeline.contents[number].empty()) {
      id = static_cast<int32_t>(number);
    }
  };
  fill("bos_token_id", pipeline.bos);
  fill("eos_token_id", pipeline.eos);
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const Pipeline> pipeline) : pipeline_(std::move(pipeline)) {}

absl::StatusOr<Tokenizer> Tokenizer::FromJson(std::string_view tokenizer_json,
                                              std::string_view config_json,
                                              std::string_view chat_template) {
  ASSIGN_OR_RETURN(Pipeline pipeline, tokenizer::LoadPipeline(tokenizer_json));
  pipeline.chat_template = std::string(chat_template);
  RETURN_IF_ERROR(ApplyConfig(config_json, pipeline));
  if (!pipeline.bos && !pipeline.prefix.empty()) pipeline.bos = pipeline.prefix.front();
  Sha256 digest;
  for (const std::string_view part : {tokenizer_json, config_json, chat_template}) {
    digest.Update(absl::StrCat(part.size(), ":"));
    digest.Update(part);
  }
  pipeline.digest = digest.FinishHex();
  return Tokenizer(std::make_shared<const Pipeline>(std::move(pipeline)));
}

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& directory) {
  const std::string path = JoinPath(directory, "tokenizer.json");
  if (!IsDirectory(directory))
    return Error(Reason::kBaseModelNotFound, absl::StrCat("base model ", directory, ": no such directory"));
  if (!FileExists(path)) {
    return Error(Reason::kTokenizerUnsupported,
                 absl::StrCat(path,
                              " is missing; other tokenizer files (tokenizer.model, vocab.json) "
                              "must be converted to tokenizer.json first"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenizerBytes));
  ASSIGN_OR_RETURN(std::string config,
                   ReadIfThere(JoinPath(directory, "tokenizer_config.json"), kMaxConfigBytes));
  if (config.empty()) {
    ASSIGN_OR_RETURN(config,
                     ReadIfThere(JoinPath(directory, "special_tokens_map.json"), kMaxConfigBytes));
  }
  ASSIGN_OR_RETURN(const std::string chat_template,
                   ReadIfThere(JoinPath(directory, "chat_template.jinja"), kMaxConfigBytes));
  ASSIGN_OR_RETURN(Tokenizer loaded, FromJson(text, config, chat_template));
  if (loaded.bos_id() && loaded.eos_id()) return loaded;
  ASSIGN_OR_RETURN(const std::string model,
                   ReadIfThere(JoinPath(directory, "config.json"), kMaxConfigBytes));
  auto completed = std::make_shared<Pipeline>(*loaded.pipeline_);
  FillFromModelConfig(model, *completed);
  return Tokenizer(std::move(completed));
}

const std::vector<int32_t>& Tokenizer::prefix() const { return pipeline_->prefix; }

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool add_special,
                                       bool continues) const {
  const Pipeline& p = *pipeline_;
  std::vector<int32_t> ids;
  if (add_special) ids = p.prefix;
  const std::string repaired = IsValidUtf8(text) ? std::string() : RepairUtf8(text);
  if (!repaired.empty()) text = repaired;
  std::deque<std::string> arena;
  for (const tokenizer::Segment& outer : p.raw_tokens.Find(text)) {
    if (outer.id >= 0) {
      ids.push_back(outer.id);
      continue;
    }
    std::string_view part = text.substr(outer.begin, outer.end - outer.begin);
    if (!p.normalizer.empty()) {
      const bool goes_on = continues && outer.begin == 0;
      part = arena.emplace_back(tokenizer::NormalizeText(p.normalizer, part, goes_on));
    }
    for (const tokenizer::Segment& inner : p.normalized_tokens.Find(part)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
        continue;
      }
      const bool first = outer.begin == 0 && inner.begin == 0;
      const tokenizer::Piece whole{part.substr(inner.begin, inner.end - inner.begin),
                                   first && !continues, first && continues};
      for (const tokenizer::Piece& piece : PreTokenize(p.pre_tokenizer, whole, arena)) {
        p.model.Encode(piece.text, ids);
      }
    }
  }
  if (add_special) ids.insert(ids.end(), p.suffix.begin(), p.suffix.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  const Pipeline& p = *pipeline_;
  std::vector<std::string> tokens;
  for (const int32_t id : ids) {
    if (TokenContent(id).empty() || (skip_special && IsSpecial(id))) continue;
    tokens.push_back(p.contents[id]);
  }
  return tokenizer::DecodeTokens(p.decoder, p.join_with_spaces, std::move(tokens));
}

std::string_view Tokenizer::Behind(int32_t last, std::string_view text) const {
  if (!pipeline_->takes_space_behind.contains(last)) return text;
  while (!text.empty() && static_cast<size_t>(CharBytes(text.front())) <= text.size()) {
    const CodePoint c = DecodeAt(text, 0);
    if (!IsSpace(c.value)) break;
    text.remove_prefix(static_cast<size_t>(c.bytes));
  }
  return text;
}

std::optional<int32_t> Tokenizer::bos_id() const { return pipeline_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return pipeline_->eos; }
std::optional<int32_t> Tokenizer::pad_id() const { return pipeline_->pad; }
int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(pipeline_->contents.size()); }

std::optional<int32_t> Tokenizer::TokenId(std::string_view content) const {
  const auto it = pipeline_->ids.find(View(content));
  return it == pipeline_->ids.end() ? std::nullopt : std::optional(it->second);
}

std::string_view Tokenizer::TokenContent(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return "";
  return pipeline_->contents[id];
}

bool Tokenizer::IsSpecial(int32_t id) const { return pipeline_->special.contains(id); }
const std::string& Tokenizer::chat_template() const { return pipeline_->chat_template; }
const std::string& Tokenizer::digest() const { return pipeline_->digest; }

}  // namespace nibble::engine
