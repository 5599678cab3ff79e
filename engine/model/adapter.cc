#include "engine/model/adapter.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/file.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "engine/model/safetensors.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/spec/words.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using spec::Module;

constexpr int64_t kMaxAdapterConfigBytes = 1 << 20;
constexpr int64_t kMaxRank = 4096;

absl::Status Bad(std::string_view what) {
  return Error(Reason::kModelFileInvalid, absl::StrCat("adapter: ", View(what)));
}

bool IsEmpty(const json& value) {
  return value.is_null() || ((value.is_object() || value.is_array()) && value.empty());
}

// Options that would change what the adapter computes and that we do not carry out.
absl::Status RefuseOptions(const json& config) {
  const auto get = [&](const char* key) { return config.value(key, json()); };
  if (get("peft_type") != "LORA") return Bad("peft_type is not LORA");
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"}) {
    if (get(key) == true) return Bad(absl::StrCat(key, " is not supported"));
  }
  if (const json bias = get("bias"); !bias.is_null() && bias != "none")
    return Bad("bias other than none is not supported");
  for (const char* key : {"modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
                          "layer_replication", "target_parameters", "trainable_token_indices",
                          "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config",
                          "monteclora_config"}) {
    if (!IsEmpty(get(key))) return Bad(absl::StrCat(key, " is not supported"));
  }
  // PEFT carries out others when it loads the adapter: they take something off the base's weights.
  const json init = get("init_lora_weights");
  const bool leaves_base = init.is_null() || init.is_boolean() || init == "gaussian" || init == "eva" ||
                           init == "orthogonal" || init == "mica";
  if (leaves_base) return absl::OkStatus();
  return Bad(absl::StrCat("init_lora_weights ", Quote(init.dump()),
                          " is not supported: it changes the base; convert the adapter to plain LoRA"));
}

// `where` says what has it: "target_modules has ...".
absl::Status CheckModule(Module module, const spec::ModelConfig& model, std::string_view where) {
  const std::span<const Module> all = spec::ModulesOf(model);
  if (std::find(all.begin(), all.end(), module) != all.end()) return absl::OkStatus();
  return Bad(absl::StrCat(View(where), " has ", View(spec::ModuleName(module)), ", which a ",
                          model.model_type, " model does not; it belongs to another base model"));
}

// None of a pattern.
absl::StatusOr<std::vector<Module>> ReadTargets(const json& value, const spec::ModelConfig& model) {
  const std::span<const Module> all = spec::ModulesOf(model);
  std::set<Module> modules;
  if (value.is_string() && value != "all-linear" && value != "") return std::vector<Module>();
  if (value == "all-linear") {
    modules.insert(all.begin(), all.end());
  } else if (value.is_array()) {
    for (const json& name : value) {
      if (!name.is_string()) return Bad("target_modules holds something that is no name");
      const auto module = spec::ModuleFromName(name.get_ref<const std::string&>());
      if (!module.ok()) {
        return Bad(absl::StrCat("target_modules has ", Quote(name.get_ref<const std::string&>()),
                                "; only the linears of attention and MLP are supported"));
      }
      RETURN_IF_ERROR(CheckModule(*module, model, "target_modules"));
      modules.insert(*module);
    }
  }
  if (modules.empty()) return Bad("target_modules must be a list of names, a pattern, or all-linear");
  return std::vector<Module>(modules.begin(), modules.end());
}

absl::Status Missing(const std::string& path) {
  const std::string directory = DirName(path);
  if (!IsDirectory(directory))
    return Error(Reason::kAdapterNotFound, absl::StrCat("adapter ", directory, ": no such directory"));
  const bool pickled = FileExists(JoinPath(directory, "adapter_model.bin"));
  return Error(Reason::kAdapterNotFound,
               absl::StrCat(path, " is missing; ",
                            pickled ? "adapter_model.bin must be converted to safetensors first"
                                    : "an adapter is the folder that `nibble download` or PEFT writes"));
}

absl::StatusOr<AdapterConfig> ReadConfig(const std::string& path, const spec::ModelConfig& model) {
  if (!FileExists(path)) return Missing(path);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxAdapterConfigBytes));
  if (JsonDepth(text) > kMaxJsonDepth) return Bad("adapter_config.json is nested too deep");
  const json config = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return Bad("adapter_config.json is no JSON object");
  RETURN_IF_ERROR(RefuseOptions(config));
  AdapterConfig out;
  // PEFT's own defaults for what an old file leaves out.
  const json r = config.value("r", json(8)), alpha = config.value("lora_alpha", json(8)),
             dropout = config.value("lora_dropout", json(0.0));
  if (!r.is_number_integer() || r.get<int64_t>() < 1 || r.get<int64_t>() > kMaxRank) {
    return Bad(absl::StrCat("r is ", r.dump(), ", must be 1 to ", kMaxRank));
  }
  if (!alpha.is_number() || !(alpha.get<double>() > 0) || !std::isfinite(alpha.get<double>())) {
    return Bad(absl::StrCat("lora_alpha is ", alpha.dump(), ", must be above 0"));
  }
  out.r = static_cast<int32_t>(r.get<int64_t>());
  out.alpha = alpha.get<double>();
  if (dropout.is_number()) out.dropout = dropout.get<double>();
  out.use_rslora = config.value("use_rslora", json()) == true;
  if (const json name = config.value("base_model_name_or_path", json()); name.is_string()) {
    out.base_model_name = name.get<std::string>();
  }
  ASSIGN_OR_RETURN(out.target_modules, ReadTargets(config.value("target_modules", json()), model));
  return out;
}

struct MatrixName {
  int64_t layer = 0;
  Module module = Module::kQ;
  bool is_b = false;

