#include "engine/text/jinja_text.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
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

// What ends a line in Python's str.splitlines.
bool EndsLine(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

// Without what ends them. Behind the last end there is no line.
std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = DecodeAt(text, pos);
    const size_t end = pos;
    pos += c.bytes;
    if (!EndsLine(c.value)) continue;
    if (c.value == '\r' && text.substr(pos).starts_with('\n')) ++pos;
    lines.push_back(text.substr(begin, end - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

Value SplitWords(std::string_view rest, int64_t limit) {
  List parts;
  for (;;) {
    rest.remove_prefix(rest.size() - Strip(rest, nullptr, true, false).size());
    if (rest.empty()) return Value::Of(std::move(parts));
    size_t end = 0;
    while (end < rest.size() && !IsStripped(rest, end, nullptr)) end += CharBytes(rest[end]);
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) end = rest.size();
    parts.push_back(Value(std::string(rest.substr(0, end))));
    rest.remove_prefix(end);
  }
}

// At most `limit` times; wherever it can be when that is negative.
Result Split(const std::string& text, const Arguments& arguments) {
  const Value* given = arguments.Get(0, "sep");
  ASSIGN_OR_RETURN(const int64_t limit, arguments.Whole(1, "maxsplit", -1));
  if (given == nullptr || given->IsNone()) return SplitWords(text, limit);
  const std::string* separator = given->AsText();
  if (separator == nullptr || separator->empty())
    return EvalError("splits by an empty text, or by something that is no text");
  List parts;
  std::string_view rest(text);
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t at = rest.find(*separator);
    if (at == std::string_view::npos) break;
    parts.push_back(Value(std::string(rest.substr(0, at))));
    rest.remove_prefix(at + separator->size());
  }
  parts.push_back(Value(std::string(rest)));
  return Value::Of(std::move(parts));
}

// At most `count` of them; all when that is negative.
Result Replace(std::string_view text, std::string_view from, const Arguments& arguments) {
  const Value* with = arguments.Get(1, "new");
  if (with == nullptr || with->AsText() == nullptr) return EvalError("replace needs two texts");
  const std::string& to = *with->AsText();
  ASSIGN_OR_RETURN(const int64_t count, arguments.Whole(2, "count", -1));
  if (from.empty()) return EvalError("replaces an empty text, which is not supported");
  std::string out;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    if (out.size() + text.size() > kMaxTextBytes) return EvalError("a text grows too long");
  }
  return Value(std::move(out.append(text)));
}

int64_t Count(std::string_view text, std::string_view what) {
  if (what.empty()) return CountCharacters(text) + 1;
  int64_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) ++count;
  return count;
}

// Those that take no argument, or characters.
std::optional<std::string> Changed(std::string_view text, std::string_view name, const std::string* chars) {
  if (name == "strip") return Strip(text, chars, true, true);
  if (name == "lstrip") return Strip(text, chars, true, false);
  if (name == "rstrip") return Strip(text, chars, false, true);
  if (name == "lower") return Lower(text);
  if (name == "upper") return Upper(text);
  if (name == "capitalize") return Capitalize(text);
  if (name == "title") return Title(text);
  return std::nullopt;
}

}  // namespace

std::string Strip(std::string_view text, const std::string* characters, bool left, bool right) {
  while (left && !text.empty() && IsStripped(text, 0, characters)) text.remove_prefix(CharBytes(text[0]));
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

std::string Upper(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos += CharBytes(text[pos])) {
    AppendUpper(out, DecodeAt(text, pos).value);
  }
  return out;
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const size_t first = CharBytes(text[0]);
  return Upper(text.substr(0, first)) + Lower(text.substr(first));
}

std::string Title(std::string_view text) {
  std::string out;
  bool start = true;
  for (size_t pos = 0; pos < text.size(); pos += CharBytes(text[pos])) {
    const CodePoint c = DecodeAt(text, pos);
    start ? AppendUpper(out, c.value) : AppendLower(out, c.value);
    start = !IsLetter(c.value);
  }
  return out;
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

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

Result Indented(std::string_view text, std::string_view pad, bool first, bool blank) {
  std::vector<std::string_view> lines = Lines(text);
  // A text that ends with a line has an empty one behind it here.
  if (text.empty() || lines.back().end() != text.end()) lines.push_back(text.substr(text.size()));
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if (i == 0 ? first : blank || !lines[i].empty()) out += pad;
    out += lines[i];
    if (out.size() > kMaxTextBytes) return EvalError("a text grows too long");
  }
  return Value(std::move(out));
}

Result TextMethod(const std::string& text, std::string_view name, const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  const std::string* argument = first ? first->AsText() : nullptr;
  if (auto changed = Changed(text, name, argument)) return Value(*std::move(changed));
  if (name == "split") return Split(text, arguments);
  if (name == "splitlines") {
    List lines;
    for (const std::string_view line : Lines(text)) lines.push_back(Value(std::string(line)));
    return Value::Of(std::move(lines));
  }
  if (name == "join") return first != nullptr ? Joined(*first, text) : EvalError("join needs a list");
  if (argument == nullptr) return EvalError(absl::StrCat("the method ", Quote(name), " needs a text"));
  if (name == "startswith") return Value(text.starts_with(*argument));
  if (name == "endswith") return Value(text.ends_with(*argument));
  if (name == "find") {
    const size_t at = text.find(*argument);
    return Value(at == std::string::npos ? int64_t{-1}
                                         : CountCharacters(std::string_view(text).substr(0, at)));
  }
  if (name == "count") return Value(Count(text, *argument));
  if (name == "replace") return Replace(text, *argument, arguments);
  return EvalError(absl::StrCat("texts have no method ", Quote(name)));
}

}  // namespace nibble::engine::jinja
