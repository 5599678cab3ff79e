// The parts of tokenizer.json read with defaults, and what is refused named with its place in the file.
//
// For .cc files only (json.h). A Fields is good while its document lives; one thread uses it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/json.h"

namespace nibble::engine::tokenizer {

// TOKENIZER_UNSUPPORTED at `where`, such as "model.vocab"; `what` goes on the sentence.
absl::Status Refuse(std::string_view where, std::string_view what);

// The fields of one JSON object, read with defaults; remembers the first that has the wrong type.
class Fields {
 public:
  Fields(std::string where, simdjson::dom::object fields) : where_(std::move(where)), fields_(fields) {}

  const std::string& where() const { return where_; }

  // What is absent or null is `fallback`.
  std::string Text(const char* key, std::string_view fallback = "");
  bool Flag(const char* key, bool fallback);
  int64_t Number(const char* key, int64_t fallback);
  // Null counts as absent.
  bool Has(const char* key) const;
  // Only of what it has.
  simdjson::dom::element Raw(const char* key) const;
  const absl::Status& status() const { return status_; }

 private:
  template <typename T>
  void Get(const char* key, T& value, const char* wanted);

  std::string where_;
  simdjson::dom::object fields_;
  absl::Status status_;
};

absl::StatusOr<Fields> ObjectAt(std::string where, simdjson::dom::element value);

// The components under `key` of the file: the one there, or those listed under `list_key` of a Sequence
// (nested or not); none when it is absent.
absl::StatusOr<std::vector<Fields>> Components(Fields& root, const char* key, const char* list_key);

// That this component is none of those its reader knows.
absl::Status UnknownType(Fields& fields);

}  // namespace nibble::engine::tokenizer
