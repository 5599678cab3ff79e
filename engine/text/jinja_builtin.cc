// Filters, tests and methods of the chat template language.
#include <algorithm>
#include <functional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/text.h"
#include "engine/text/tokenizer_pre.h"

namespace nibble::engine::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// Spaces as Python's str.strip knows them, or any of the given characters.
bool IsStripped(std::string_view text, size_t pos, const std::string* characters) {
  const CodePoint c = DecodeAt(text, pos);
  if (characters == nullptr) return IsSpace(c.value) || (c.value >= 0x1C && c.value <= 0x1F);
  return characters->find(text.substr(pos, c.bytes)) != std::string::npos;
}

std::string Strip(std::string_view text, const std::string* characters, bool left, bool right) {
  while (left && !text.empty() && IsStripped(text, 0, characters))
    text.remove_prefix(CharBytes(text[0]));
  while (right && !text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!IsStripped(text, last, characters)) break;
    text = text.substr(0, last);
  }
  return std::string(text);
}

std::string Lower(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos += CharBytes(text[pos])) {
    AppendLower(out, DecodeAt(text, pos).value);
  }
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out = Lower(text);
  if (!out.empty()) out[0] = absl::ascii_toupper(static_cast<unsigned char>(out[0]));
  return out;
}

std::string Title(std::string_view text) {
  std::string out = Lower(text);
  bool start = true;
  for (char& c : out) {
    const bool letter = absl::ascii_isalpha(static_cast<unsigned char>(c));
    if (start && letter) c = absl::ascii_toupper(static_cast<unsigned char>(c));
    start = !letter;
  }
  return out;
}

Value SplitText(const std::string& text, const std::string* separator, int64_t limit) {
  List parts;
  std::string_view rest(text);
  if (separator == nullptr) {
    for (;;) {
      const std::string stripped = Strip(rest, nullptr, true, false);
      rest = rest.substr(rest.size() - stripped.size());
      if (rest.empty()) return Value::Of(std::move(parts));
      size_t end = 0;
      while (end < rest.size() && !IsStripped(rest, end, nullptr)) end += CharBytes(rest[end]);
      if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) end = rest.size();
      parts.push_back(Value(std::string(rest.substr(0, end))));
      rest.remove_prefix(end);
    }
  }
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t at = rest.find(*separator);
    if (at == std::string_view::npos) break;
    parts.push_back(Value(std::string(rest.substr(0, at))));
    rest.remove_prefix(at + separator->size());
  }
  parts.push_back(Value(std::string(rest)));
  return Value::Of(std::move(parts));
}

Value Pairs(const Dict& dict) {
  List items;
  for (const auto& [key, item] : dict) items.push_back(Value::Of(List{Value(key), item}));
  return Value::Of(std::move(items));
}

// At most `limit` of them; all when that is negative.
Result Replaced(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  if (from.empty()) return EvalError("replaces an empty text, which is not supported");
  std::string out;
  for (int64_t done = 0; limit < 0 || done < limit; ++done) {
    const size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    if (out.size() + text.size() > kMaxTextBytes) return EvalError("a text grows too long");
  }
  return Value(std::move(out.append(text)));
}

// The texts of the items with the separator between them.
Result Joined(const Value& value, const std::string& separator) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += separator;
    out += items[i].Text();
    if (out.size() > kMaxTextBytes) return EvalError("a text grows too long");
  }
  return Value(std::move(out));
}

Result TextMethod(const std::string& text, std::string_view name, const Arguments& args) {
  const Value* first = args.Get(0, "");
  const std::string* argument = first ? first->AsText() : nullptr;
  if (name == "strip") return Value(Strip(text, argument, true, true));
  if (name == "lstrip") return Value(Strip(text, argument, true, false));
  if (name == "rstrip") return Value(Strip(text, argument, false, true));
  if (name == "lower") return Value(Lower(text));
  if (name == "upper") return Value(absl::AsciiStrToUpper(text));
  if (name == "capitalize") return Value(Capitalize(text));
  if (name == "title") return Value(Title(text));
  if (name == "split") {
    if (argument != nullptr && argument->empty()) return EvalError("split by an empty text");
    const Value* limit = args.Get(1, "maxsplit");
    return SplitText(text, argument, limit ? static_cast<int64_t>(limit->Number()) : -1);
  }
  if (name == "splitlines") {
    Value lines = SplitText(text.ends_with('\n') ? text.substr(0, text.size() - 1) : text,
                            std::make_unique<std::string>("\n").get(), -1);
    return text.empty() ? Value::Of(List{}) : lines;
  }
  if (name == "join") return first != nullptr ? Joined(*first, text) : EvalError("join needs a list");
  if (argument == nullptr)
    return EvalError(absl::StrCat("the method ", Quote(name), " needs a text"));
  if (name == "startswith") return Value(text.starts_with(*argument));
  if (name == "endswith") return Value(text.ends_with(*argument));
  if (name == "find") {
    const size_t at = text.find(*argument);
    return Value(at == std::string::npos ? int64_t{-1} : static_cast<int64_t>(at));
  }
  if (name == "count") {
    int64_t count = 0;
    for (size_t at = text.find(*argument); !argument->empty() && at != std::string::npos;
         at = text.find(*argument, at + argument->size())) {
      ++count;
    }
    return Value(count);
  }
  if (name == "replace") {
    const Value* with = args.Get(1, "new");
    if (with == nullptr || with->AsText() == nullptr) return EvalError("replace needs two texts");
    const Value* limit = args.Get(2, "count");
    return Replaced(text, *argument, *with->AsText(),
                    limit && limit->IsNumber() ? static_cast<int64_t>(limit->Number()) : -1);
  }
  return EvalError(absl::StrCat("texts have no method ", Quote(name)));
}

