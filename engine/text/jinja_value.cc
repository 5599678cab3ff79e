#include "engine/text/jinja_value.h"

#include <cmath>
#include <cstdio>

#include "engine/text/json.h"

namespace nibble::engine::jinja {
namespace {

std::string NumberText(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) {
    return std::to_string(static_cast<int64_t>(value)) + ".0";
  }
  char text[32];
  for (int digits = 1; digits <= 17; ++digits) {  // the shortest that reads back the same
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

// Python's repr of a text.
std::string Quoted(const std::string& text) {
  const bool doubled = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = doubled ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') out += '\\';
    if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string Indent(int indent, int level) {
  return indent < 0 ? "" : "\n" + std::string(static_cast<size_t>(indent * level), ' ');
}

}  // namespace

Value::Value(Variant v) : v_(std::move(v)) {
  if (const auto* text = AsText()) weight_ += static_cast<int64_t>(text->size()) / 16;
}

Value Value::Of(List list) {
  int64_t weight = 1;
  for (const Value& item : list) weight += item.weight_;
  Value value{Variant(std::make_shared<List>(std::move(list)))};
  value.weight_ = weight;
  return value;
}

Value Value::Of(Dict dict) {
  int64_t weight = 1;
  for (const auto& [key, item] : dict)
    weight += item.weight_ + static_cast<int64_t>(key.size()) / 16;
  Value value{Variant(std::make_shared<Dict>(std::move(dict)))};
  value.weight_ = weight;
  return value;
}

const List* Value::AsList() const {
  const auto* list = As<std::shared_ptr<List>>();
  return list ? list->get() : nullptr;
}

const Dict* Value::AsDict() const {
  const auto* dict = As<std::shared_ptr<Dict>>();
  return dict ? dict->get() : nullptr;
}

Namespace* Value::AsNamespace() const {
  const auto* space = As<std::shared_ptr<Namespace>>();
  return space ? space->get() : nullptr;
}

double Value::Number() const {
  if (const auto* b = As<bool>()) return *b ? 1 : 0;
  if (const auto* i = As<int64_t>()) return static_cast<double>(*i);
  const auto* d = As<double>();
  return d ? *d : 0;
}

bool Value::Truth() const {
  if (IsUndefined() || IsNone()) return false;
  if (const auto* text = AsText()) return !text->empty();
  if (const auto* list = AsList()) return !list->empty();
  if (const auto* dict = AsDict()) return !dict->empty();
  if (As<Function>() || AsNamespace()) return true;
  return Number() != 0;
}

std::string Value::Text(bool quoted) const {
  if (IsUndefined()) return "";
  if (IsNone()) return "None";
  if (const auto* b = As<bool>()) return *b ? "True" : "False";
  if (const auto* i = As<int64_t>()) return std::to_string(*i);
  if (const auto* d = As<double>()) return NumberText(*d);
  if (const auto* text = AsText()) return quoted ? Quoted(*text) : *text;
  std::string out;
  if (const auto* list = AsList()) {
    for (const Value& item : *list) out += (out.empty() ? "" : ", ") + item.Text(true);
    return "[" + out + "]";
  }
  if (const auto* dict = AsDict()) {
    for (const auto& [key, item] : *dict) {
      out += (out.empty() ? "'" : ", '") + key + "': " + item.Text(true);
    }
    return "{" + out + "}";
  }
  return AsNamespace() ? "<Namespace>" : "<function>";
}

std::string Value::Json(int indent, int level) const {
  if (IsUndefined() || IsNone() || As<Function>() || AsNamespace()) return "null";
  if (const auto* b = As<bool>()) return *b ? "true" : "false";
  if (const auto* text = AsText()) return JsonString(*text);
  const std::string comma = indent < 0 ? ", " : ",";
  std::string out;
  if (const auto* list = AsList()) {
    if (list->empty()) return "[]";
    for (const Value& item : *list) {
      out += (out.empty() ? "" : comma) + Indent(indent, level + 1) + item.Json(indent, level + 1);
    }
    return "[" + out + Indent(indent, level) + "]";
  }
  if (const auto* dict = AsDict()) {
    if (dict->empty()) return "{}";
    for (const auto& [key, item] : *dict) {
      out += (out.empty() ? "" : comma) + Indent(indent, level + 1) + JsonString(key) + ": " +
             item.Json(indent, level + 1);
    }
    return "{" + out + Indent(indent, level) + "}";
  }
  return Text();
}

bool Value::Equals(const Value& other) const {
  if (IsNumber() && other.IsNumber()) return Number() == other.Number();
  if (v_.index() != other.v_.index()) return false;
  if (const auto* text = AsText()) return *text == *other.AsText();
  if (const auto* list = AsList()) {
    const List& theirs = *other.AsList();
    if (list->size() != theirs.size()) return false;
    for (size_t i = 0; i < list->size(); ++i) {
      if (!(*list)[i].Equals(theirs[i])) return false;
    }
    return true;
  }
  if (const auto* dict = AsDict()) {
    if (dict->size() != other.AsDict()->size()) return false;
    for (const auto& [key, item] : *dict) {
      const Value* theirs = other.Find(key);
      if (theirs == nullptr || !item.Equals(*theirs)) return false;
    }
    return true;
  }
  if (const auto* space = AsNamespace()) return space == other.AsNamespace();
  return IsNone() || IsUndefined();
}

const Value* Value::Find(const std::string& key) const {
  const Dict* dict = AsNamespace() ? &AsNamespace()->values : AsDict();
  if (dict == nullptr) return nullptr;
  for (const auto& [name, item] : *dict) {
    if (name == key) return &item;
  }
  return nullptr;
}

}  // namespace nibble::engine::jinja