  bool operator<(const MatrixName& o) const {
    return std::tie(layer, module, is_b) < std::tie(o.layer, o.module, o.is_b);
  }
};

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"; of the text part of a model with pictures
// "base_model.model.model.language_model.layers...", before transformers 4.52
// "...language_model.model.layers...".
absl::StatusOr<MatrixName> ParseName(const std::string& name, const spec::ModelConfig& model) {
  absl::string_view rest(name);
  const auto unknown = [&] {
    return Bad(absl::StrCat("tensor ", Quote(name), " is none Nibble knows of a ", model.model_type,
                            " model; the adapter may belong to another base model"));
  };
  if (!absl::ConsumePrefix(&rest, "base_model.model.")) return unknown();
  const bool inner = absl::ConsumePrefix(&rest, "model.");
  if (model.HasVision()) {
    if (!absl::ConsumePrefix(&rest, "language_model.")) return unknown();
    if (!inner) absl::ConsumePrefix(&rest, "model.");
  }
  const std::vector<std::string> parts = absl::StrSplit(rest, '.');
  MatrixName out;
  if (parts.size() != 6 || parts[0] != "layers" || parts[5] != "weight" ||
      !absl::SimpleAtoi(parts[1], &out.layer) || (parts[4] != "lora_A" && parts[4] != "lora_B")) {
    return unknown();
  }
  const auto module = spec::ModuleFromName(parts[3]);
  if (!module.ok() || parts[2] != (*module <= Module::kO ? "self_attn" : "mlp")) return unknown();
  out.module = *module;
  out.is_b = parts[4] == "lora_B";
  return out;
}

absl::StatusOr<std::vector<float>> ReadMatrix(const SafetensorsFile& file, const TensorInfo& tensor,
                                              std::vector<int64_t> shape) {
  if (tensor.shape != shape) {
    return Bad(absl::StrCat("tensor ", Quote(tensor.name), " does not have shape [", shape[0], ", ",
                            shape[1], "]; it belongs to another base model or rank"));
  }
  std::vector<float> values(static_cast<size_t>(tensor.Elements()));
  RETURN_IF_ERROR(file.ReadF32(tensor, values.data()));
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
    return Bad(absl::StrCat("tensor ", Quote(tensor.name), " holds a value that is not finite"));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenWeights(const std::string& directory) {
  const std::string path = JoinPath(directory, "adapter_model.safetensors");
  if (FileExists(path)) return SafetensorsFile::Open(path);
  return Missing(path);
}

AdapterBase BaseFrom(const SafetensorsFile& file) {
  const auto text = [&](const char* key) {
    const auto it = file.metadata().find(key);
    return it == file.metadata().end() ? std::string() : it->second;
  };
  AdapterBase base;
  base.weights_digest = text(kBaseWeightsKey);
  base.quant = FromWord(spec::kQuantWords, text(kBaseQuantKey)).value_or(base.quant);
  base.double_quant = text(kBaseDoubleQuantKey) != "false";
  return base;
}

}  // namespace

double AdapterConfig::Scale() const {
  return use_rslora ? alpha / std::sqrt(static_cast<double>(r)) : alpha / r;
}

absl::StatusOr<AdapterBase> BaseOfAdapter(const std::string& directory) {
  ASSIGN_OR_RETURN(const auto file, OpenWeights(directory));
  return BaseFrom(*file);
}

absl::StatusOr<Adapter> ImportAdapter(const std::string& directory,
                                      const spec::ModelConfig& model) {
  Adapter adapter;
  ASSIGN_OR_RETURN(adapter.config, ReadConfig(JoinPath(directory, "adapter_config.json"), model));
  ASSIGN_OR_RETURN(const auto file, OpenWeights(directory));
  adapter.base = BaseFrom(*file);
  std::map<MatrixName, const TensorInfo*> found;
  for (const auto& [name, tensor] : file->tensors()) {
    ASSIGN_OR_RETURN(const MatrixName key, ParseName(name, model));
    if (key.layer < 0 || key.layer >= model.layers) {
      return Bad(absl::StrCat("tensor ", Quote(name), " is for a layer the model lacks; it has ",
                              model.layers));
    }
    if (!found.emplace(key, &tensor).second) {
      return Bad(absl::StrCat("tensor ", Quote(name), " is there under two names"));
    }
  }
  if (adapter.config.target_modules.empty()) {
    std::set<Module> modules;
    for (const auto& [key, tensor] : found) modules.insert(key.module);
    for (const Module module : modules) RETURN_IF_ERROR(CheckModule(module, model, BaseName(file->path())));
    if (modules.empty()) return Bad("adapter_model.safetensors has no matrices");
    adapter.config.target_modules.assign(modules.begin(), modules.end());
  }
  const int64_t r = adapter.config.r;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    for (const Module module : adapter.config.target_modules) {
      const spec::LinearShape shape = spec::ShapeOf(model, module);
      AdapterPair pair{layer, module, {}, {}};
      for (const bool is_b : {false, true}) {
        const auto it = found.find({layer, module, is_b});
        if (it == found.end()) {
          return Bad(absl::StrCat("lora_", is_b ? "B" : "A", " of ", spec::ModulePath(model, layer, module),
                                  " is missing from ", BaseName(file->path())));
        }
        ASSIGN_OR_RETURN(
            (is_b ? pair.b : pair.a),
            ReadMatrix(*file, *it->second,
                       is_b ? std::vector<int64_t>{shape.n, r} : std::vector<int64_t>{r, shape.k}));
        found.erase(it);
      }
      adapter.pairs.push_back(std::move(pair));
    }
  }
  if (!found.empty()) {
    return Bad(absl::StrCat("tensor ", Quote(found.begin()->second->name),
                            " is of a module that target_modules does not name"));
  }
  return adapter;
}

}  // namespace nibble::engine
