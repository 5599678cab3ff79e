#include "engine/data/dataset_format.h"

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/outside_text.h"
#include "engine/data/dataset_rows.h"
#include "engine/spec/row_keys.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;
using MaybeProblem = std::optional<RowProblem>;

// The wording Alpaca data is trained and asked with everywhere.
constexpr std::string_view kAlpacaWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
    "Write a response that appropriately completes the request.\n\n";
constexpr std::string_view kAlpacaWithoutInput =
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the "
    "request.\n\n";

constexpr std::pair<RowFormat, std::string_view> kNames[] = {
    {RowFormat::kMessages, "messages"}, {RowFormat::kShareGpt, "sharegpt"},
    {RowFormat::kAlpaca, "alpaca"},     {RowFormat::kCompletion, "completion"},
    {RowFormat::kText, "text"},
};

bool Has(object row, std::string_view key) {
  element value;
  return row[key].get(value) == simdjson::SUCCESS && !value.is_null();
}

spec::RowKeys KeysIn(object row, RowFormat format) {
  return spec::KeysOf(RowFormatName(format), [&](std::string_view key) { return Has(row, key); });
}

MaybeProblem ReadText(object row, std::string_view key, std::string& out, bool required = true) {
  std::string_view text;
  if (!Has(row, key)) {
    if (!required) return std::nullopt;
    return RowProblem{absl::StrCat(".", View(key)), "is missing; it must be a string"};
  }
  if (row[key].get(text) != simdjson::SUCCESS) {
    return RowProblem{absl::StrCat(".", View(key)), "must be a string"};
  }
  out = std::string(text);
  return std::nullopt;
}

// content: a string, or a list of parts of which only text is understood.
MaybeProblem ReadContent(object turn, std::string_view key, std::string& out) {
  array parts;
  if (turn[key].get(parts) != simdjson::SUCCESS) return ReadText(turn, key, out);
  size_t i = 0;
  for (const element part : parts) {
    std::string_view type, text;
    if (part["type"].get(type) != simdjson::SUCCESS || type != "text" ||
        part["text"].get(text) != simdjson::SUCCESS) {
      return RowProblem{
          absl::StrCat(".", View(key), "[", i, "]"),
          "must be {\"type\": \"text\", \"text\": ...}; nothing else can be trained on"};
    }
    out += text;
    ++i;
  }
  return std::nullopt;
}

// Whether there is something in it: files that were made from tables have empty ones in every row.
bool SaysSomething(object row, std::string_view key) {
  element value;
  if (row[key].get(value) != simdjson::SUCCESS || value.is_null()) return false;
  array items;
  if (value.get(items) == simdjson::SUCCESS) return items.size() > 0;
  object fields;
  if (value.get(fields) == simdjson::SUCCESS) return fields.size() > 0;
  std::string_view text;
  return value.get(text) != simdjson::SUCCESS || (!text.empty() && text != "[]");
}

// What would belong to the text that is learned and has no place in it; without it the model would learn
// another text than the row's.
struct NoPlace {
  std::string_view key;
  std::string_view advice;
};
constexpr NoPlace kNoPlaceInChat[] = {
    {"tools", "leave it out, or write into the system message what the model is to read"},
    {"functions", "leave it out, or write into the system message what the model is to read"},
    {"images", "only text is"},
    {"videos", "only text is"},
    {"audios", "only text is"},
};
constexpr NoPlace kNoPlaceInTurn[] = {
    {"tool_calls", "write the call into the content, as the model is to write it"},
    {"function_call", "write the call into the content, as the model is to write it"},
    {"reasoning_content", "write it into the content, as the model is to write it, or leave it out"},
    {"thinking", "write it into the content, as the model is to write it, or leave it out"},
};
constexpr NoPlace kNoPlaceInAlpaca[] = {
    {"history", "write the row as \"messages\", or leave it out"},
};

template <size_t kCount>
MaybeProblem FindNoPlace(object row, const NoPlace (&keys)[kCount]) {
  for (const NoPlace& one : keys) {
    if (SaysSomething(row, one.key))
      return RowProblem{absl::StrCat(".", View(one.key)),
                        absl::StrCat("cannot be trained on; ", View(one.advice))};
  }
  return std::nullopt;
}

