#include "engine/model/stop_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace nibble::engine {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMaxBytes = 1 << 20;
constexpr char kConfig[] = "config.json", kGenerationConfig[] = "generation_config.json";

// No object when there is none.
ordered_json ObjectIn(const std::string& path) {
  const auto text = ReadFile(path, kMaxBytes);
  if (!text.ok()) return {};
  ordered_json object = ordered_json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return object.is_object() ? object : ordered_json();
}

// One id, or a list of them.
std::vector<int32_t> IdsIn(const ordered_json& config) {
  std::vector<int32_t> ids;
  if (!config.contains("eos_token_id")) return ids;
  const ordered_json& eos = config["eos_token_id"];
  for (const ordered_json& id : eos.is_array() ? eos : ordered_json::array({eos})) {
    if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// As ExportAdapter writes it: a JSON string on a line of its own.
std::string TemplateOf(const std::string& adapter_dir) {
  const auto recipe = ReadFile(JoinPath(adapter_dir, "nibble_job.yaml"), kMaxBytes);
  if (!recipe.ok()) return "";
  for (absl::string_view line : absl::StrSplit(*recipe, '\n')) {
    if (!absl::ConsumePrefix(&line, "chat_template: ")) continue;
    const auto name = nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    return name.is_string() ? name.get<std::string>() : "";
  }
  return "";
}

}  // namespace

std::set<int32_t> EosIds(const std::string& model_dir) {
  std::set<int32_t> ids;
  for (const char* name : {kConfig, kGenerationConfig}) {
    for (const int32_t id : IdsIn(ObjectIn(JoinPath(model_dir, name)))) ids.insert(id);
  }
  return ids;
}

std::optional<EndOfTurn> LearnedEndOfTurn(const std::string& adapter_dir, const std::string& model_dir) {
  const std::string name = TemplateOf(adapter_dir);
  if (name.empty()) return std::nullopt;
  const auto tokenizer = Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) return std::nullopt;
  const auto chat = ChatTemplate::Select(name, *tokenizer);
  if (!chat.ok()) return std::nullopt;
  const std::optional<int32_t> id = chat->EndOfTurn();
  if (!id) return std::nullopt;
  return EndOfTurn{*id, std::string(tokenizer->TokenContent(*id))};
}

std::string GenerationConfigWith(const std::string& model_dir, int32_t id) {
  const std::string path = JoinPath(model_dir, kGenerationConfig);
  const ordered_json model = ObjectIn(JoinPath(model_dir, kConfig));
  ordered_json config = ObjectIn(path);
  if (config.is_null()) {
    if (FileExists(path)) return "";
    config = ordered_json::object();
    for (const char* key : {"bos_token_id", "pad_token_id"}) {
      if (model.contains(key) && !model[key].is_null()) config[key] = model[key];
    }
  }
  std::vector<int32_t> ids = IdsIn(config);
  if (ids.empty()) ids = IdsIn(model);
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  config["eos_token_id"] = ids;
  return config.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace nibble::engine
