#include <ctime>

#include "absl/strings/str_cat.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/text.h"

namespace nibble::engine::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result Raise(const Arguments& arguments) {
  const Value* message = arguments.Get(0, "message");
  return EvalError(absl::StrCat("refuses this conversation: ", message ? Quote(message->Text(), 200) : ""));
}

Result Range(const Arguments& arguments) {
  int64_t bounds[3] = {0, 0, 1};  // first, behind the last, step
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3) return EvalError("calls range with a wrong number of arguments");
  for (size_t i = 0; i < count; ++i) {
    const auto* number = arguments.positional[i].As<int64_t>();
    if (number == nullptr) return EvalError("calls range with something that is no whole number");
    bounds[count == 1 ? 1 : i] = *number;
  }
  List items;
  if (bounds[2] == 0) return EvalError("calls range with a step of 0");
  for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange)
      return EvalError("calls range with too many numbers");
    items.push_back(Value(i));
    if (__builtin_add_overflow(i, bounds[2], &i)) break;  // further than any bound
  }
  return Value::Of(std::move(items));
}

// Python's strftime in the C locale: what of it needs no more than a day.
Result Day(const Arguments& arguments) {
  const Value* format = arguments.Get(0, "format");
  if (format == nullptr || format->AsText() == nullptr)
    return EvalError("calls strftime_now without a format");
  std::tm day = {};
  day.tm_year = 2024 - 1900;
  day.tm_mon = 6;
  day.tm_mday = 26;
  day.tm_wday = 5;
  day.tm_yday = 207;
  std::string out;
  const std::string& text = *format->AsText();
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const bool unpadded = i + 1 < text.size() && text[i + 1] == '-';
    const size_t at = i + (unpadded ? 2 : 1);
    if (at >= text.size() ||
        std::string_view("aAbBdHIjmMpSuUwWyYZ%").find(text[at]) == std::string_view::npos) {
      return EvalError(absl::StrCat("calls strftime_now with ", Quote(text, 40), ", which is not supported"));
    }
    if (text[at] != 'Z') {  // of a day without a zone Python writes none
      char part[64];
      const std::string one = text.substr(i, at + 1 - i);
      out.append(part, std::strftime(part, sizeof(part), one.c_str(), &day));
    }
    i = at;
  }
  return Value(std::move(out));
}

}  // namespace

absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments) {
  if (name == "raise_exception") return Raise(arguments);
  if (name == "range") return Range(arguments);
  if (name == "dict") return Value::Of(Dict(arguments.named.begin(), arguments.named.end()));
  return Day(arguments);
}

}  // namespace nibble::engine::jinja
