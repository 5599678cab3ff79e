#include "server/store/row_writer.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/spec/words.h"
#include "server/store/row_fields.h"

namespace nibble::store {

void AppendQuoted(std::string& out, std::string_view text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
  });
  if (!plain) {
    using nlohmann::json;
    out += json(std::string(text)).dump(-1, ' ', false, json::error_handler_t::replace);
    return;
  }
  out += '"';
  out.append(text);
  out += '"';
}

void RowWriter::Key(std::string_view name) {
  if (text_.back() != '{') text_ += ',';
  text_ += '"';
  text_.append(name);
  text_ += "\":";
}

void RowWriter::Word(std::string_view name, std::string_view word) {
  Key(name);
  AppendQuoted(text_, word);
}

void RowWriter::Append(int64_t value) {
  char digits[24];
  text_.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

void RowWriter::Append(double value) {
  char digits[32];
  text_.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

void RowWriter::operator()(std::string_view name, double value) {
  if (value == 0 || !std::isfinite(value)) return;
  Key(name);
  Append(value);
}

void RowWriter::operator()(std::string_view name, const std::map<std::string, std::string>& values) {
  if (values.empty()) return;
  Key(name);
  for (char before = '{'; const auto& [key, value] : values) {
    text_ += std::exchange(before, ',');
    AppendQuoted(text_, key);
    text_ += ':';
    AppendQuoted(text_, value);
  }
  text_ += '}';
}

void RowWriter::operator()(std::string_view name, const std::set<std::string>& values) {
  if (values.empty()) return;
  Key(name);
  for (char before = '['; const std::string& value : values) {
    text_ += std::exchange(before, ',');
    AppendQuoted(text_, value);
  }
  text_ += ']';
}

void RowWriter::operator()(std::string_view name,
                           const std::array<int64_t, spec::kCategoryCount>& values) {
  Key(name);
  for (char before = '['; const int64_t value : values) {
    text_ += std::exchange(before, ',');
    Append(value);
  }
  text_ += ']';
}

void RowWriter::operator()(std::string_view name, const core::PlanBytes& plan) {
  RowWriter inner;
  VisitPlan(inner, plan);
  Key(name);
  text_ += std::move(inner).Take();
}

void RowWriter::operator()(std::string_view name, const spec::PlanChoices& choices) {
  if (choices == spec::PlanChoices{}) return;
  RowWriter inner;
  inner.Word("recompute", spec::WordOf(spec::kRecomputeWords, choices.recompute));
  inner.Word("base_cache", spec::WordOf(spec::kBaseCacheWords, choices.base_cache));
  for (const auto& [key, set] : {std::pair{"paged_optimizer", choices.paged_optimizer},
                                 std::pair{"offload_activations", choices.offload_activations},
                                 std::pair{"cuda_graphs", choices.cuda_graphs}}) {
    if (set) inner(key, true);
  }
  if (choices.keep_blocks != 0) inner("keep_blocks", choices.keep_blocks);
  Key(name);
  text_ += std::move(inner).Take();
}

void RowWriter::operator()(std::string_view name, const core::Progress& progress) {
  RowWriter inner;
  VisitProgress(inner, progress);
  Key(name);
  text_ += std::move(inner).Take();
}

}  // namespace nibble::store