// select, reject, selectattr, rejectattr.
Result Select(std::string_view name, const Value& value, const Arguments& args) {
  const bool by_attribute = name.ends_with("attr");
  const bool keep = name.starts_with("select");
  if (!value.Truth()) return Value::Of(List());  // none has no items, and that is no fault here
  ASSIGN_OR_RETURN(const List items, Items(value));
  const Value* attribute = by_attribute ? args.Get(0, "") : nullptr;
  const Value* test = args.Get(by_attribute ? 1 : 0, "");
  Arguments rest;
  const size_t used = by_attribute ? 2 : 1;
  for (size_t i = used; i < args.positional.size(); ++i)
    rest.positional.push_back(args.positional[i]);
  List kept;
  for (const Value& item : items) {
    Value subject = item;
    if (attribute != nullptr && attribute->AsText() != nullptr) {
      const Value* found = item.Find(*attribute->AsText());
      subject = found ? *found : Value();
    }
    bool truth = subject.Truth();
    if (test != nullptr && test->AsText() != nullptr) {
      ASSIGN_OR_RETURN(truth, ApplyTest(*test->AsText(), subject, rest));
    }
    if (truth == keep) kept.push_back(item);
  }
  return Value::Of(std::move(kept));
}

Result Map(const Value& value, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  const Value* attribute = args.Get(SIZE_MAX, "attribute");
  List out;
  for (const Value& item : items) {
    if (attribute != nullptr && attribute->AsText() != nullptr) {
      const Value* found = item.Find(*attribute->AsText());
      out.push_back(found ? *found : Value());
      continue;
    }
    const Value* filter = args.Get(0, "");
    if (filter == nullptr || filter->AsText() == nullptr)
      return EvalError("map needs a filter's name");
    ASSIGN_OR_RETURN(Value mapped, ApplyFilter(*filter->AsText(), item, Arguments{}));
    out.push_back(std::move(mapped));
  }
  return Value::Of(std::move(out));
}

Result ToInteger(const Value& value) {
  int64_t number = 0;
  if (const auto* text = value.AsText()) {
    if (!absl::SimpleAtoi(*text, &number)) number = 0;
    return Value(number);
  }
  return Value(static_cast<int64_t>(value.Number()));
}

Result Join(const Value& value, const Arguments& args) {
  const Value* separator = args.Get(0, "d");
  return Joined(value, separator ? separator->Text() : "");
}

// What equals an item before it is left out.
Result Unique(const Value& value) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  constexpr size_t kMost = 1000;  // each is held against each
  if (items.size() > kMost)
    return EvalError(absl::StrCat("asks what is unique of more than ", kMost, " items"));
  List kept;
  for (const Value& item : items) {
    const auto same = [&](const Value& before) { return before.Equals(item); };
    if (std::none_of(kept.begin(), kept.end(), same)) kept.push_back(item);
  }
  return Value::Of(std::move(kept));
}

Result Indent(const Value& value, const Arguments& args) {
  const Value* width = args.Get(0, "width");
  const Value* first = args.Get(1, "first");
  const int64_t count = width ? static_cast<int64_t>(width->Number()) : 4;
  if (count < 0 || count > 1000) return EvalError("indent is out of bounds");
  const std::string pad(static_cast<size_t>(count), ' ');
  std::string out;
  const std::string text = value.Text();
  for (size_t i = 0; i < text.size(); ++i) {
    const bool line_start = i == 0 ? first && first->Truth() : text[i - 1] == '\n';
    if (line_start && text[i] != '\n') out += pad;
    out += text[i];
    if (out.size() > kMaxTextBytes) return EvalError("a text grows too long");
  }
  return Value(std::move(out));
}

