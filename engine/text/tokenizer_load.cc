// tokenizer.json to a Pipeline. Every component is looked up in a fixed list; what is not in it, or
// has an option we do not honour, is refused with its place in the file.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/json.h"
#include "engine/text/tokenizer_pipeline.h"

namespace nibble::engine::tokenizer {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr size_t kMaxFileBytes = 64 << 20;
constexpr int kMaxDepth = 16;
constexpr size_t kMaxVocab = 1'000'000;
constexpr size_t kMaxMerges = 4'000'000;
constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kMaxSteps = 32;

absl::Status Refuse(std::string_view where, std::string_view what) {
  return Error(Reason::kTokenizerUnsupported,
               absl::StrCat("tokenizer.json: ", View(where), " ", View(what)))
      .With("component", std::string(where));
}

// The fields of one JSON object, read with defaults; remembers the first that has the wrong type.
class Fields {
 public:
  Fields(std::string where, object fields) : where_(std::move(where)), fields_(fields) {}

  const std::string& where() const { return where_; }

  std::string Text(const char* key, std::string_view fallback = "") {
    std::string_view value = fallback;
    Get(key, value, "a string");
    return std::string(value);
  }
  bool Flag(const char* key, bool fallback) {
    bool value = fallback;
    Get(key, value, "true or false");
    return value;
  }
  int64_t Number(const char* key, int64_t fallback) {
    int64_t value = fallback;
    Get(key, value, "a whole number");
    return value;
  }
  // Null counts as absent.
  bool Has(const char* key) const {
    element value;
    return fields_[key].get(value) == simdjson::SUCCESS && !value.is_null();
  }
  element Raw(const char* key) const {
    element value;
    CHECK(fields_[key].get(value) == simdjson::SUCCESS);  // asked with Has
    return value;
  }
  absl::Status status() const { return status_; }

 private:
  template <typename T>
  void Get(const char* key, T& value, const char* wanted) {
    if (!Has(key)) return;
    T found{};
    if (fields_[key].get(found) == simdjson::SUCCESS) {
      value = found;
    } else if (status_.ok()) {
      status_ = Refuse(absl::StrCat(where_, ".", key), absl::StrCat("is not ", wanted));
    }
  }

