// Filters, tests and methods of the chat template language.
#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_text.h"
#include "engine/text/text.h"

namespace nibble::engine::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Value Pairs(const Dict& dict) {
  List items;
  for (const auto& [key, item] : dict) items.push_back(Value::Of(List{key, item}));
  return Value::Of(std::move(items));
}

// The attribute of an item, or the attribute's own behind a dot.
Value AttributeOf(const Value& item, const std::string& path) {
  Value value = item;
  for (size_t begin = 0, end = 0; end < path.size(); begin = end + 1) {
    end = std::min(path.find('.', begin), path.size());
    const Value* found = value.Find(path.substr(begin, end - begin));
    value = found != nullptr ? Value(*found) : Value(Undefined{path});
  }
  return value;
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
    if (attribute != nullptr && attribute->AsText() != nullptr)
      subject = AttributeOf(item, *attribute->AsText());
    bool truth = subject.Truth();
    if (test != nullptr && test->AsText() != nullptr) {
      ASSIGN_OR_RETURN(truth, ApplyTest(*test->AsText(), subject, rest));
    }
    if (truth == keep) kept.push_back(item);
  }
  return Value::Of(std::move(kept));
}

Result Attributes(const Value& value, const Value& attribute, const Value& missing) {
  if (attribute.AsText() == nullptr) return EvalError("asks for an attribute whose name is no text");
  ASSIGN_OR_RETURN(const List items, Items(value));
  List out;
  for (const Value& item : items) {
    out.push_back(AttributeOf(item, *attribute.AsText()));
    if (out.back().IsUndefined() && !missing.IsUndefined()) out.back() = missing;
  }
  return Value::Of(std::move(out));
}

Result Map(const Value& value, const Arguments& args) {
  const Value* missing = args.Get(SIZE_MAX, "default");
  if (const Value* attribute = args.Get(SIZE_MAX, "attribute"))
    return Attributes(value, *attribute, missing ? *missing : Value());
  if (args.positional.empty() || args.positional[0].AsText() == nullptr)
    return EvalError("map needs a filter's name");
  Arguments rest = args;
  rest.positional.erase(rest.positional.begin());
  ASSIGN_OR_RETURN(const List items, Items(value));
  List out;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value mapped, ApplyFilter(*args.positional[0].AsText(), item, rest));
    out.push_back(std::move(mapped));
  }
  return Value::Of(std::move(out));
}

// A number, or one that a text is; the default, else 0, when it is neither.
Result ToInteger(const Value& value, const Arguments& args) {
  if (const auto whole = value.Whole()) return Value(*whole);
  const Value* fallback = args.Get(0, "default");
  const Value other = fallback ? *fallback : Value(int64_t{0});
  double number = value.Number();
  if (const auto* text = value.AsText()) {
    int64_t whole = 0;
    if (absl::SimpleAtoi(*text, &whole)) return Value(whole);
    if (!absl::SimpleAtod(*text, &number) || !std::isfinite(number)) return other;
  } else if (value.As<double>() == nullptr || std::isnan(number)) {
    return other;
  }
  constexpr double kBound = 9223372036854775808.0;  // 2^63; the lowest is -2^63 itself
  if (number < -kBound || number >= kBound) return EvalError("a number is too large");
  return Value(static_cast<int64_t>(number));
}

Result ToFloat(const Value& value, const Arguments& args) {
  if (value.IsNumber()) return Value(value.Number());
  double number = 0;
  if (value.AsText() != nullptr && absl::SimpleAtod(*value.AsText(), &number)) return Value(number);
  const Value* fallback = args.Get(0, "default");
  return fallback ? *fallback : Value(0.0);
}

Result Join(const Value& value, const Arguments& args) {
  const Value* separator = args.Get(0, "d");
  const Value* attribute = args.Get(1, "attribute");
  Value items = value;
  if (attribute != nullptr) {
    ASSIGN_OR_RETURN(items, Attributes(value, *attribute, Value()));
  }
  return Joined(items, separator ? separator->Text() : "");
}

// What equals an item before it is left out; texts do whatever their case.
Result Unique(const Value& value) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  constexpr size_t kMost = 1000;  // each is held against each
  if (items.size() > kMost)
    return EvalError(absl::StrCat("asks what is unique of more than ", kMost, " items"));
  List kept;
  for (const Value& item : items) {
    const auto same = [&](const Value& before) {
      if (before.AsText() && item.AsText()) return Lower(*before.AsText()) == Lower(*item.AsText());
      return before.Equals(item);
    };
    if (std::none_of(kept.begin(), kept.end(), same)) kept.push_back(item);
  }
  return Value::Of(std::move(kept));
}

