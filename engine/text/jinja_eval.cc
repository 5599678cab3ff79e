#include "engine/text/jinja_eval.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine::jinja {
namespace {

using Result = absl::StatusOr<Value>;

constexpr char kNamespace[] = "namespace";
constexpr double kMaxExact = 9007199254740992.0;  // 2^53: up to there doubles are whole numbers

class Evaluator {
 public:
  explicit Evaluator(const Named& globals) {
    auto& scope = scopes_.emplace_back();
    for (const auto& [name, value] : globals) scope[name] = value;
    scope[kNamespace] = Value(Function{kNamespace});
    for (const char* name : kFunctions) scope[name] = Value(Function{name});
  }

  // A namespace may hold itself; emptied, nothing is left behind.
  ~Evaluator() {
    for (const auto& space : namespaces_) space->values.clear();
  }

  absl::StatusOr<std::string> Run(const Node& root) {
    std::string out;
    ASSIGN_OR_RETURN(const Flow flow, Execute(root, out));
    if (flow != Flow::kNext) return EvalError("has break or continue outside of a loop");
    return out;
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using MaybeFlow = absl::StatusOr<Flow>;
  using Scope = absl::flat_hash_map<std::string, Value>;

  absl::Status Step() {
    if (++steps_ > kMaxSteps) return EvalError("takes too many steps");
    if (nesting_ > kMaxNesting) return EvalError("is nested too deeply");
    return absl::OkStatus();
  }

  absl::Status Append(std::string& out, const std::string& text) {
    if (out.size() + text.size() > kMaxTextBytes) return EvalError("makes too much text");
    out += text;
    return absl::OkStatus();
  }

  // Counts nesting for the time of one call, which takes stack.
  struct Nested {
    explicit Nested(int& nesting) : nesting(++nesting) {}
    ~Nested() { --nesting; }
    int& nesting;
  };

  MaybeFlow Execute(const Node& node, std::string& out) {
    const Nested nested(nesting_);
    RETURN_IF_ERROR(Step());
    switch (node.kind) {
      case Kind::kBlock:
        for (const auto& part : node.parts) {
          ASSIGN_OR_RETURN(const Flow flow, Execute(*part, out));
          if (flow != Flow::kNext) return flow;
        }
        return Flow::kNext;
      case Kind::kText:
        RETURN_IF_ERROR(Append(out, node.text));
        return Flow::kNext;
      case Kind::kOutput: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[0]));
        RETURN_IF_ERROR(Append(out, value.Text()));
        return Flow::kNext;
      }
      case Kind::kIf: {
        ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.parts[0]));
        if (condition.Truth()) return Execute(*node.parts[1], out);
        if (node.parts[2] != nullptr) return Execute(*node.parts[2], out);
        return Flow::kNext;
      }
      case Kind::kFor:
        return Loop(node, out);
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
      default:
        return Assign(node);
    }
  }

  MaybeFlow Assign(const Node& node) {
    switch (node.kind) {
      case Kind::kSet: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*node.parts[0]));
        RETURN_IF_ERROR(Bind(node.names, std::move(value)));
        return Flow::kNext;
      }
      case Kind::kSetAttribute: {
        ASSIGN_OR_RETURN(const Value object, Evaluate(*node.parts[0]));
        ASSIGN_OR_RETURN(Value value, Evaluate(*node.parts[1]));
        Namespace* space = object.AsNamespace();
        if (space == nullptr)
          return EvalError("sets an attribute of something that is no namespace");
        for (auto& [key, item] : space->values) {
          if (key != node.text) continue;
          item = std::move(value);
          return Flow::kNext;
        }
        space->values.emplace_back(node.text, std::move(value));
        return Flow::kNext;
      }
      case Kind::kSetBlock: {
        std::string text;
        ASSIGN_OR_RETURN(const Flow flow, Execute(*node.parts[0], text));
        scopes_.back()[node.text] = Value(std::move(text));
        return flow;
      }
      case Kind::kMacro:
        scopes_.back()[node.text] = Value(Function{node.text, &node});
        return Flow::kNext;
      default:
        return EvalError("has an expression where a statement belongs");
    }
  }

  absl::Status Bind(const std::vector<std::string>& names, Value value) {
    if (names.size() == 1) {
      scopes_.back()[names[0]] = std::move(value);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const List items, Items(value));
    if (items.size() != names.size()) return EvalError("unpacks a list of the wrong length");
    for (size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = items[i];
    return absl::OkStatus();
  }

  MaybeFlow Loop(const Node& node, std::string& out) {
    ASSIGN_OR_RETURN(const Value iterable, Evaluate(*node.parts[0]));
    ASSIGN_OR_RETURN(List items, Items(iterable));
    if (node.parts[1] != nullptr) {
      List kept;
      for (Value& item : items) {
        scopes_.emplace_back();
        const absl::Status bound = Bind(node.names, item);
        const Result condition = bound.ok() ? Evaluate(*node.parts[1]) : Result(bound);
        scopes_.pop_back();
        RETURN_IF_ERROR(condition.status());
        if (condition->Truth()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) return node.parts[3] ? Execute(*node.parts[3], out) : MaybeFlow(Flow::kNext);
    for (size_t i = 0; i < items.size(); ++i) {
      scopes_.emplace_back();
      scopes_.back()["loop"] = LoopVariable(items, i);
      const absl::Status bound = Bind(node.names, items[i]);
      const MaybeFlow flow = bound.ok() ? Execute(*node.parts[2], out) : MaybeFlow(bound);
      scopes_.pop_back();
      RETURN_IF_ERROR(flow.status());
      if (*flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  static Value LoopVariable(const List& items, size_t i) {
    const auto index = static_cast<int64_t>(i), count = static_cast<int64_t>(items.size());
    return Value::Of(Dict{{Value("index"), Value(index + 1)},
                          {Value("index0"), Value(index)},
                          {Value("revindex"), Value(count - index)},
                          {Value("revindex0"), Value(count - index - 1)},
                          {Value("first"), Value(i == 0)},
                          {Value("last"), Value(index + 1 == count)},
                          {Value("length"), Value(count)},
                          {Value("previtem"), i > 0 ? items[i - 1] : Value()},
                          {Value("nextitem"), index + 1 < count ? items[i + 1] : Value()}});
  }

  const Value* Lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto it = scope->find(name);
      if (it != scope->end()) return &it->second;
    }
    return nullptr;
  }

  Result Evaluate(const Node& node) {
    const Nested nested(nesting_);
    Result value = EvaluateNode(node);
    if (!value.ok()) return value;
    if (value->weight() > kMaxWeight) return EvalError("a value grows too large");
    if (value->depth() > kMaxValueDepth) return EvalError("a value grows too deep");
    steps_ += value->weight() / (value->AsText() != nullptr ? kTextWeightPerStep : kWeightPerStep);
    return value;
  }

  Result EvaluateNode(const Node& node) {
    RETURN_IF_ERROR(Step());
    switch (node.kind) {
      case Kind::kLiteral:
        return node.value;
      case Kind::kName: {
        const Value* found = Lookup(node.text);
        return found ? *found : Value(Undefined{node.text});
      }
      case Kind::kAttribute: {
        ASSIGN_OR_RETURN(const Value object, Evaluate(*node.parts[0]));
        return Member(object, node.text);
      }
      case Kind::kItem:
        return Item(node);
      case Kind::kSlice:
        return Slice(node);
      case Kind::kCall:
        return Call(node);
      case Kind::kFilter: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[0]));
        ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node));
        return ApplyFilter(node.text, value, arguments);
      }
      case Kind::kCapture: {
        std::string text;
        ASSIGN_OR_RETURN(const Flow flow, Execute(*node.parts[0], text));
        if (flow != Flow::kNext) return EvalError("has break or continue inside of a filter");
        return Value(std::move(text));
      }
      case Kind::kTest: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[0]));
        ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node));
        ASSIGN_OR_RETURN(const bool truth, ApplyTest(node.text, value, arguments));
        return Value(truth);
      }
      case Kind::kNot: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[0]));
        return Value(!value.Truth());
      }
      case Kind::kNegate:
        return Negate(node);
      case Kind::kBinary:
        return Binary(node);
      case Kind::kConditional: {
        ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.parts[1]));
        if (condition.Truth()) return Evaluate(*node.parts[0]);
        return node.parts[2] ? Evaluate(*node.parts[2]) : Result(Value());
      }
      case Kind::kList:
        return MakeList(node);
      case Kind::kDict:
        return MakeDict(node);
      default:
        return EvalError("has a statement where an expression belongs");
    }
  }

  Result MakeList(const Node& node) {
    List items;
    for (const auto& part : node.parts) {
      ASSIGN_OR_RETURN(Value item, Evaluate(*part));
      items.push_back(std::move(item));
    }
    return Value::Of(std::move(items));
  }

  // The same for equal keys: 1, 1.0 and true are, as in Python.
  static std::string KeyText(const Value& key) {
    if (const auto whole = key.Whole()) return std::to_string(*whole);
    if (const auto* number = key.As<double>(); number != nullptr && std::abs(*number) < kMaxExact) {
      if (*number == std::floor(*number)) return std::to_string(static_cast<int64_t>(*number));
    }
    return key.Text(/*quoted=*/true);
  }

  // Of equal keys the first gives its place and the last its value.
  Result MakeDict(const Node& node) {
    Dict dict;
    absl::flat_hash_map<std::string, size_t> places;
    for (size_t i = 0; i < node.parts.size(); i += 2) {
      ASSIGN_OR_RETURN(const Value key, Evaluate(*node.parts[i]));
      ASSIGN_OR_RETURN(Value value, Evaluate(*node.parts[i + 1]));
      if (key.AsText() == nullptr && !key.IsNumber() && !key.IsNone())
        return EvalError("has a dictionary with a key that is no text, number or none");
      const auto [place, is_new] = places.try_emplace(KeyText(key), dict.size());
      if (is_new) {
        dict.emplace_back(key, std::move(value));
      } else {
        dict[place->second].second = std::move(value);
      }
    }
    return Value::Of(std::move(dict));
  }

  Result Negate(const Node& node) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[0]));
    if (!value.IsNumber()) return Misfit("-", value);
    return value.As<double>() ? Value(-value.Number()) : Arithmetic("-", Value(int64_t{0}), value);
  }

  Result Member(const Value& object, const std::string& name) {
    if (object.IsUndefined()) {
      return EvalError(absl::StrCat("asks for ", Quote(name), " of ",
                                    Quote(object.As<Undefined>()->name), ", which is undefined"));
    }
    const Value* found = object.Find(name);
    return found ? *found : Value(Undefined{name});
  }

  // Where its characters begin, and where it ends.
  static std::vector<size_t> Characters(const std::string& text) {
    std::vector<size_t> begins;
    for (size_t pos = 0; pos < text.size(); pos += CharBytes(text[pos])) begins.push_back(pos);
    begins.push_back(text.size());
    return begins;
  }

  // Index of an item counted from the front, or from the back when negative; -1 when out of range.
  static int64_t Position(int64_t index, size_t size) {
    const auto count = static_cast<int64_t>(size);
    if (index < 0) index += count;
    return index >= 0 && index < count ? index : -1;
  }

  Result Item(const Node& node) {
    ASSIGN_OR_RETURN(const Value object, Evaluate(*node.parts[0]));
    ASSIGN_OR_RETURN(const Value index, Evaluate(*node.parts[1]));
    if (object.AsDict() != nullptr) {
      const Value* found = object.Find(index);
      return found ? *found : Value(Undefined{index.Text()});
    }
    const auto* number = index.As<int64_t>();
    if (object.IsUndefined() || number == nullptr) return Member(object, index.Text());
    if (const std::string* text = object.AsText()) {
      const std::vector<size_t> begins = Characters(*text);
      const int64_t at = Position(*number, begins.size() - 1);
      return at < 0 ? Value(Undefined{"item"}) : Value(text->substr(begins[at], begins[at + 1] - begins[at]));
    }
    ASSIGN_OR_RETURN(const List items, Items(object));
    const int64_t at = Position(*number, items.size());
    return at < 0 ? Value(Undefined{"item"}) : items[at];
  }

  Result Slice(const Node& node) {
    ASSIGN_OR_RETURN(const Value object, Evaluate(*node.parts[0]));
    const std::string* text = object.AsText();
    const std::vector<size_t> begins = text != nullptr ? Characters(*text) : std::vector<size_t>();
    List items;
    if (text == nullptr) {
      ASSIGN_OR_RETURN(items, Items(object));
    }
    const auto count = static_cast<int64_t>(text != nullptr ? begins.size() - 1 : items.size());
    int64_t numbers[3] = {};
    bool given[3] = {};
    for (int i = 0; i < 3; ++i) {
      if (node.parts[i + 1] == nullptr) continue;
      ASSIGN_OR_RETURN(const Value value, Evaluate(*node.parts[i + 1]));
      if (value.IsNone()) continue;
      const auto* number = value.As<int64_t>();
      if (number == nullptr) return EvalError("slices by something that is no whole number");
      numbers[i] = std::clamp<int64_t>(*number, -kMaxRange * 1000, kMaxRange * 1000);
      given[i] = true;
    }
    const int64_t step = given[2] ? numbers[2] : 1;
    if (step == 0) return EvalError("slices by a step of 0");
    const auto bound = [&](int i, int64_t fallback) {
      if (!given[i]) return fallback;
      const int64_t n = numbers[i] < 0 ? numbers[i] + count : numbers[i];
      return std::clamp<int64_t>(n, step > 0 ? 0 : -1, step > 0 ? count : count - 1);
    };
    const int64_t start = bound(0, step > 0 ? 0 : count - 1);
    const int64_t stop = bound(1, step > 0 ? count : -1);
    List picked;
    std::string part;
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
      if (text != nullptr) {
        part.append(*text, begins[i], begins[i + 1] - begins[i]);
      } else {
        picked.push_back(items[i]);
      }
    }
    return text != nullptr ? Value(std::move(part)) : Value::Of(std::move(picked));
  }

  absl::StatusOr<Arguments> EvaluateArguments(const Node& call) {
    Arguments arguments;
    const size_t count = call.parts.size() - 1;
    for (size_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(Value value, Evaluate(*call.parts[i + 1]));
      const size_t positional = count - call.names.size();
      if (i < positional) {
        arguments.positional.push_back(std::move(value));
      } else {
        arguments.named.emplace_back(call.names[i - positional], std::move(value));
      }
    }
    return arguments;
  }

  Result Call(const Node& node) {
    const Node& callee = *node.parts[0];
    if (callee.kind == Kind::kAttribute) {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*callee.parts[0]));
      if (object.IsUndefined()) return Member(object, callee.text);
      if (IsMethod(object, callee.text)) {
        ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node));
        return CallMethod(object, callee.text, arguments);
      }
    }
    ASSIGN_OR_RETURN(const Value function, Evaluate(callee));
    const auto* known = function.As<Function>();
    if (known == nullptr) {
      return EvalError(absl::StrCat("calls ", Quote(callee.text), ", which is not supported"));
    }
    ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node));
    if (known->macro != nullptr) return CallMacro(*known->macro, arguments);
    if (known->name == kNamespace) return MakeNamespace(std::move(arguments.named));
    return CallFunction(known->name, arguments);
  }

  Result CallMacro(const Node& macro, const Arguments& arguments) {
    if (++call_depth_ > kMaxCallDepth) return EvalError("calls macros too deeply");
    Scope scope;
    const size_t defaults = macro.parts.size() - 1;
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const std::string& name = macro.names[i];
      const size_t first_default = macro.names.size() - defaults;
      if (const Value* given = arguments.Get(i, name)) {
        scope[name] = *given;
      } else if (i >= first_default) {
        ASSIGN_OR_RETURN(scope[name], Evaluate(*macro.parts[1 + i - first_default]));
      } else {
        scope[name] = Value(Undefined{name});
      }
    }
    // A macro sees the globals and its own names, not those of its caller.
    std::vector<Scope> saved(std::make_move_iterator(scopes_.begin() + 1),
                             std::make_move_iterator(scopes_.end()));
    scopes_.resize(1);
    scopes_.push_back(std::move(scope));
    std::string out;
    const MaybeFlow flow = Execute(*macro.parts[0], out);
    scopes_.resize(1);
    std::move(saved.begin(), saved.end(), std::back_inserter(scopes_));
    --call_depth_;
    RETURN_IF_ERROR(flow.status());
    return Value(std::move(out));
  }

  Result MakeNamespace(Named values) {
    auto space = std::make_shared<Namespace>();
    space->values = std::move(values);
    namespaces_.push_back(space);
    return Value(std::move(space));
  }

  Result Binary(const Node& node) {
    const std::string& op = node.text;
    ASSIGN_OR_RETURN(const Value left, Evaluate(*node.parts[0]));
    if (op == "and") return left.Truth() ? Evaluate(*node.parts[1]) : Result(left);
    if (op == "or") return left.Truth() ? Result(left) : Evaluate(*node.parts[1]);
    ASSIGN_OR_RETURN(const Value right, Evaluate(*node.parts[1]));
    if (op == "==") return Value(left.Equals(right));
    if (op == "!=") return Value(!left.Equals(right));
    if (op == "in") return Value(Contains(right, left));
    if (op == "not in") return Value(!Contains(right, left));
    if (op == "~") return Joined(left.Text(), right.Text());
    if (op == "<" || op == ">" || op == "<=" || op == ">=") return Compare(op, left, right);
    if (op == "+" && left.AsText() && right.AsText())
      return Joined(*left.AsText(), *right.AsText());
    if (op == "+" && left.AsList() && right.AsList()) {
      List items = *left.AsList();
      items.insert(items.end(), right.AsList()->begin(), right.AsList()->end());
      if (items.size() > static_cast<size_t>(kMaxRange)) return EvalError("a list grows too long");
      return Value::Of(std::move(items));
    }
    if (left.IsNumber() && right.IsNumber()) return Arithmetic(op, left, right);
    return Misfit(op, left.IsUndefined() ? left : right);
  }

  static absl::Status Misfit(std::string_view op, const Value& value) {
    if (const auto* undefined = value.As<Undefined>())
      return EvalError(absl::StrCat("uses ", Quote(undefined->name), ", which is undefined"));
    return EvalError(absl::StrCat("applies ", View(op), " to values it does not fit"));
  }

  Result Joined(const std::string& left, const std::string& right) {
    if (left.size() + right.size() > kMaxTextBytes) return EvalError("a text grows too long");
    return Value(left + right);
  }

  Result Compare(const std::string& op, const Value& left, const Value& right) {
    int order = 0;
    if (left.AsText() && right.AsText()) {
      order = left.AsText()->compare(*right.AsText());
    } else if (left.Whole() && right.Whole()) {
      order = *left.Whole() < *right.Whole() ? -1 : *left.Whole() > *right.Whole() ? 1 : 0;
    } else if (left.IsNumber() && right.IsNumber()) {
      order = left.Number() < right.Number() ? -1 : left.Number() > right.Number() ? 1 : 0;
    } else {
      return EvalError("compares values of different kinds");
    }
    return Value(op == "<"    ? order < 0
                 : op == ">"  ? order > 0
                 : op == "<=" ? order <= 0
                              : order >= 0);
  }

  static Result WholeArithmetic(const std::string& op, int64_t a, int64_t b) {
    int64_t out = 0;
    bool overflow = false;
    if (op == "+") overflow = __builtin_add_overflow(a, b, &out);
    if (op == "-") overflow = __builtin_sub_overflow(a, b, &out);
    if (op == "*") overflow = __builtin_mul_overflow(a, b, &out);
    if (op == "//" || op == "%") {
      if (b == 0) return EvalError("divides by zero");
      if (b == -1) return op == "%" ? Result(Value(int64_t{0})) : WholeArithmetic("-", 0, a);
      const int64_t rest = a % b;
      const bool down = rest != 0 && (rest < 0) != (b < 0);  // Python rounds down
      out = op == "//" ? a / b - down : down ? rest + b : rest;
    }
    if (overflow) return EvalError("a number is too large");
    return Value(out);
  }

  static Result Arithmetic(const std::string& op, const Value& left, const Value& right) {
    if (left.Whole() && right.Whole() && op != "/") return WholeArithmetic(op, *left.Whole(), *right.Whole());
    const double a = left.Number(), b = right.Number();
    if (op == "+") return Value(a + b);
    if (op == "-") return Value(a - b);
    if (op == "*") return Value(a * b);
    if (b == 0) return EvalError("divides by zero");
    if (op == "/") return Value(a / b);
    if (op == "//") return Value(std::floor(a / b));
    return Value(a - std::floor(a / b) * b);
  }

  std::vector<Scope> scopes_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  int64_t steps_ = 0;
  int nesting_ = 0;
  int call_depth_ = 0;
};

}  // namespace

absl::StatusOr<std::string> Render(const Node& root, const Named& globals) {
  return Evaluator(globals).Run(root);
}

}  // namespace nibble::engine::jinja