// The role as templates know it, or nothing.
std::string RoleOf(std::string_view name) {
  for (const auto& [from, to] : {std::pair<std::string_view, const char*>{"system", "system"},
                                 {"developer", "system"},
                                 {"user", "user"},
                                 {"human", "user"},
                                 {"assistant", "assistant"},
                                 {"gpt", "assistant"},
                                 {"model", "assistant"},
                                 {"chatgpt", "assistant"}}) {
    if (name == from) return to;
  }
  return "";
}

// weight 0, or train false, takes a turn out of the loss.
MaybeProblem ReadWeight(object turn, bool& trained) {
  element value;
  if (turn["weight"].get(value) == simdjson::SUCCESS && !value.is_null()) {
    double weight = 0;
    if (value.get(weight) != simdjson::SUCCESS || (weight != 0 && weight != 1)) {
      return RowProblem{".weight", "must be 0 or 1"};
    }
    trained = trained && weight == 1;
  }
  if (turn["train"].get(value) == simdjson::SUCCESS && !value.is_null()) {
    bool train = true;
    if (value.get(train) != simdjson::SUCCESS) return RowProblem{".train", "must be true or false"};
    trained = trained && train;
  }
  return std::nullopt;
}

MaybeProblem ReadTurn(object turn, std::string_view role_key, std::string_view text_key,
                      bool train_on_inputs, ChatTurn& out) {
  std::string role;
  if (auto problem = ReadText(turn, role_key, role)) return problem;
  out.role = RoleOf(role);
  if (out.role.empty()) {
    return RowProblem{absl::StrCat(".", View(role_key)),
                      absl::StrCat("is ", Quote(role), "; use system, user or assistant")};
  }
  if (auto problem = FindNoPlace(turn, kNoPlaceInTurn)) return problem;
  if (auto problem = ReadContent(turn, text_key, out.content)) return problem;
  out.trained = train_on_inputs || out.role == "assistant";
  return ReadWeight(turn, out.trained);
}

MaybeProblem ReadTurns(object row, std::string_view list_key, std::string_view role_key,
                       std::string_view text_key, bool train_on_inputs, ParsedRow& out) {
  array turns;
  if (row[list_key].get(turns) != simdjson::SUCCESS || turns.size() == 0) {
    return RowProblem{absl::StrCat(".", View(list_key)), "must be a list with at least one entry"};
  }
  if (auto problem = FindNoPlace(row, kNoPlaceInChat)) return problem;
  // Said beside the turns, it is the first of them.
  std::string system;
  if (auto problem = ReadText(row, "system", system, /*required=*/false)) return problem;
  if (!system.empty()) out.turns.push_back({"system", system, train_on_inputs});
  int64_t index = 0;
  for (const element entry : turns) {
    const std::string path = absl::StrCat(".", View(list_key), "[", index++, "]");
    object turn;
    if (entry.get(turn) != simdjson::SUCCESS) return RowProblem{path, "must be an object"};
    ChatTurn parsed;
    if (auto problem = ReadTurn(turn, role_key, text_key, train_on_inputs, parsed)) {
      return RowProblem{path + problem->path, problem->what};
    }
    if (index == 1 && parsed.role == "system" && !system.empty()) {
      if (parsed.content == system) continue;
      return RowProblem{absl::StrCat(path, ".", View(role_key)),
                        "is system, and the row has another text as \"system\"; keep one of them"};
    }
    if (parsed.role == "system" && !out.turns.empty()) {
      return RowProblem{absl::StrCat(path, ".", View(role_key)),
                        "is system; only the first turn may be that"};
    }
    out.turns.push_back(std::move(parsed));
  }
  return std::nullopt;
}

MaybeProblem ReadAlpaca(object row, bool train_on_inputs, ParsedRow& out) {
  const spec::RowKeys keys = KeysIn(row, RowFormat::kAlpaca);
  if (auto problem = FindNoPlace(row, kNoPlaceInAlpaca)) return problem;
  std::string instruction, input, output, system;
  if (auto problem = ReadText(row, keys.first, instruction)) return problem;
  for (const std::string_view key : spec::kAlpacaInputs) {
    if (!input.empty()) break;
    if (auto problem = ReadText(row, key, input, /*required=*/false)) return problem;
  }
  if (auto problem = ReadText(row, keys.answer, output)) return problem;
  if (auto problem = ReadText(row, "system", system, /*required=*/false)) return problem;
  std::string prompt = system.empty()
                           ? std::string(input.empty() ? kAlpacaWithoutInput : kAlpacaWithInput)
                           : absl::StrCat(system, "\n\n");
  absl::StrAppend(&prompt, "### Instruction:\n", instruction, "\n\n");
  if (!input.empty()) absl::StrAppend(&prompt, "### Input:\n", input, "\n\n");
  prompt += "### Response:\n";
  out.pieces = {{std::move(prompt), train_on_inputs}, {std::move(output), true}};
  return std::nullopt;
}

