#include "server/model_check.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "base/view.h"

namespace nibble::server {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;
constexpr int64_t kMaxIndexBytes = int64_t{16} << 20;
constexpr int32_t kMaxIndexDepth = 4;  // as the engine reads it
constexpr int64_t kMaxHeaderBytes = int64_t{16} << 20;
constexpr int64_t kMaxTokenizerBytes = int64_t{64} << 20;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxTensorName = 512;
constexpr char kIndexName[] = "model.safetensors.index.json";

absl::Status Bad(std::string_view file, std::string_view what, Reason reason = Reason::kModelFileInvalid) {
  return Error(reason, absl::StrCat(View(file), ": ", View(what))).With("file", std::string(file));
}

const core::FileRef* Find(const ModelFiles& model, std::string_view name) {
  for (const core::FileRef& file : model.files) {
    if (file.name == name) return &file;
  }
  return nullptr;
}

absl::StatusOr<std::string> ReadWhole(const ModelFiles& model, const std::string& name,
                                      int64_t max_bytes) {
  const core::FileRef* file = Find(model, name);
  if (!file) return Bad(name, "is missing; a base model needs it");
  if (file->size_bytes > max_bytes) {
    return Bad(name, absl::StrCat("has ", file->size_bytes, " bytes; at most ", max_bytes, " are read"));
  }
  return model.read(*file, 0, file->size_bytes);
}

int64_t ElementBytes(std::string_view dtype) {
  static const auto* sizes = new std::map<std::string_view, int64_t>{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2},
      {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4},     {"F32", 4},     {"F64", 8}, {"I64", 8},
      {"U64", 8}};
  const auto it = sizes->find(dtype);
  return it == sizes->end() ? 0 : it->second;
}

struct Extent {
  int64_t begin = 0;
  int64_t end = 0;
};

// One entry of a header; what is wrong with it, or "".
std::string CheckTensor(const json& tensor, int64_t data_bytes, Extent& extent) {
  if (!tensor.is_object()) return "is no object";
  const auto dtype = tensor.find("dtype");
  const auto shape = tensor.find("shape");
  const auto offsets = tensor.find("data_offsets");
  if (dtype == tensor.end() || !dtype->is_string() || shape == tensor.end() || !shape->is_array() ||
      offsets == tensor.end() || !offsets->is_array() || offsets->size() != 2) {
    return "lacks dtype, shape or data_offsets";
  }
  const int64_t element = ElementBytes(dtype->get_ref<const std::string&>());
  if (element == 0) return "has a data type nobody knows";
  if (shape->size() > kMaxRank) return "has too many dimensions";
  __int128 bytes = element;
  for (const json& size : *shape) {
    if (!size.is_number_unsigned()) return "has a dimension that is no natural number";
    bytes *= size.get<uint64_t>();
    if (bytes > data_bytes) return "is larger than the file";
  }
  if (!(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return "has offsets that are no natural numbers";
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > static_cast<uint64_t>(data_bytes)) {
    return absl::StrCat("lies at ", begin, " to ", end, ", but the file holds ", data_bytes,
                        " bytes of data; it is truncated or its header is wrong");
  }
  extent = {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  if (static_cast<__int128>(end - begin) != bytes) return "has offsets that do not match its shape";
  return "";
}

// Header of one shard, read and checked.
absl::StatusOr<std::map<std::string, TensorFacts>> CheckShard(const ModelFiles& model,
                                                              const core::FileRef& file) {
  if (file.size_bytes < 8) return Bad(file.name, "is too short to be a safetensors file");
  ASSIGN_OR_RETURN(const std::string prefix, model.read(file, 0, 8));
  if (prefix.size() != 8) return Bad(file.name, "could not be read");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) {
    header_bytes = header_bytes << 8 | static_cast<unsigned char>(prefix[static_cast<size_t>(i)]);
  }
  if (header_bytes > static_cast<uint64_t>(std::min(kMaxHeaderBytes, file.size_bytes - 8))) {
    return Bad(file.name, absl::StrCat("announces a header of ", header_bytes, " bytes in a file of ",
                                       file.size_bytes, "; it is truncated or no safetensors file"));
  }
  const auto size = static_cast<int64_t>(header_bytes);
  ASSIGN_OR_RETURN(const std::string header, model.read(file, 8, size));
  if (static_cast<int64_t>(header.size()) != size) return Bad(file.name, "could not be read");
  return CheckSafetensorsHeader(file.name, header, file.size_bytes - 8 - size);
}

// Tensor name -> shard, as the index says; empty without an index.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const ModelFiles& model) {
  std::map<std::string, std::string> where;
  if (!Find(model, kIndexName)) return where;
  ASSIGN_OR_RETURN(const std::string text, ReadWhole(model, kIndexName, kMaxIndexBytes));
  if (JsonDepth(text) > kMaxIndexDepth) return Bad(kIndexName, "is nested too deep");
  const json index = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return Bad(kIndexName, "has no weight_map");
  }
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !IsModelFileName(shard.get_ref<const std::string&>())) {
      return Bad(kIndexName, "names a shard that is no plain file name");
    }
    where[tensor] = shard.get<std::string>();
  }
  return where;
}

