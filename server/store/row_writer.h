// JSON objects written straight into a string: a job's row is written with every change of its state,
// and building a document first would cost several times the transaction.
//
// A visitor for the lists of row_fields.h. Empty texts, lists and zeros are left out: the reader's
// defaults. A number that is not finite is left out too.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/types.h"

namespace nibble::store {

// With quotes; bytes that are no UTF-8 are replaced.
void AppendQuoted(std::string& out, std::string_view text);

class RowWriter {
 public:
  std::string Take() && { return std::move(text_) + "}"; }

  void operator()(std::string_view name, const std::string& text) {
    if (text.empty()) return;
    Key(name);
    AppendQuoted(text_, text);
  }
  void operator()(std::string_view name, int64_t value) {
    if (value == 0) return;
    Key(name);
    Append(value);
  }
  void operator()(std::string_view name, int32_t value) { (*this)(name, int64_t{value}); }
  void operator()(std::string_view name, bool value) {
    Key(name);
    text_ += value ? "true" : "false";
  }
  void operator()(std::string_view name, double value);
  void operator()(std::string_view name, const std::optional<double>& value) {
    if (!value || !std::isfinite(*value)) return;
    Key(name);
    Append(*value);
  }
  void operator()(std::string_view name, const std::map<std::string, std::string>& values);
  void operator()(std::string_view name, const std::set<std::string>& values);
  void operator()(std::string_view name, const std::vector<core::Checkpoint>& checkpoints);
  void operator()(std::string_view name, const std::array<int64_t, spec::kCategoryCount>& values);
  void operator()(std::string_view name, core::JobState state) { Word(name, JobStateName(state)); }
  void operator()(std::string_view name, core::AttemptState state) {
    Word(name, AttemptStateName(state));
  }
  void operator()(std::string_view name, core::JobKind kind) {
    (*this)(name, static_cast<int64_t>(kind));
  }
  void operator()(std::string_view name, const spec::TrainSpec& spec) {
    (*this)(name, spec::TrainSpecToJson(spec));
  }
  void operator()(std::string_view name, const core::PlanBytes& plan);
  void operator()(std::string_view name, const core::Progress& progress);
  // By words, so that the file can be read with the sqlite3 shell; of the flags those that are set.
  void operator()(std::string_view name, const spec::PlanChoices& choices);

 private:
  void Key(std::string_view name);
  void Word(std::string_view name, std::string_view word);
  void Append(int64_t value);
  void Append(double value);

  std::string text_ = "{";
};

}  // namespace nibble::store