struct Filter {
  std::string_view name;
  Result (*apply)(const Value& value, const Arguments& args);
};

template <typename F>
Result OfText(const Value& value, F&& change) {
  return Value(change(value.Text()));
}

Result Length(const Value& value) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  return Value(static_cast<int64_t>(items.size()));
}

const Filter kFilters[] = {
    {"trim",
     [](const Value& v, const Arguments& a) -> Result {
       const Value* chars = a.Get(0, "chars");
       return Value(Strip(v.Text(), chars ? chars->AsText() : nullptr, true, true));
     }},
    {"length", [](const Value& v, const Arguments&) { return Length(v); }},
    {"count", [](const Value& v, const Arguments&) { return Length(v); }},
    {"lower", [](const Value& v, const Arguments&) { return OfText(v, Lower); }},
    {"upper",
     [](const Value& v, const Arguments&) -> Result {
       return Value(absl::AsciiStrToUpper(v.Text()));
     }},
    {"capitalize", [](const Value& v, const Arguments&) { return OfText(v, Capitalize); }},
    {"title", [](const Value& v, const Arguments&) { return OfText(v, Title); }},
    {"string", [](const Value& v, const Arguments&) -> Result { return Value(v.Text()); }},
    {"safe", [](const Value& v, const Arguments&) -> Result { return v; }},
    {"int", [](const Value& v, const Arguments&) { return ToInteger(v); }},
    {"float", [](const Value& v, const Arguments&) -> Result { return Value(v.Number()); }},
    {"join", Join},
    {"indent", Indent},
    {"map", Map},
    {"tojson",
     [](const Value& v, const Arguments& a) -> Result {
       const Value* indent = a.Get(0, "indent");
       if (indent == nullptr || !indent->IsNumber()) return Value(v.Json(-1));
       return Value(v.Json(std::clamp(static_cast<int>(indent->Number()), 0, 16)));
     }},
    {"default",
     [](const Value& v, const Arguments& a) -> Result {
       const Value* other = a.Get(0, "default_value");
       const Value* falsy = a.Get(1, "boolean");
       const bool replace = v.IsUndefined() || (falsy && falsy->Truth() && !v.Truth());
       return replace ? (other ? *other : Value(std::string())) : v;
     }},
    {"list",
     [](const Value& v, const Arguments&) -> Result {
       ASSIGN_OR_RETURN(List items, Items(v));
       return Value::Of(std::move(items));
     }},
    {"items",
     [](const Value& v, const Arguments&) -> Result {
       if (v.AsDict() == nullptr) return EvalError("items of something that is no dictionary");
       return Pairs(*v.AsDict());
     }},
    {"dictsort",
     [](const Value& v, const Arguments&) -> Result {
       if (v.AsDict() == nullptr) return EvalError("dictsort of something that is no dictionary");
       Dict sorted = *v.AsDict();
       std::sort(sorted.begin(), sorted.end(),
                 [](const auto& a, const auto& b) { return Lower(a.first) < Lower(b.first); });
       return Pairs(sorted);
     }},
    {"first",
     [](const Value& v, const Arguments&) -> Result {
       ASSIGN_OR_RETURN(const List items, Items(v));
       return items.empty() ? Value() : items.front();
     }},
    {"last",
     [](const Value& v, const Arguments&) -> Result {
       ASSIGN_OR_RETURN(const List items, Items(v));
       return items.empty() ? Value() : items.back();
     }},
    {"reverse",
     [](const Value& v, const Arguments&) -> Result {
       ASSIGN_OR_RETURN(List items, Items(v));
       std::reverse(items.begin(), items.end());
       return Value::Of(std::move(items));
     }},
    {"unique", [](const Value& v, const Arguments&) { return Unique(v); }},
    {"replace",
     [](const Value& v, const Arguments& a) -> Result {
       return TextMethod(v.Text(), "replace", a);
     }},
};

}  // namespace

absl::Status EvalError(std::string_view what) {
  return Error::Field(Reason::kChatTemplateInvalid, "data.chat_template",
                      absl::StrCat("(the model's own) ", View(what)));
}