absl::Status CheckWeights(const ModelFiles& model, const spec::ModelConfig& config) {
  ASSIGN_OR_RETURN(const auto index, ReadIndex(model));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  if (index.empty()) shards.insert("model.safetensors");
  std::map<std::string, std::map<std::string, TensorFacts>> tensors;  // by shard
  std::map<std::string, TensorFacts> all;
  for (const std::string& shard : shards) {
    const core::FileRef* file = Find(model, shard);
    if (!file) {
      return index.empty()
                 ? Bad(shard, "is missing, and there is no model.safetensors.index.json; weights must be in "
                              "safetensors form")
                 : Bad(shard, "is missing; the index names it as a shard");
    }
    ASSIGN_OR_RETURN(tensors[shard], CheckShard(model, *file));
  }
  for (const auto& [tensor, shard] : index) {
    if (!tensors[shard].contains(tensor)) {
      return Bad(shard, absl::StrCat("does not hold ", tensor, ", which the index puts there"));
    }
    all[tensor] = tensors[shard][tensor];
  }
  return CheckTensors(index.empty() ? tensors.begin()->second : all, config);
}

// Looks at a few things of a tokenizer.json without building it: documents of 64 MiB would take a
// gigabyte as a tree.
class TokenizerScan : public json::json_sax_t {
 public:
  bool has_model = false;
  bool other_type = false;
  int64_t vocab = 0;
  uint64_t last_id = 0;  // the largest of the vocabulary
  bool has_merges = false;
  int64_t merges = 0;
  bool needs_merges = false;  // some token of its vocabulary is longer than one character

  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool number_integer(json::number_integer_t) override { return Value(); }
  bool number_unsigned(json::number_unsigned_t id) override {
    if (depth_ == 3 && path_.size() == 2 && path_[0] == "model" && path_[1] == "vocab")
      last_id = std::max<uint64_t>(last_id, id);
    return Value();
  }
  bool number_float(json::number_float_t, const std::string&) override { return Value(); }
  bool binary(json::binary_t&) override { return Value(); }
  bool string(std::string& text) override {
    if (path_.size() == 2 && path_[0] == "model" && path_[1] == "type") other_type = text != "BPE";
    return Value();
  }
  bool key(std::string& name) override {
    // Deeper keys are not looked at, and there may be very many.
    if (depth_ <= 2) {
      path_.resize(static_cast<size_t>(depth_ - 1));
      path_.push_back(name);
    }
    if (depth_ == 3 && path_.size() == 2 && path_[0] == "model" && path_[1] == "vocab") {
      const auto is_first_byte = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
      const bool is_special = name.starts_with("<") && name.ends_with(">");
      needs_merges |= !is_special && std::count_if(name.begin(), name.end(), is_first_byte) > 1;
    }
    return true;
  }
  bool start_object(size_t) override { return Open(); }
  bool start_array(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t, const std::string&, const json::exception&) override { return false; }

 private:
  // An entry right below model.vocab or model.merges.
  bool Value() {
    if (depth_ == 3 && path_.size() == 2 && path_[0] == "model") {
      if (path_[1] == "vocab") ++vocab;
      if (path_[1] == "merges") ++merges;
    }
    return true;
  }
  bool Open() {
    Value();
    if (depth_ == 1 && path_.size() == 1 && path_[0] == "model") has_model = true;
    if (depth_ == 2 && path_.size() == 2 && path_[0] == "model" && path_[1] == "merges") has_merges = true;
    return ++depth_ <= 16;
  }
  bool Close() {
    --depth_;
    if (depth_ < static_cast<int>(path_.size())) path_.resize(static_cast<size_t>(depth_));
    return true;
  }

  int depth_ = 0;
  std::vector<std::string> path_;  // keys of the two outermost objects
};

