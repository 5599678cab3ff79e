// tokenizer.json to a Pipeline. The vocabulary, its merges, the added tokens and the template around a text
// are read here, the steps of text in tokenizer_steps.cc. Every component is looked up in a fixed list; what
// is not in it, or has an option we do not honour, is refused with its place in the file.
#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/text/json.h"
#include "engine/text/tokenizer_fields.h"
#include "engine/text/tokenizer_pipeline.h"
#include "engine/text/tokenizer_steps.h"

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
    if (token.rstrip) pipeline.takes_space_behind.insert(token.id);
    if (token.normalized) {
      pipeline.normalized_tokens.Add(token, NormalizeText(pipeline.normalizer, token.content));
    } else {
      pipeline.raw_tokens.Add(token, token.content);
    }
  }
  return absl::OkStatus();
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
  RETURN_IF_ERROR(ReadNormalizers(root, pipeline));
  bool byte_level = false;
  RETURN_IF_ERROR(ReadPreTokenizers(root, pipeline, byte_level));
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
  RETURN_IF_ERROR(ReadDecoders(root, pipeline));
  return pipeline;
}

}  // namespace nibble::engine::tokenizer