Result Indent(const Value& value, const Arguments& args) {
  const Value* width = args.Get(0, "width");
  const Value* first = args.Get(1, "first");
  const Value* blank = args.Get(2, "blank");
  std::string pad;
  if (width != nullptr && width->AsText() != nullptr) {
    pad = *width->AsText();
  } else {
    ASSIGN_OR_RETURN(const int64_t count, args.Whole(0, "width", 4));
    if (count > 1000) return EvalError("indent is out of bounds");
    pad.assign(static_cast<size_t>(std::max<int64_t>(count, 0)), ' ');
  }
  return Indented(value.Text(), pad, first && first->Truth(), blank && blank->Truth());
}

// As transformers has it for templates: its first parameter is ensure_ascii, which goes without saying.
Result ToJson(const Value& value, const Arguments& args) {
  for (const char* option : {"ensure_ascii", "sort_keys"}) {
    const Value* given = args.Get(SIZE_MAX, option);
    if (given != nullptr && given->Truth())
      return EvalError(absl::StrCat("gives tojson ", Quote(option), ", which is not supported"));
  }
  ASSIGN_OR_RETURN(int64_t indent, args.Whole(SIZE_MAX, "indent", -1));
  const Value* given = args.Get(SIZE_MAX, "indent");
  if (given != nullptr && !given->IsNone()) indent = std::max<int64_t>(indent, 0);
  if (indent > 1000) return EvalError("indent is out of bounds");
  if (indent * value.depth() * value.weight() > static_cast<int64_t>(kMaxTextBytes))
    return EvalError("a text grows too long");
  return Value(value.Json(indent));
}

Result Reversed(const Value& value) {
  ASSIGN_OR_RETURN(List items, Items(value));
  std::reverse(items.begin(), items.end());
  return value.AsText() != nullptr ? Joined(Value::Of(std::move(items)), "") : Value::Of(std::move(items));
}

struct Filter {
  std::string_view name;
  size_t in_order;  // of the parameters, those that need no name
  std::array<std::string_view, 3> parameters;
  Result (*apply)(const Value& value, const Arguments& args);
};

template <typename F>
Result OfText(const Value& value, F&& change) {
  return Value(change(value.Text()));
}

// Jinja's own: a word is what stands behind white space or an opening bracket, unlike Python's title().
std::string TitleFilter(std::string_view text) {
  std::string out;
  bool start = true;
  for (size_t pos = 0; pos < text.size(); pos += CharBytes(text[pos])) {
    const CodePoint c = DecodeAt(text, pos);
    start ? AppendUpper(out, c.value) : AppendLower(out, c.value);
    start = IsSpace(c.value) ||
            (c.value < 0x80 && std::string_view("-({[<").find(text[pos]) != std::string_view::npos);
  }
  return out;
}

Result Length(const Value& value) {
  if (value.AsText() != nullptr) return Value(CountCharacters(*value.AsText()));
  ASSIGN_OR_RETURN(const List items, Items(value));
  return Value(static_cast<int64_t>(items.size()));
}

Result Trim(const Value& value, const Arguments& args) {
  const Value* chars = args.Get(0, "chars");
  return Value(Strip(value.Text(), chars ? chars->AsText() : nullptr, true, true));
}

Result Default(const Value& value, const Arguments& args) {
  const Value* other = args.Get(0, "default_value");
  const Value* falsy = args.Get(1, "boolean");
  const bool replace = value.IsUndefined() || (falsy && falsy->Truth() && !value.Truth());
  return replace ? (other ? *other : Value(std::string())) : value;
}

Result ListOf(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(List items, Items(value));
  return Value::Of(std::move(items));
}

// One end of the items; undefined when there are none.
template <bool last>
Result End(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(const List items, Items(value));
  return items.empty() ? Value() : last ? items.back() : items.front();
}

Result DictItems(const Value& value, const Arguments&) {
  if (value.AsDict() == nullptr) return EvalError("items of something that is no dictionary");
  return Pairs(*value.AsDict());
}

// By key: texts whatever their case, or numbers.
Result DictSort(const Value& value, const Arguments&) {
  if (value.AsDict() == nullptr) return EvalError("dictsort of something that is no dictionary");
  Dict sorted = *value.AsDict();
  const auto all = [&](auto is) {
    return std::all_of(sorted.begin(), sorted.end(), [&](const auto& entry) { return is(entry.first); });
  };
  if (all([](const Value& key) { return key.AsText() != nullptr; })) {
    std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
      return Lower(*a.first.AsText()) < Lower(*b.first.AsText());
    });
  } else if (all([](const Value& key) { return key.Whole().has_value(); })) {
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return *a.first.Whole() < *b.first.Whole(); });
  } else if (sorted.size() > 1) {
    return EvalError("dictsort of keys that are neither all texts nor all whole numbers");
  }
  return Pairs(sorted);
}

