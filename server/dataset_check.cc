#include "server/dataset_check.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "engine/spec/row_keys.h"

namespace nibble::server {
namespace {

using nlohmann::json;

constexpr size_t kMaxViolations = 100;
constexpr int64_t kReadBytes = int64_t{1} << 20;

struct Problem {
  std::string path;  // below the row; may be empty
  std::string what;
};
using MaybeProblem = std::optional<Problem>;

bool Has(const json& row, std::string_view key) {
  const auto it = row.find(key);
  return it != row.end() && !it->is_null();
}

MaybeProblem CheckText(const json& row, std::string_view name, bool may_be_missing = false) {
  const std::string key(name);
  if (!Has(row, key)) {
    if (may_be_missing) return std::nullopt;
    return Problem{absl::StrCat(".", key), "is missing; it must be a string"};
  }
  if (!row[key].is_string()) return Problem{absl::StrCat(".", key), "must be a string"};
  return std::nullopt;
}

// What is said in a turn: a text, or parts of which all are text.
MaybeProblem CheckContent(const json& turn, const char* key) {
  const auto it = turn.find(key);
  // A turn that only calls tools has no content.
  if (it == turn.end() || !it->is_array()) return CheckText(turn, key, turn.contains("tool_calls"));
  for (size_t i = 0; i < it->size(); ++i) {
    const json& part = (*it)[i];
    if (part.is_object() && part.value("type", json()) == "text" && part.value("text", json()).is_string())
      continue;
    return Problem{absl::StrCat(".", key, "[", i, "]"),
                   "must be {\"type\": \"text\", \"text\": ...}; nothing else can be trained on"};
  }
  return std::nullopt;
}

// Both chat shapes: an array of objects with a role and a text.
MaybeProblem CheckTurns(const json& row, const char* list, const char* role, const char* text) {
  const json& turns = row[list];
  const std::string path = absl::StrCat(".", list);
  if (!turns.is_array() || turns.empty()) return Problem{path, "must be an array with at least one entry"};
  if (auto problem = CheckText(row, "system", true)) return problem;
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string entry = absl::StrCat(path, "[", i, "]");
    if (!turns[i].is_object()) return Problem{entry, "must be an object"};
    auto problem = CheckText(turns[i], role);
    if (!problem) problem = CheckContent(turns[i], text);
    if (problem) return Problem{entry + problem->path, problem->what};
  }
  return std::nullopt;
}

MaybeProblem CheckMessages(const json& row) { return CheckTurns(row, "messages", "role", "content"); }
MaybeProblem CheckShareGpt(const json& row) { return CheckTurns(row, "conversations", "from", "value"); }

spec::RowKeys KeysIn(const json& row, std::string_view format) {
  return spec::KeysOf(format, [&](std::string_view key) { return Has(row, key); });
}

MaybeProblem CheckAnswered(const json& row, std::string_view format) {
  const spec::RowKeys keys = KeysIn(row, format);
  if (auto problem = CheckText(row, keys.first)) return problem;
  return CheckText(row, keys.answer);
}
MaybeProblem CheckAlpaca(const json& row) {
  for (const std::string_view key : spec::kAlpacaInputs) {
    if (auto problem = CheckText(row, key, true)) return problem;
  }
  if (auto problem = CheckText(row, "system", true)) return problem;
  return CheckAnswered(row, "alpaca");
}
MaybeProblem CheckCompletion(const json& row) { return CheckAnswered(row, "completion"); }
MaybeProblem CheckPlainText(const json& row) { return CheckText(row, "text"); }

struct Format {
  std::string_view name;
  MaybeProblem (*check)(const json& row);
};
constexpr std::array<Format, 5> kFormats = {{
    {"messages", CheckMessages},
    {"sharegpt", CheckShareGpt},
    {"alpaca", CheckAlpaca},
    {"completion", CheckCompletion},
    {"text", CheckPlainText},
}};

// By bit, the formats whose keys the row has: who is told to read it as another must refuse it.
uint32_t FormatsOf(const json& row) {
  uint32_t formats = 0;
  for (size_t i = 0; i < kFormats.size(); ++i) {
    const spec::RowKeys keys = KeysIn(row, kFormats[i].name);
    if (Has(row, keys.first) && (keys.answer.empty() || Has(row, keys.answer))) formats |= 1u << i;
  }
  return formats;
}

// Members of objects, as far as they are told apart.
int64_t Members(const json& value) {
  if (!value.is_structured()) return 0;
  int64_t count = value.is_object() ? static_cast<int64_t>(value.size()) : 0;
  for (const json& item : value) count += Members(item);
  return count;
}

// Of valid JSON: each member has one colon outside of strings.
int64_t Colons(std::string_view text) {
  int64_t count = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string && text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      in_string = !in_string;
    } else if (text[i] == ':' && !in_string) {
      ++count;
    }
  }
  return count;
}

// A key that stands twice in one object, as JSON.
std::string TwiceIn(std::string_view text) {
  std::vector<std::set<std::string>> open;
  std::string twice;
  const auto look = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open.emplace_back();
    if (event == json::parse_event_t::object_end) open.pop_back();
    if (event != json::parse_event_t::key) return true;
    const std::string key = value.get<std::string>();
    if (!open.back().insert(key).second && twice.empty())
      twice = json(key.substr(0, 60)).dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
    return true;
  };
  return json::parse(text, look, /*allow_exceptions=*/false).is_discarded() ? "" : twice;
}