absl::Status CheckTokenizer(const ModelFiles& model, const spec::ModelConfig& config) {
  constexpr char kName[] = "tokenizer.json";
  if (!Find(model, kName)) {
    return Bad(kName, "is missing; a tokenizer.model alone is not enough, save the fast tokenizer beside it",
               Reason::kTokenizerUnsupported);
  }
  ASSIGN_OR_RETURN(const std::string text, ReadWhole(model, kName, kMaxTokenizerBytes));
  TokenizerScan scan;
  const auto bad = [&](std::string_view what) { return Bad(kName, what, Reason::kTokenizerUnsupported); };
  if (!json::sax_parse(text, &scan)) return bad("is not valid JSON, or nested too deep");
  if (!scan.has_model) return bad("has no model");
  if (scan.other_type) return bad("is of another type than BPE");
  if (scan.vocab == 0) return bad("has no vocabulary");
  // Added tokens may lie beyond: many are never used, and the engine refuses data that use them.
  if (scan.last_id >= static_cast<uint64_t>(config.vocab_size)) {
    return bad(absl::StrCat("has tokens up to id ", scan.last_id, ", config.json a vocabulary of ",
                            config.vocab_size, "; they are not of the same model"));
  }
  // A vocabulary of single characters is whole without them.
  if (!scan.has_merges || (scan.merges == 0 && scan.needs_merges)) {
    return bad("has no merges; its vocabulary cannot work without them");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::map<std::string, TensorFacts>> CheckSafetensorsHeader(
    std::string_view file, std::string_view header_json, int64_t data_bytes) {
  // White space may follow a header, but the format has none in front.
  if (!header_json.starts_with('{')) {
    return Bad(file, "has a header that is no JSON object from its first byte on");
  }
  // Depth first: a header is an object of objects of arrays, nothing deeper.
  if (JsonDepth(header_json) > 4) return Bad(file, "has a header nested too deep");
  // A key given twice would mean one thing here and another to the engine.
  std::vector<std::set<std::string>> keys;
  bool twice = false;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) twice |= !keys.back().insert(parsed.get<std::string>()).second;
    return true;
  };
  const json header = json::parse(header_json, watch, /*allow_exceptions=*/false);
  if (!header.is_object()) return Bad(file, "has a header that is no JSON object");
  if (twice) return Bad(file, "has a header that gives the same key twice");
  if (header.size() > kMaxTensors) return Bad(file, "holds too many tensors");
  std::map<std::string, TensorFacts> tensors;
  std::vector<Extent> extents;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    Extent extent;
    std::string problem = name.size() > kMaxTensorName ? "has too long a name"
                                                       : CheckTensor(tensor, data_bytes, extent);
    if (!problem.empty()) return Bad(file, absl::StrCat("tensor ", name.substr(0, 64), " ", problem));
    tensors[name] = {tensor["dtype"].get<std::string>(), tensor["shape"].get<std::vector<int64_t>>()};
    extents.push_back(extent);
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t at = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != at) return Bad(file, "has tensors that overlap or leave a gap");
    at = extent.end;
  }
  if (at != data_bytes) {
    return Bad(file, absl::StrCat("holds ", data_bytes, " bytes of data where its tensors need ", at,
                                  "; it is truncated or its header is wrong"));
  }
  return tensors;
}

absl::StatusOr<ModelFacts> CheckModel(const ModelFiles& model) {
  std::set<std::string> names;
  for (const core::FileRef& file : model.files) {
    if (!IsModelFileName(file.name)) {
      return Error::Field(Reason::kNameInvalid, "manifest.name",
                          "must be a plain file name of letters, digits, '.', '_', '-' and '+'")
          .ToStatus();
    }
    if (!names.insert(file.name).second) return Bad(file.name, "is in the manifest twice");
  }
  ModelFacts facts;
  ASSIGN_OR_RETURN(facts.config_json, ReadWhole(model, "config.json", kMaxConfigBytes));
  ASSIGN_OR_RETURN(facts.config, spec::ParseModelConfig(facts.config_json));
  RETURN_IF_ERROR(CheckWeights(model, facts.config));
  RETURN_IF_ERROR(CheckTokenizer(model, facts.config));
  return facts;
}

bool IsModelFileName(std::string_view name) {
  if (name.empty() || name.size() > 128 || name.front() == '.') return false;
  for (const char c : name) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '.' || c == '_' || c == '-' || c == '+';
    if (!ok) return false;
  }
  return name.find("..") == std::string_view::npos;
}

bool BelongsToModel(std::string_view name) {
  if (!IsModelFileName(name)) return false;
  static const auto* exact = new std::set<std::string_view>{
      "config.json",          "generation_config.json", "tokenizer.json", "tokenizer_config.json",
      "special_tokens_map.json", "added_tokens.json",   kIndexName,       "chat_template.jinja"};
  return exact->contains(name) || name.ends_with(".safetensors");
}

std::string ManifestDigest(std::vector<core::FileRef> files) {
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  std::string text;
  for (const core::FileRef& file : files) {
    absl::StrAppend(&text, file.name, "\n", file.size_bytes, "\n", file.sha256, "\n");
  }
  return Sha256Hex(text);
}

}  // namespace nibble::server
