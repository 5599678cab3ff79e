#include "engine/text/tokenizer_fields.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine::tokenizer {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

absl::Status Refuse(std::string_view where, std::string_view what) {
  return Error(Reason::kTokenizerUnsupported,
               absl::StrCat("tokenizer.json: ", View(where), " ", View(what)))
      .With("component", std::string(where));
}

template <typename T>
void Fields::Get(const char* key, T& value, const char* wanted) {
  if (!Has(key)) return;
  T found{};
  if (fields_[key].get(found) == simdjson::SUCCESS) {
    value = found;
  } else if (status_.ok()) {
    status_ = Refuse(absl::StrCat(where_, ".", key), absl::StrCat("is not ", wanted));
  }
}

std::string Fields::Text(const char* key, std::string_view fallback) {
  std::string_view value = fallback;
  Get(key, value, "a string");
  return std::string(value);
}

bool Fields::Flag(const char* key, bool fallback) {
  bool value = fallback;
  Get(key, value, "true or false");
  return value;
}

int64_t Fields::Number(const char* key, int64_t fallback) {
  int64_t value = fallback;
  Get(key, value, "a whole number");
  return value;
}

bool Fields::Has(const char* key) const {
  element value;
  return fields_[key].get(value) == simdjson::SUCCESS && !value.is_null();
}

element Fields::Raw(const char* key) const {
  element value;
  CHECK(fields_[key].get(value) == simdjson::SUCCESS);
  return value;
}

absl::StatusOr<Fields> ObjectAt(std::string where, element value) {
  object fields;
  if (value.get(fields) != simdjson::SUCCESS) return Refuse(where, "is no object");
  return Fields(std::move(where), fields);
}

namespace {

constexpr size_t kMaxSteps = 32;

// The components under `value`: itself, or those listed under `list_key` of a Sequence (nested or not).
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

}  // namespace

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

}  // namespace nibble::engine::tokenizer