  std::string where_;
  object fields_;
  absl::Status status_;
};

absl::StatusOr<Fields> ObjectAt(std::string where, element value) {
  object fields;
  if (value.get(fields) != simdjson::SUCCESS) return Refuse(where, "is no object");
  return Fields(std::move(where), fields);
}

// The components under `value`: itself, or those listed under `list_key` of a Sequence (nested or
// not).
absl::Status Flatten(const std::string& where, element value, const char* list_key,
                     std::vector<Fields>& out) {
  ASSIGN_OR_RETURN(Fields fields, ObjectAt(where, value));
  if (fields.Text("type") != "Sequence") {
    out.push_back(std::move(fields));
    if (out.size() > kMaxSteps)
      return Refuse(where, absl::StrCat("has more than ", kMaxSteps, " steps"));
    return absl::OkStatus();
  }
  array list;
  if (!fields.Has(list_key) || fields.Raw(list_key).get(list) != simdjson::SUCCESS) {
    return Refuse(where, absl::StrCat("lacks its list ", list_key));
  }
  size_t i = 0;
  for (const element entry : list) {
    RETURN_IF_ERROR(
        Flatten(absl::StrCat(where, ".", list_key, "[", i++, "]"), entry, list_key, out));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Fields>> Components(Fields& root, const char* key,
                                               const char* list_key) {
  std::vector<Fields> out;
  if (root.Has(key)) RETURN_IF_ERROR(Flatten(key, root.Raw(key), list_key, out));
  return out;
}

absl::Status UnknownType(Fields& fields) {
  const std::string type = fields.Text("type");
  RETURN_IF_ERROR(fields.status());
  return Refuse(fields.where(), absl::StrCat("has type ", Quote(type), ", which is not supported"));
}

// {"String": s} into `literal`, or {"Regex": r} into `regex`.
absl::Status ReadPattern(Fields& fields, std::string& literal, std::string& regex) {
  if (!fields.Has("pattern")) return Refuse(fields.where(), "lacks its pattern");
  ASSIGN_OR_RETURN(Fields pattern, ObjectAt(fields.where() + ".pattern", fields.Raw("pattern")));
  literal = pattern.Text("String");
  regex = pattern.Text("Regex");
  RETURN_IF_ERROR(pattern.status());
  if (literal.empty() == regex.empty()) {
    return Refuse(pattern.where(), "must hold either String or Regex");
  }
  return absl::OkStatus();
}

absl::StatusOr<NormalizeStep> ReadNormalizer(Fields& fields) {
  using Kind = NormalizeStep::Kind;
  const std::string type = fields.Text("type");
  NormalizeStep step;
  constexpr std::pair<std::string_view, NormalForm> kForms[] = {{"NFC", NormalForm::kNfc},
                                                                {"NFD", NormalForm::kNfd},
                                                                {"NFKC", NormalForm::kNfkc},
                                                                {"NFKD", NormalForm::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    step.form = form;
    return step;
  }
  if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.to = fields.Text("prepend");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    std::string regex;
    RETURN_IF_ERROR(ReadPattern(fields, step.from, regex));
    if (!regex.empty()) {
      return Refuse(fields.where(), absl::StrCat("replaces by the pattern ", Quote(regex, 200),
                                                 ", which is not supported"));
    }
    step.to = fields.Text("content");
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.left = fields.Flag("strip_left", true);
    step.right = fields.Flag("strip_right", true);
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

absl::StatusOr<Behavior> ReadBehavior(Fields& fields, std::string_view fallback) {
  constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext}};
  const std::string name = fields.Text("behavior", fallback);
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) return behavior;
  }
  return Refuse(fields.where(),
                absl::StrCat("has behavior ", Quote(name), ", which is not supported"));
}

absl::Status ReadSplit(Fields& fields, PreStep& step) {
  std::string regex;
  RETURN_IF_ERROR(ReadPattern(fields, step.literal, regex));
  if (!regex.empty()) {
    step.scanner = ScannerForPattern(regex);
    if (step.scanner == nullptr) {
      return Refuse(fields.where(), absl::StrCat("splits by the pattern ", Quote(regex, 400),
                                                 ", which is none of those Nibble knows"));
    }
  }
  ASSIGN_OR_RETURN(step.behavior, ReadBehavior(fields, "Isolated"));
  step.invert = fields.Flag("invert", false);
  return absl::OkStatus();
}

absl::Status ReadMetaspace(Fields& fields, PreStep& step) {
  step.change = PreStep::Change::kMetaspace;
  step.replacement = fields.Text("replacement", "\xE2\x96\x81");
  if (step.replacement.empty()) return Refuse(fields.where(), "has an empty replacement");
  const std::string scheme = fields.Text("prepend_scheme", "always");
  if (scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme == "never" || !fields.Flag("add_prefix_space", true)) {
    step.prepend = PrependScheme::kNever;
  } else if (scheme != "always") {
    return Refuse(fields.where(), absl::StrCat("has prepend_scheme ", Quote(scheme)));
  }
  step.split = fields.Flag("split", true);
  step.literal = step.replacement;
  step.behavior = Behavior::kMergedWithNext;
  return absl::OkStatus();
}

absl::StatusOr<PreStep> ReadPreStep(Fields& fields, bool& byte_level) {
  const std::string type = fields.Text("type");
  PreStep step;
  step.split = true;
  if (type == "ByteLevel") {
    byte_level = true;
    if (fields.Flag("add_prefix_space", true)) step.change = PreStep::Change::kPrefixSpace;
    step.split = fields.Flag("use_regex", true);
    step.scanner = ScanGpt2;
  } else if (type == "Split") {
    RETURN_IF_ERROR(ReadSplit(fields, step));
  } else if (type == "Digits") {
    step.scanner = ScanDigit;
    step.behavior =
        fields.Flag("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Metaspace") {
    RETURN_IF_ERROR(ReadMetaspace(fields, step));
  } else if (type == "Punctuation") {
    step.scanner = ScanPunctuation;
    ASSIGN_OR_RETURN(step.behavior, ReadBehavior(fields, "Isolated"));
  } else if (type == "Whitespace") {
    step.scanner = ScanWordOrSymbols;
    step.invert = true;
    step.behavior = Behavior::kRemoved;
  } else if (type == "WhitespaceSplit") {
    step.scanner = ScanSpace;
    step.behavior = Behavior::kRemoved;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

absl::StatusOr<DecodeStep> ReadDecoder(Fields& fields) {
  using Kind = DecodeStep::Kind;
  const std::string type = fields.Text("type");
  DecodeStep step;
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    std::string regex;
    RETURN_IF_ERROR(ReadPattern(fields, step.from, regex));
    if (!regex.empty())
      return Refuse(fields.where(), "replaces by a pattern, which is not supported");
    step.to = fields.Text("content");
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.from = fields.Text("content", " ");
    step.start = fields.Number("start", 0);
    step.stop = fields.Number("stop", 0);
    if (step.from.empty()) return Refuse(fields.where(), "strips nothing");
  } else if (type == "Metaspace") {
    PreStep metaspace;
    RETURN_IF_ERROR(ReadMetaspace(fields, metaspace));
    step.kind = Kind::kMetaspace;
    step.from = metaspace.replacement;
    step.drop_first = metaspace.prepend != PrependScheme::kNever;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

// The `single` template: ids before and after sequence A.
absl::Status ReadTemplate(Fields& fields, Pipeline& pipeline) {
  const auto bad = [&](std::string_view what) { return Refuse(fields.where(), what); };
  array single;
  std::optional<object> tokens;  // a default-made object must not be asked anything
  if (!fields.Has("single") || fields.Raw("single").get(single) != simdjson::SUCCESS) {
    return bad("lacks the list 'single'");
  }
  if (fields.Has("special_tokens")) {
    if (fields.Raw("special_tokens").get(tokens.emplace()) != simdjson::SUCCESS) {
      return bad("has special_tokens that are no object");
    }
  }
  std::vector<int32_t> before, after;
  bool seen = false;
  for (const element part : single) {
    std::string_view name;
    if (part["Sequence"]["id"].get(name) == simdjson::SUCCESS) {
      if (seen || name != "A") return bad("must hold sequence A exactly once in 'single'");
      seen = true;
      continue;
    }
    array ids;
    if (part["SpecialToken"]["id"].get(name) != simdjson::SUCCESS ||
        !tokens || tokens->at_key(name)["ids"].get(ids) != simdjson::SUCCESS) {
      return bad("has something in 'single' that is neither sequence nor special token");
    }
    for (const element entry : ids) {
      uint64_t id = 0;
      if (entry.get(id) != simdjson::SUCCESS || id >= pipeline.contents.size() ||
          pipeline.contents[id].empty()) {
        return bad(absl::StrCat("adds ", Quote(name), " whose id is not in the vocabulary"));
      }
      (seen ? after : before).push_back(static_cast<int32_t>(id));
    }
  }
  if (!seen) return bad("must hold sequence A exactly once in 'single'");
  // A later processor puts its tokens around what earlier ones made.
  pipeline.prefix.insert(pipeline.prefix.begin(), before.begin(), before.end());
  pipeline.suffix.insert(pipeline.suffix.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(Fields& root, Pipeline& pipeline) {
  ASSIGN_OR_RETURN(std::vector<Fields> parts, Components(root, "post_processor", "processors"));
  for (Fields& fields : parts) {
    const std::string type = fields.Text("type");
    if (type == "ByteLevel") continue;  // moves offsets only
    if (type != "TemplateProcessing") return UnknownType(fields);
    RETURN_IF_ERROR(ReadTemplate(fields, pipeline));
  }
  return absl::OkStatus();
}

absl::Status ReadVocab(Fields& model, BpeConfig& config) {
  object vocab;
  if (!model.Has("vocab") || model.Raw("vocab").get(vocab) != simdjson::SUCCESS) {
    return Refuse("model.vocab", "is missing or no object");
  }
  config.vocab.reserve(std::min(vocab.size(), kMaxVocab));
  for (const auto entry : vocab) {
    uint64_t id = 0;
    if (entry.key.size() > kMaxTokenBytes) {
      return Refuse("model.vocab", absl::StrCat("has a token of ", entry.key.size(),
                                                " bytes, at most ", kMaxTokenBytes));
    }
    if (entry.value.get(id) != simdjson::SUCCESS || id >= kMaxVocab) {
      return Refuse("model.vocab", absl::StrCat("gives ", Quote(entry.key),
                                                " an id that is no number below ", kMaxVocab));
    }
    config.vocab.emplace_back(entry.key, static_cast<int32_t>(id));
    if (config.vocab.size() > kMaxVocab) {
      return Refuse("model.vocab", absl::StrCat("has more than ", kMaxVocab, " tokens"));
    }
  }
  if (config.vocab.empty()) return Refuse("model.vocab", "is empty");
  return absl::OkStatus();
}

absl::Status ReadMerges(Fields& model, BpeConfig& config) {
  array merges;
  if (!model.Has("merges") || model.Raw("merges").get(merges) != simdjson::SUCCESS) {
    return Refuse("model.merges",
                  "is missing or no list; a BPE tokenizer without merges cannot be used");
  }
  config.merges.reserve(merges.size());
  for (const element entry : merges) {
    const size_t rank = config.merges.size();
    if (rank >= kMaxMerges)
      return Refuse("model.merges", absl::StrCat("has more than ", kMaxMerges));
    std::string_view left, right, both;
    array pair;
    bool ok = false;
    if (entry.get(both) == simdjson::SUCCESS) {
      const size_t space = both.find(' ');
      ok = space != std::string_view::npos && both.find(' ', space + 1) == std::string_view::npos;
      if (ok) std::tie(left, right) = std::pair(both.substr(0, space), both.substr(space + 1));
    } else if (entry.get(pair) == simdjson::SUCCESS) {
      ok = pair.size() == 2 && pair.at(0).get(left) == simdjson::SUCCESS &&
           pair.at(1).get(right) == simdjson::SUCCESS;
    }
    if (!ok)
      return Refuse(absl::StrCat("model.merges[", rank, "]"), "is neither \"a b\" nor [a, b]");
    config.merges.emplace_back(left, right);
  }
  return absl::OkStatus();
}

absl::Status ReadModel(Fields& root, bool byte_level, BpeConfig& config) {
  if (!root.Has("model")) return Refuse("model", "is missing");
  ASSIGN_OR_RETURN(Fields model, ObjectAt("model", root.Raw("model")));
  const std::string type = model.Text("type", "BPE");
  if (type != "BPE") {
    return Refuse("model", absl::StrCat("has type ", Quote(type), "; only BPE is supported"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.Text(key).empty()) {
      return Refuse(absl::StrCat("model.", key), "is not supported");
    }
  }
  double dropout = 0;
  if (model.Has("dropout") &&
      (model.Raw("dropout").get(dropout) != simdjson::SUCCESS || dropout != 0)) {
    return Refuse("model.dropout", "must be null or 0");
  }
  config.unk_token = model.Text("unk_token");
  config.byte_level = byte_level;
  config.byte_fallback = model.Flag("byte_fallback", false);
  config.ignore_merges = model.Flag("ignore_merges", false);
  config.fuse_unk = model.Flag("fuse_unk", false);
  RETURN_IF_ERROR(model.status());
  RETURN_IF_ERROR(ReadVocab(model, config));
  return ReadMerges(model, config);
}

absl::StatusOr<AddedToken> ReadAddedToken(std::string where, element value) {
  ASSIGN_OR_RETURN(Fields fields, ObjectAt(std::move(where), value));
  AddedToken token;
  const int64_t id = fields.Number("id", -1);
  token.content = fields.Text("content");
  token.special = fields.Flag("special", false);
  token.single_word = fields.Flag("single_word", false);
  token.lstrip = fields.Flag("lstrip", false);
  token.rstrip = fields.Flag("rstrip", false);
  token.normalized = fields.Flag("normalized", !token.special);
  RETURN_IF_ERROR(fields.status());
  if (id < 0 || id >= static_cast<int64_t>(kMaxVocab)) {
    return Refuse(fields.where(), absl::StrCat("has no id below ", kMaxVocab));
  }
  if (token.content.empty() || token.content.size() > kMaxTokenBytes) {
    return Refuse(fields.where(), absl::StrCat("has content of ", token.content.size(),
                                               " bytes; 1 to ", kMaxTokenBytes, " are accepted"));
  }
  token.id = static_cast<int32_t>(id);
  return token;
}

// One table of all tokens, by id and by content. A token may be in the vocabulary and added, with
// one id.
absl::Status Enter(Pipeline& pipeline, const std::string& content, int32_t id) {
  if (static_cast<size_t>(id) >= pipeline.contents.size()) pipeline.contents.resize(id + 1);
  std::string& slot = pipeline.contents[id];
  const auto [it, fresh] = pipeline.ids.emplace(content, id);
  if (it->second != id || (!slot.empty() && slot != content)) {
    return Refuse("added_tokens",
                  absl::StrCat("and model.vocab disagree about ", Quote(content), " and id ", id));
  }
  slot = content;
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(Fields& root, Pipeline& pipeline) {
  if (!root.Has("added_tokens")) return absl::OkStatus();
  array list;
  if (root.Raw("added_tokens").get(list) != simdjson::SUCCESS)
    return Refuse("added_tokens", "is no list");
  size_t i = 0;
  for (const element value : list) {
    ASSIGN_OR_RETURN(const AddedToken token,
                     ReadAddedToken(absl::StrCat("added_tokens[", i++, "]"), value));
    RETURN_IF_ERROR(Enter(pipeline, token.content, token.id));
    if (token.special) pipeline.special.insert(token.id);
    if (token.normalized) {
      pipeline.normalized_tokens.Add(token, NormalizeText(pipeline.normalizer, token.content));
    } else {
      pipeline.raw_tokens.Add(token, token.content);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Pipeline> LoadPipeline(std::string_view tokenizer_json) {
  if (tokenizer_json.size() > kMaxFileBytes) {
    return Refuse("file",
                  absl::StrCat("has ", tokenizer_json.size(), " bytes, at most ", kMaxFileBytes));
  }
  simdjson::dom::document document;
  object root_object;
  RETURN_IF_ERROR(
      ParseObject(document, tokenizer_json, kMaxDepth, root_object, [](std::string_view what) {
        return Refuse("file", absl::StrCat("is not valid JSON: ", View(what)));
      }));
  Fields root("tokenizer", root_object);
  Pipeline pipeline;
  ASSIGN_OR_RETURN(auto normalizers, Components(root, "normalizer", "normalizers"));
  for (Fields& fields : normalizers) {
    ASSIGN_OR_RETURN(NormalizeStep step, ReadNormalizer(fields));
    pipeline.normalizer.push_back(std::move(step));
  }
  ASSIGN_OR_RETURN(auto pre, Components(root, "pre_tokenizer", "pretokenizers"));
  bool byte_level = false;
  for (Fields& fields : pre) {
    if (byte_level) return Refuse(fields.where(), "comes after ByteLevel, which is not supported");
    ASSIGN_OR_RETURN(PreStep step, ReadPreStep(fields, byte_level));
    pipeline.pre_tokenizer.push_back(std::move(step));
  }
  BpeConfig config;
  RETURN_IF_ERROR(ReadModel(root, byte_level, config));
  ASSIGN_OR_RETURN(pipeline.model, Bpe::Make(config));
  config.merges = {};
  // Ids may go on behind the vocabulary's; a vector that grows for them would be twice as large.
  array added;
  const bool has_added = root.Has("added_tokens") && root.Raw("added_tokens").get(added) == simdjson::SUCCESS;
  pipeline.contents.reserve(config.vocab.size() + (has_added ? added.size() : 0));
  pipeline.ids.reserve(config.vocab.size());
  for (const auto& [content, id] : config.vocab)
    RETURN_IF_ERROR(Enter(pipeline, std::string(content), id));
  RETURN_IF_ERROR(ReadAddedTokens(root, pipeline));
  RETURN_IF_ERROR(ReadPostProcessor(root, pipeline));
  ASSIGN_OR_RETURN(auto decoders, Components(root, "decoder", "decoders"));
  for (Fields& fields : decoders) {
    ASSIGN_OR_RETURN(DecodeStep step, ReadDecoder(fields));
    pipeline.decoder.push_back(std::move(step));
  }
  pipeline.join_with_spaces = pipeline.decoder.empty();
  return pipeline;
}

}  // namespace nibble::engine::tokenizer