const Value* Arguments::Get(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<List> Items(const Value& value) {
  if (const List* list = value.AsList()) return *list;
  List items;
  if (const Dict* dict = value.AsDict()) {
    for (const auto& [key, item] : *dict) items.push_back(Value(key));
    return items;
  }
  if (const std::string* text = value.AsText()) {
    for (size_t pos = 0; pos < text->size(); pos += CharBytes((*text)[pos])) {
      items.push_back(Value(text->substr(pos, CharBytes((*text)[pos]))));
    }
    return items;
  }
  if (value.IsUndefined()) return items;
  return EvalError("it loops over, or counts, something that has no items");
}

bool Contains(const Value& container, const Value& item) {
  if (const std::string* text = container.AsText()) {
    return item.AsText() != nullptr && text->find(*item.AsText()) != std::string::npos;
  }
  if (const List* list = container.AsList()) {
    return std::any_of(list->begin(), list->end(), [&](const Value& v) { return v.Equals(item); });
  }
  return item.AsText() != nullptr && container.Find(*item.AsText()) != nullptr;
}

bool IsFilter(std::string_view name) {
  for (const std::string_view known : {"d", "select", "reject", "selectattr", "rejectattr"}) {
    if (name == known) return true;
  }
  return std::any_of(std::begin(kFilters), std::end(kFilters),
                     [&](const Filter& filter) { return filter.name == name; });
}

absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& value,
                                  const Arguments& arguments) {
  if (name == "d") name = "default";
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return Select(name, value, arguments);
  }
  for (const Filter& filter : kFilters) {
    if (filter.name == name) return filter.apply(value, arguments);
  }
  return EvalError(absl::StrCat("uses the filter ", Quote(name), ", which is not supported"));
}

bool IsMethod(const Value& object, std::string_view name) {
  if (object.AsText() != nullptr) return true;
  if (object.AsDict() == nullptr) return false;
  return name == "items" || name == "keys" || name == "values" || name == "get";
}

absl::StatusOr<Value> CallMethod(const Value& object, std::string_view name,
                                 const Arguments& arguments) {
  if (const std::string* text = object.AsText()) return TextMethod(*text, name, arguments);
  if (const Dict* dict = object.AsDict()) {
    if (name == "items") return Pairs(*dict);
    if (name == "keys") return ApplyFilter("list", object, Arguments{});
    if (name == "values") {
      List items;
      for (const auto& [key, item] : *dict) items.push_back(item);
      return Value::Of(std::move(items));
    }
    if (name == "get") {
      const Value* key = arguments.Get(0, "key");
      const Value* fallback = arguments.Get(1, "default");
      const Value* found = key && key->AsText() ? object.Find(*key->AsText()) : nullptr;
      if (found != nullptr) return *found;
      return fallback ? *fallback : Value(None{});
    }
  }
  return EvalError(absl::StrCat("calls ", Quote(name), ", which is not supported"));
}

absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& value,
                               const Arguments& arguments) {
  const Value* other = arguments.Get(0, "");
  const bool whole = value.As<int64_t>() != nullptr;
  if (name == "defined") return !value.IsUndefined();
  if (name == "undefined") return value.IsUndefined();
  if (name == "none") return value.IsNone();
  if (name == "string") return value.AsText() != nullptr;
  if (name == "mapping") return value.AsDict() != nullptr;
  if (name == "sequence" || name == "iterable") {
    return value.AsText() != nullptr || value.AsList() != nullptr || value.AsDict() != nullptr;
  }
  if (name == "number") return value.IsNumber();
  if (name == "integer") return whole;
  if (name == "float") return value.As<double>() != nullptr;
  if (name == "boolean") return value.As<bool>() != nullptr;
  if (name == "true") return value.As<bool>() != nullptr && value.Truth();
  if (name == "false") return value.As<bool>() != nullptr && !value.Truth();
  if (name == "callable") return value.As<Function>() != nullptr;
  if (name == "odd" || name == "even") {
    if (!whole)
      return EvalError(
          absl::StrCat("tests whether something is ", Quote(name), " that is no number"));
    return (*value.As<int64_t>() % 2 != 0) == (name == "odd");
  }
  if (other != nullptr) {
    if (name == "equalto" || name == "eq" || name == "==") return value.Equals(*other);
    if (name == "ne" || name == "!=") return !value.Equals(*other);
    if (name == "in") return Contains(*other, value);
    if (name == "gt" || name == "greaterthan") return value.Number() > other->Number();
    if (name == "lt" || name == "lessthan") return value.Number() < other->Number();
    if (name == "divisibleby" && whole && other->As<int64_t>() && *other->As<int64_t>() != 0) {
      return *value.As<int64_t>() % *other->As<int64_t>() == 0;
    }
  }
  return EvalError(absl::StrCat("uses the test ", Quote(name), ", which is not supported"));
}

}  // namespace nibble::engine::jinja