MaybeProblem CheckRow(std::string_view text, std::string& format, uint32_t& formats) {
  // Before parsing, so that the parser never builds something deep.
  if (JsonDepth(text) > spec::kMaxRowDepth) {
    return Problem{"", absl::StrCat("is nested deeper than ", spec::kMaxRowDepth, " levels")};
  }
  const json row = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (row.is_discarded()) {
    if (!IsValidUtf8(text)) return Problem{"", "has bytes that are not UTF-8; save the file as UTF-8"};
    return Problem{"", "is not valid JSON; a row is one JSON object, such as {\"text\": \"...\"}"};
  }
  if (!row.is_object()) return Problem{"", "must be a JSON object"};
  // Of its values one reader takes the first, another the last.
  if (Members(row) != Colons(text))
    return Problem{"", absl::StrCat("has the key ", TwiceIn(text), " twice in one object")};
  if (format.empty()) {
    for (const spec::RowKeys& keys : spec::kRowKeys) {
      if (!Has(row, keys.first)) continue;
      format = std::string(keys.format);
      break;
    }
    if (format.empty()) return Problem{"", std::string(spec::kRowKeysInWords)};
  }
  const spec::RowKeys keys = KeysIn(row, format);
  if (!Has(row, keys.first)) {
    return Problem{absl::StrCat(".", std::string(keys.first)),
                   absl::StrCat("is missing; the first row is of format ", format, " and all rows must be")};
  }
  formats &= FormatsOf(row);
  for (const Format& candidate : kFormats) {
    if (format == candidate.name) return candidate.check(row);
  }
  return std::nullopt;
}

}  // namespace

DatasetChecker::DatasetChecker()
    : splitter_("rows", [this](int64_t row, std::string_view text) {
        Row(row, text);
        return absl::OkStatus();
      }) {}

void DatasetChecker::Row(int64_t row, std::string_view text) {
  if (auto problem = CheckRow(text, facts_.format, formats_)) {
    ++bad_rows_;
    if (violations_.size() < kMaxViolations) {
      violations_.push_back({absl::StrCat("rows[", row, "]", problem->path),
                             absl::StrCat(problem->what, " (line ", splitter_.line(), ")")});
    }
  }
}

absl::Status DatasetChecker::Feed(std::string_view data) { return splitter_.Feed(data); }

absl::StatusOr<DatasetFacts> DatasetChecker::Finish() {
  RETURN_IF_ERROR(splitter_.Finish());
  facts_.rows = splitter_.rows();
  if (facts_.rows == 0) return Error(Reason::kDatasetEmpty, "the data set has no rows").ToStatus();
  for (size_t i = 0; i < kFormats.size(); ++i) {
    if (formats_ & (1u << i)) facts_.formats.emplace_back(kFormats[i].name);
  }
  if (bad_rows_ == 0) return facts_;
  Error error(Reason::kDatasetSchemaMismatch,
              absl::StrCat(bad_rows_, " of ", facts_.rows, " rows are wrong; the first: ",
                           violations_[0].field, " ", violations_[0].description));
  error.With("bad_rows", std::to_string(bad_rows_)).With("rows", std::to_string(facts_.rows));
  for (const FieldViolation& v : violations_) error.Violation(v.field, v.description);
  return error.ToStatus();
}

namespace {

// What people push by mistake; "" for anything else.
std::string_view OtherFormat(std::string_view head) {
  static constexpr std::pair<std::string_view, std::string_view> kMarks[] = {
      {"PAR1", "is a Parquet file; convert it to JSON lines"},
      {"ARROW1", "is an Arrow file; convert it to JSON lines"},
      {"\x1f\x8b", "is compressed with gzip; unpack it"},
      {"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it"},
      {"PK\x03\x04", "is a zip archive; unpack it"},
      {"\xff\xfe", "is text in UTF-16; save it as UTF-8"},
      {"\xfe\xff", "is text in UTF-16; save it as UTF-8"},
  };
  for (const auto& [mark, what] : kMarks) {
    if (head.starts_with(mark)) return what;
  }
  return "";
}

}  // namespace

absl::StatusOr<DatasetFacts> CheckDataset(const ReadBytes& read) {
  DatasetChecker checker;
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(const std::string data, read(offset, kReadBytes));
    if (const std::string_view other = OtherFormat(data); offset == 0 && !other.empty())
      return Error::Field(Reason::kDatasetSchemaMismatch, "the data set", std::string(other))
          .ToStatus();
    if (data.empty()) return checker.Finish();
    RETURN_IF_ERROR(checker.Feed(data));
    offset += static_cast<int64_t>(data.size());
  }
}

absl::StatusOr<std::vector<std::string>> FirstRows(const ReadBytes& read, int64_t count) {
  std::vector<std::string> rows;
  const auto has_all = [&] { return static_cast<int64_t>(rows.size()) >= count; };
  spec::RowSplitter splitter("rows", [&](int64_t, std::string_view text) {
    rows.emplace_back(text);
    return has_all() ? absl::CancelledError() : absl::OkStatus();
  });
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(const std::string data, read(offset, kReadBytes));
    const absl::Status fed = data.empty() ? splitter.Finish() : splitter.Feed(data);
    if (has_all()) return rows;
    RETURN_IF_ERROR(fed);
    if (data.empty()) return rows;
    offset += static_cast<int64_t>(data.size());
  }
}

}  // namespace nibble::server
