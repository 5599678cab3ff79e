// nibble-engine generate: answers to one prompt or to a file of them, and how many are right.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/commands.h"
#include "engine/generate.h"
#include "engine/line.h"
#include "engine/text/chat_template.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

struct Prompt {
  std::string text;
  std::optional<std::string> expected;  // the row's completion
};

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const Flags& flags) {
  std::vector<Prompt> prompts;
  if (flags.Has("prompt")) prompts.push_back({flags.Text("prompt"), {}});
  // Without quotes a shell hands on each word of a prompt alone.
  if (flags.plain().size() > 1) {
    return WrongWords(absl::StrCat("a prompt of several words stands in quotes, got ", flags.plain().size(),
                                   " words, \"", flags.plain()[0], "\" and \"", flags.plain()[1],
                                   "\" the first; several prompts are for --prompts FILE"));
  }
  for (const std::string& text : flags.plain()) prompts.push_back({text, {}});
  ASSIGN_OR_RETURN(const int64_t limit, flags.Integer("limit", -1));
  if (flags.Has("prompts")) {
    const std::string path = flags.Text("prompts");
    std::ifstream file(path);
    if (!file) return Error(Reason::kSpecInvalid, "--prompts " + path + " cannot be read");
    int64_t number = 0;
    for (std::string line; std::getline(file, line);) {
      if (limit >= 0 && static_cast<int64_t>(prompts.size()) >= limit) break;
      ++number;
      if (line.empty()) continue;
      const json row = json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!row.is_object() || !row.contains("prompt") || !row["prompt"].is_string()) {
        return Error(Reason::kDatasetSchemaMismatch,
                     absl::StrCat("--prompts ", path, " line ", number, " has no prompt string"));
      }
      Prompt prompt{row["prompt"].get<std::string>(), {}};
      if (row.contains("completion") && row["completion"].is_string()) {
        prompt.expected = row["completion"].get<std::string>();
      }
      prompts.push_back(std::move(prompt));
    }
  }
  if (prompts.empty() && flags.Has("prompts") && limit != 0) {
    const std::string help = " has no rows; a row is {\"prompt\": \"...\"}";
    return Error(Reason::kDatasetEmpty, absl::StrCat("--prompts ", flags.Text("prompts"), help));
  }
  if (prompts.empty()) return WrongWords("the prompt is missing; give a text, or --prompts FILE");
  return prompts;
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Tokenizer& tokenizer,
                                                  const std::string& text,
                                                  const std::optional<ChatTemplate>& chat) {
  if (!chat) {
    std::vector<int32_t> ids = tokenizer.Encode(text, /*add_special=*/true);
    // Some tokenizers end every text with EOS; an answer would never begin.
    if (!ids.empty() && tokenizer.eos_id() && ids.back() == *tokenizer.eos_id()) ids.pop_back();
    if (ids.empty() && tokenizer.bos_id()) ids.push_back(*tokenizer.bos_id());
    return ids;
  }
  const ChatTurn turn{"user", text, false};
  std::vector<int32_t> ids;
  ASSIGN_OR_RETURN(const std::vector<TextPiece> pieces,
                   chat->Render(std::span(&turn, 1), /*generation_prompt=*/true));
  for (const TextPiece& piece : pieces) {
    const std::vector<int32_t> part = tokenizer.Encode(piece.text, /*add_special=*/false);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

// Answers counted against the completions of the rows.
class Score {
 public:
  void Count(const std::string& answer, const std::string& expected) {
    ++rows_;
    const auto clean = [](const std::string& s) {
      return std::string(absl::StripAsciiWhitespace(s));
    };
    exact_ += clean(answer) == clean(expected);
    const json wanted = json::parse(expected, nullptr, false);
    if (!wanted.is_object()) return;
    records_ += 1;
    const json got = json::parse(answer, nullptr, false);
    if (!got.is_object()) {
      fields_ += static_cast<int64_t>(wanted.size());
      return;
    }
    valid_ += 1;
    for (const auto& [key, value] : wanted.items()) {
      ++fields_;
      right_ += got.contains(key) && got[key] == value;
    }
  }
  std::string Text() const {
    const auto percent = [](int64_t part, int64_t whole) {
      return 100.0 * static_cast<double>(part) / static_cast<double>(whole > 0 ? whole : 1);
    };
    std::string text = absl::StrFormat("exact match %.1f %%", percent(exact_, rows_));
    if (records_ > 0) {
      absl::StrAppend(&text, absl::StrFormat(", valid JSON %.1f %%, fields right %.1f %%",
                                             percent(valid_, records_), percent(right_, fields_)));
    }
    return absl::StrCat(text, " of ", rows_, " answers");
  }
  std::string Json() const {
    return Line()
        .Integer("rows", rows_)
        .Integer("exact", exact_)
        .Integer("records", records_)
        .Integer("valid_json", valid_)
        .Integer("fields", fields_)
        .Integer("fields_right", right_)
        .Take();
  }

 private:
  int64_t rows_ = 0, exact_ = 0, records_ = 0, valid_ = 0, fields_ = 0, right_ = 0;
};

absl::StatusOr<SamplingOptions> SamplingFrom(const Flags& flags) {
  SamplingOptions sampling;
  ASSIGN_OR_RETURN(sampling.max_tokens, flags.Integer("max-tokens", 128));
  ASSIGN_OR_RETURN(sampling.temperature, flags.Number("temperature", 0));
  ASSIGN_OR_RETURN(sampling.top_p, flags.Number("top-p", 1));
  ASSIGN_OR_RETURN(const int64_t seed, flags.Integer("seed", 42));
  sampling.seed = static_cast<uint64_t>(seed);
  if (sampling.max_tokens < 1)
    return WrongWords("--max-tokens must be at least 1");
  if (!(sampling.temperature >= 0))
    return WrongWords("--temperature must be at least 0");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return WrongWords("--top-p must be above 0 and at most 1");
  }
  return sampling;
}

// What is wrong with a template, in the words of this command instead of a recipe's.
absl::Status InFlagWords(const absl::Status& status, const Flags& flags) {
  if (StatusReason(status) != Reason::kChatTemplateInvalid) return status;
  const char* flag = flags.Has("chat-template") ? "--chat-template" : "--chat";
  return Error(Reason::kChatTemplateInvalid,
               absl::StrReplaceAll(
                   status.message(),
                   {{"data.chat_template", flag},
                    {"`chat_template: chatml`", "`--chat-template chatml`"},
                    {"and data as prompt and completion or text needs none",
                     "and without --chat none is needed"}}))
      .ToStatus();
}

// The template to talk in; nothing where the prompt is taken as it is.
absl::StatusOr<std::optional<ChatTemplate>> ChatFrom(const Flags& flags, const Tokenizer& tokenizer) {
  if (!flags.Has("chat") && !flags.Has("chat-template")) return std::nullopt;
  absl::StatusOr<ChatTemplate> chat =
      ChatTemplate::Select(flags.Text("chat-template", "tokenizer_default"), tokenizer);
  if (!chat.ok()) return InFlagWords(chat.status(), flags);
  return *std::move(chat);
}

// The base is held as the adapter was trained on it, unless the flags say otherwise.
absl::StatusOr<DeviceOptions> OptionsFrom(const Flags& flags) {
  ASSIGN_OR_RETURN(DeviceOptions options, DeviceOptionsFrom(flags));
  if (!flags.Has("adapter") || flags.Has("quant")) return options;
  ASSIGN_OR_RETURN(const AdapterBase trained_on, BaseOfAdapter(flags.Text("adapter")));
  options.base.quant = trained_on.quant;
  if (!flags.Has("double-quant")) options.base.double_quant = trained_on.double_quant;
  return options;
}

absl::StatusOr<std::optional<Adapter>> AdapterFrom(const Flags& flags, const Device& device) {
  if (!flags.Has("adapter")) return std::nullopt;
  ASSIGN_OR_RETURN(Adapter adapter, ImportAdapter(flags.Text("adapter"), device.model()));
  const std::string& theirs = adapter.base.weights_digest;
  const std::string& ours = device.base().weights_digest();
  if (!theirs.empty() && theirs != ours) {
    std::fprintf(stderr, "note: the adapter was trained on other weights (%s, %.12s) than these (%.12s)\n",
                 adapter.config.base_model_name.c_str(), theirs.c_str(), ours.c_str());
  }
  return adapter;
}

// With longrope a text's angles change, those of its first tokens too, when it outgrows the model's original
// positions.
absl::Status CheckAnglesStay(const spec::ModelConfig& model, int64_t prompt, int64_t most) {
  const int64_t original = model.rope_original_positions, positions = model.max_positions;
  const int64_t read = std::min(prompt + most - 1, positions);  // the last token of an answer is not
  if (model.rope != spec::RopeKind::kLong || prompt > original || read <= original) return absl::OkStatus();
  return Error(Reason::kSpecInvalid,
               absl::StrCat("a prompt has ", prompt, " tokens, and its answer may have ", most,
                            "; a text that begins within this model's original_max_position_embeddings, ",
                            original, ", must end within them: its angles (longrope) would change. Use ",
                            "--max-tokens ", original - prompt + 1));
}

}  // namespace