MaybeProblem ReadCompletion(object row, bool train_on_inputs, ParsedRow& out) {
  const spec::RowKeys keys = KeysIn(row, RowFormat::kCompletion);
  std::string prompt, completion;
  if (auto problem = ReadText(row, keys.first, prompt)) return problem;
  if (auto problem = ReadText(row, keys.answer, completion)) return problem;
  out.pieces = {{std::move(prompt), train_on_inputs}, {std::move(completion), true}};
  return std::nullopt;
}

}  // namespace

std::string_view RowFormatName(RowFormat format) {
  for (const auto& [value, name] : kNames) {
    if (value == format) return name;
  }
  return "";
}

std::optional<RowFormat> RowFormatFromName(std::string_view name) {
  for (const auto& [value, known] : kNames) {
    if (known == name) return value;
  }
  return std::nullopt;
}

namespace {

// Whether there are as many digits in a row as the shortest integer has that is beyond 64 bits.
bool MayHoldLargeInteger(std::string_view text) {
  constexpr int kDigits = 19;  // of -9223372036854775809
  int run = 0;
  for (const char c : text) {
    run = c >= '0' && c <= '9' ? run + 1 : 0;
    if (run == kDigits) return true;
  }
  return false;
}

}  // namespace

struct RowReader::Parser {
  simdjson::dom::parser parser;
  std::string rewritten;

  MaybeProblem Parse(std::string_view text, object& root) {
    std::string what;
    const auto fail = [&](std::string_view why) {
      what = std::string(why);
      return absl::InvalidArgumentError("");
    };
    if (ParseObject(parser, text, spec::kMaxRowDepth, root, fail).ok()) return std::nullopt;
    // A number beyond 64 bits stops this parser, though JSON allows it. The other one reads it, and
    // only then may it be slow. Which error it is differs between versions of simdjson.
    if (MayHoldLargeInteger(text)) {
      // Its printing recurses, and this row may not have been parsed to its end.
      if (JsonDepth(text) > spec::kMaxRowDepth) {
        return RowProblem{"", absl::StrCat("is nested deeper than ", spec::kMaxRowDepth, " levels")};
      }
      const auto value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (value.is_object()) {
        rewritten = value.dump();
        if (ParseObject(parser, rewritten, spec::kMaxRowDepth, root, fail).ok()) return std::nullopt;
      }
    }
    if (what == "it is no JSON object") return RowProblem{"", "must be a JSON object"};
    return RowProblem{"", absl::StrCat("is not valid JSON in UTF-8: ", what)};
  }
};

RowReader::RowReader(std::optional<RowFormat> format, bool train_on_inputs)
    : parser_(std::make_unique<Parser>()), format_(format), train_on_inputs_(train_on_inputs) {}
RowReader::~RowReader() = default;

std::optional<RowProblem> RowReader::Read(std::string_view text, ParsedRow& row) {
  object root;
  if (auto problem = parser_->Parse(text, root)) return problem;
  if (!format_) {
    for (const spec::RowKeys& keys : spec::kRowKeys) {
      if (!Has(root, keys.first)) continue;
      format_ = RowFormatFromName(keys.format);
      break;
    }
    if (!format_) return RowProblem{"", std::string(spec::kRowKeysInWords)};
  }
  switch (*format_) {
    case RowFormat::kMessages:
      return ReadTurns(root, "messages", "role", "content", train_on_inputs_, row);
    case RowFormat::kShareGpt:
      return ReadTurns(root, "conversations", "from", "value", train_on_inputs_, row);
    case RowFormat::kAlpaca:
      return ReadAlpaca(root, train_on_inputs_, row);
    case RowFormat::kCompletion:
      return ReadCompletion(root, train_on_inputs_, row);
    case RowFormat::kText:
      break;
  }
  row.pieces = {{"", true}};
  return ReadText(root, "text", row.pieces[0].text);
}

}  // namespace nibble::engine