// With the parameters that each knows.
const Filter kFilters[] = {
    {"trim", 1, {"chars"}, Trim},
    {"length", 0, {}, [](const Value& v, const Arguments&) { return Length(v); }},
    {"count", 0, {}, [](const Value& v, const Arguments&) { return Length(v); }},
    {"lower", 0, {}, [](const Value& v, const Arguments&) { return OfText(v, Lower); }},
    {"upper", 0, {}, [](const Value& v, const Arguments&) { return OfText(v, Upper); }},
    {"capitalize", 0, {}, [](const Value& v, const Arguments&) { return OfText(v, Capitalize); }},
    {"title", 0, {}, [](const Value& v, const Arguments&) { return OfText(v, TitleFilter); }},
    {"string", 0, {}, [](const Value& v, const Arguments&) -> Result { return Value(v.Text()); }},
    {"safe", 0, {}, [](const Value& v, const Arguments&) -> Result { return v; }},
    {"int", 1, {"default"}, ToInteger},
    {"float", 1, {"default"}, ToFloat},
    {"join", 2, {"d", "attribute"}, Join},
    {"indent", 3, {"width", "first", "blank"}, Indent},
    {"tojson", 0, {"indent", "ensure_ascii", "sort_keys"}, ToJson},
    {"default", 2, {"default_value", "boolean"}, Default},
    {"list", 0, {}, ListOf},
    {"items", 0, {}, DictItems},
    {"dictsort", 0, {}, DictSort},
    {"first", 0, {}, End<false>},
    {"last", 0, {}, End<true>},
    {"reverse", 0, {}, [](const Value& v, const Arguments&) { return Reversed(v); }},
    {"unique", 0, {}, [](const Value& v, const Arguments&) { return Unique(v); }},
    {"replace", 3, {"old", "new", "count"},
     [](const Value& v, const Arguments& a) { return TextMethod(v.Text(), "replace", a); }},
};

// What a filter does not know of its arguments is refused: left out, it would change the text unseen.
absl::Status CheckArguments(const Filter& filter, const Arguments& arguments) {
  if (arguments.positional.size() > filter.in_order) {
    return EvalError(absl::StrCat("gives the filter ", Quote(filter.name), " ", arguments.positional.size(),
                                  " arguments without a name, of which ", filter.in_order, " are supported"));
  }
  for (const auto& [name, value] : arguments.named) {
    if (std::find(filter.parameters.begin(), filter.parameters.end(), name) != filter.parameters.end())
      continue;
    return EvalError(absl::StrCat("gives the filter ", Quote(filter.name), " the argument ", Quote(name),
                                  ", which is not supported"));
  }
  return absl::OkStatus();
}

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

absl::StatusOr<int64_t> Arguments::Whole(size_t index, std::string_view name, int64_t fallback) const {
  const Value* value = Get(index, name);
  if (value == nullptr || value->IsNone()) return fallback;
  if (const auto whole = value->Whole()) return *whole;
  return EvalError(absl::StrCat("gives ", Quote(value->Text(true), 40), " as ", Quote(name),
                                ", which takes a whole number"));
}

absl::StatusOr<List> Items(const Value& value) {
  if (const List* list = value.AsList()) return *list;
  List items;
  if (const Dict* dict = value.AsDict()) {
    for (const auto& [key, item] : *dict) items.push_back(key);
    return items;
  }
  if (const std::string* text = value.AsText()) {
    if (text->size() > kMaxCharacters)
      return EvalError(absl::StrCat("takes a text of more than ", kMaxCharacters, " bytes apart"));
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
  return container.Find(item) != nullptr;
}

absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& value,
                                  const Arguments& arguments) {
  if (name == "d") name = "default";
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return Select(name, value, arguments);
  }
  if (name == "map") return Map(value, arguments);
  for (const Filter& filter : kFilters) {
    if (filter.name != name) continue;
    RETURN_IF_ERROR(CheckArguments(filter, arguments));
    return filter.apply(value, arguments);
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
      const Value* found = key != nullptr ? object.Find(*key) : nullptr;
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
      // Of the lowest number -1 has no quotient.
      return *other->As<int64_t>() == -1 || *value.As<int64_t>() % *other->As<int64_t>() == 0;
    }
  }
  return EvalError(absl::StrCat("uses the test ", Quote(name), ", which is not supported"));
}

}  // namespace nibble::engine::jinja