absl::Status GenerateCommand(const Arguments& arguments) {
  std::vector<std::string> valued = DeviceFlagNames();
  for (const char* name :
       {"adapter", "prompt", "prompts", "limit", "max-tokens", "temperature", "top-p", "seed",
        "chat-template"}) {
    valued.emplace_back(name);
  }
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, valued, {"json", "chat", "score"}));
  ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(flags));
  ASSIGN_OR_RETURN(SamplingOptions sampling, SamplingFrom(flags));
  ASSIGN_OR_RETURN(const DeviceOptions options, OptionsFrom(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend,
                   OpenBackend(options.device, options.threads));
  ASSIGN_OR_RETURN(const std::unique_ptr<Device> device,
                   Device::Open(options, *backend, MeasureProfile(*backend)));
  const Tokenizer& tokenizer = device->tokenizer();
  ASSIGN_OR_RETURN(const std::optional<Adapter> adapter, AdapterFrom(flags, *device));
  ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat, ChatFrom(flags, tokenizer));
  std::vector<std::vector<int32_t>> encoded;
  int64_t longest = 1;
  const int64_t positions = device->model().max_positions;
  sampling.max_tokens = std::min(sampling.max_tokens, positions);  // no text is longer
  for (const Prompt& prompt : prompts) {
    absl::StatusOr<std::vector<int32_t>> read = EncodePrompt(tokenizer, prompt.text, chat);
    if (!read.ok()) return InFlagWords(read.status(), flags);
    std::vector<int32_t> ids = *std::move(read);
    encoded.push_back(std::move(ids));
    const auto length = static_cast<int64_t>(encoded.back().size());
    if (length == 0 || length >= positions) {
      return Error(
          Reason::kSpecInvalid,
          absl::StrCat("a prompt has ", length, " tokens; it must have 1 to ", positions - 1));
    }
    RETURN_IF_ERROR(CheckAnglesStay(device->model(), length, sampling.max_tokens));
    longest = std::max(longest, length);
  }
  const int64_t room = std::min(positions, longest + sampling.max_tokens);
  ASSIGN_OR_RETURN(const std::unique_ptr<Decoder> made,
                   Decoder::Make(*device, adapter ? &*adapter : nullptr, room, longest));
  Decoder& decoder = *made;
  const std::set<int32_t> stop_ids = StopIds(options.base.model_dir, tokenizer, chat);
  const bool score_only = flags.Has("score");
  Score score;
  for (size_t i = 0; i < prompts.size(); ++i) {
    sampling.stream = i;
    const std::vector<int32_t> ids = Generate(decoder, encoded[i], stop_ids, sampling, room);
    const std::string answer = tokenizer.Decode(ids, /*skip_special=*/true);
    if (prompts[i].expected) score.Count(answer, *prompts[i].expected);
    if (score_only) continue;
    const std::string line =
        flags.Has("json") ? Line()
                                .Text("prompt", prompts[i].text)
                                .Text("text", answer)
                                .Integer("prompt_tokens", static_cast<int64_t>(encoded[i].size()))
                                .Integer("tokens", static_cast<int64_t>(ids.size()))
                                .Take()
                          : answer;
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }
  if (score_only)
    std::printf("%s\n", flags.Has("json") ? score.Json().c_str() : score.Text().c_str());
  return absl::OkStatus();
}

}  // namespace nibble::engine
