#include "engine/text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/text/json.h"

namespace nibble::engine::jinja {
namespace {

// Python's repr.
std::string NumberText(double value) {
  if (std::isnan(value)) return "nan";  // printf knows a negative one
  char text[32];
  if (value == std::floor(value) && std::abs(value) < 1e16) {
    std::snprintf(text, sizeof(text), "%.1f", value);
    return text;
  }
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

void AppendLineBreak(std::string& out, int64_t indent, int64_t level) {
  if (indent < 0) return;
  out += '\n';
  out.append(static_cast<size_t>(indent * level), ' ');
}

}  // namespace

Value::Value(Variant v) : v_(std::move(v)) {
  if (const auto* text = AsText()) weight_ += static_cast<int64_t>(text->size()) / 16;
}

Value Value::Of(List list) {
  int64_t weight = 1;
  int depth = 0;
  for (const Value& item : list) {
    weight += item.weight_;
    depth = std::max(depth, item.depth_);
  }
  Value value{Variant(std::make_shared<List>(std::move(list)))};
  value.weight_ = weight;
  value.depth_ = depth + 1;
  return value;
}

Value Value::Of(Dict dict) {
  int64_t weight = 1;
  int depth = 0;
  for (const auto& [key, item] : dict) {
    weight += item.weight_ + key.weight_;
    depth = std::max(depth, item.depth_);
  }
  Value value{Variant(std::make_shared<Dict>(std::move(dict)))};
  value.weight_ = weight;
  value.depth_ = depth + 1;
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

std::optional<int64_t> Value::Whole() const {
  if (const auto* b = As<bool>()) return *b ? 1 : 0;
  if (const auto* i = As<int64_t>()) return *i;
  return std::nullopt;
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
  std::string out;
  AppendText(out, quoted);
  return out;
}

void Value::AppendText(std::string& out, bool quoted) const {
  const auto* list = AsList();
  const auto* dict = AsDict();
  if (const auto* text = AsText()) {
    out += quoted ? Quoted(*text) : *text;
  } else if (const auto* i = As<int64_t>()) {
    out += std::to_string(*i);
  } else if (const auto* d = As<double>()) {
    out += NumberText(*d);
  } else if (const auto* b = As<bool>()) {
    out += *b ? "True" : "False";
  } else if (list != nullptr) {
    out += '[';
    for (const Value& item : *list) {
      if (&item != list->data()) out += ", ";
      item.AppendText(out, true);
    }
    out += ']';
  } else if (dict != nullptr) {
    out += '{';
    for (const auto& entry : *dict) {
      if (&entry != dict->data()) out += ", ";
      entry.first.AppendText(out, true);
      out += ": ";
      entry.second.AppendText(out, true);
    }
    out += '}';
  } else if (!IsUndefined()) {
    out += IsNone() ? "None" : AsNamespace() ? "<Namespace>" : "<function>";
  }
}

std::string Value::Json(int64_t indent) const {
  std::string out;
  AppendJson(out, indent, 0);
  return out;
}

void Value::AppendJson(std::string& out, int64_t indent, int64_t level) const {
  const auto* list = AsList();
  const auto* dict = AsDict();
  const auto* number = As<double>();
  if (const auto* text = AsText()) {
    out += JsonString(*text);
  } else if (const auto* b = As<bool>()) {
    out += *b ? "true" : "false";
  } else if (number != nullptr && !std::isfinite(*number)) {  // as Python has them
    out += std::isnan(*number) ? "NaN" : *number < 0 ? "-Infinity" : "Infinity";
  } else if (IsNumber()) {
    AppendText(out, false);
  } else if (list != nullptr || dict != nullptr) {
    const size_t count = list != nullptr ? list->size() : dict->size();
    out += list != nullptr ? '[' : '{';
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out += indent < 0 ? ", " : ",";
      AppendLineBreak(out, indent, level + 1);
      if (dict != nullptr) {
        const Value& key = (*dict)[i].first;  // a text there, whatever it was
        out += key.AsText() != nullptr ? key.Json(-1) : JsonString(key.Json(-1));
        out += ": ";
      }
      (list != nullptr ? (*list)[i] : (*dict)[i].second).AppendJson(out, indent, level + 1);
    }
    if (count > 0) AppendLineBreak(out, indent, level);
    out += list != nullptr ? ']' : '}';
  } else {
    out += "null";
  }
}

bool Value::Equals(const Value& other) const {
  if (Whole() && other.Whole()) return *Whole() == *other.Whole();
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
  if (const Namespace* space = AsNamespace()) {
    for (const auto& [name, item] : space->values) {
      if (name == key) return &item;
    }
  }
  if (const Dict* dict = AsDict()) {
    for (const auto& [name, item] : *dict) {
      if (name.AsText() != nullptr && *name.AsText() == key) return &item;
    }
  }
  return nullptr;
}

const Value* Value::Find(const Value& key) const {
  const Dict* dict = AsDict();
  if (dict == nullptr) return nullptr;
  for (const auto& [name, item] : *dict) {
    if (name.Equals(key)) return &item;
  }
  return nullptr;
}

}  // namespace nibble::engine::jinja
