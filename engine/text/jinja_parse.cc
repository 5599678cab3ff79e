#include "engine/text/jinja_parse.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/text/jinja_lex.h"
#include "engine/text/text.h"

namespace nibble::engine::jinja {
namespace {

using NodePtr = std::unique_ptr<Node>;
using MaybeNode = absl::StatusOr<NodePtr>;
using Type = Token::Type;

constexpr int kMaxDepth = 100;
constexpr int kMaxChain = 1000;  // filters, attributes and so on behind one value

NodePtr Make(Kind kind, std::string text = "") {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->text = std::move(text);
  return node;
}

template <typename... Parts>
NodePtr MakeWith(Kind kind, std::string text, Parts... parts) {
  NodePtr node = Make(kind, std::move(text));
  (node->parts.push_back(std::move(parts)), ...);
  return node;
}

NodePtr Literal(Value value) {
  NodePtr node = Make(Kind::kLiteral);
  node->value = std::move(value);
  return node;
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  MaybeNode Template() {
    ASSIGN_OR_RETURN(NodePtr block, Block({}));
    if (Now().type != Type::kEnd)
      return Error(absl::StrCat("unexpected ", Quote(tokens_[at_ + 1].text)));
    return block;
  }

 private:
  const Token& Now() const { return tokens_[at_]; }
  const Token& Next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  bool Is(Type type, std::string_view text) const {
    return Now().type == type && Now().text == text;
  }
  bool IsOperator(std::string_view text) const { return Is(Type::kOperator, text); }
  bool Take(Type type, std::string_view text) {
    if (!Is(type, text)) return false;
    ++at_;
    return true;
  }
  bool TakeOperator(std::string_view text) { return Take(Type::kOperator, text); }
  bool TakeWord(std::string_view text) { return Take(Type::kName, text); }
  absl::Status Error(std::string_view what) const { return TemplateError(Now().line, what); }
  absl::Status Expect(std::string_view text) {
    if (TakeOperator(text)) return absl::OkStatus();
    return Error(absl::StrCat("expected ", Quote(text), ", found ", Quote(Now().text)));
  }
  absl::StatusOr<std::string> Name() {
    if (Now().type != Type::kName)
      return Error(absl::StrCat("expected a name, found ", Quote(Now().text)));
    return tokens_[at_++].text;
  }
  absl::Status EndTag() {
    if (Now().type != Type::kTagEnd)
      return Error(absl::StrCat("unexpected ", Quote(Now().text), " in a tag"));
    ++at_;
    return absl::OkStatus();
  }

  // Counts nesting for the time of one call.
  struct Depth {
    explicit Depth(int& depth) : depth(++depth) {}
    ~Depth() { --depth; }
    int& depth;
  };

  // Statements up to a tag whose first word is one of `ends`; that tag is not consumed.
  MaybeNode Block(const std::vector<std::string_view>& ends) {
    const Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deeply");
    NodePtr block = Make(Kind::kBlock);
    for (;;) {
      const Token& token = Now();
      if (token.type == Type::kEnd) {
        if (ends.empty()) return block;
        return Error(absl::StrCat("the tag ", Quote(ends.back()), " is missing"));
      }
      if (token.type == Type::kText) {
        block->parts.push_back(Make(Kind::kText, token.text));
        ++at_;
      } else if (token.type == Type::kOutputBegin) {
        ++at_;
        ASSIGN_OR_RETURN(NodePtr value, Expression());
        if (Now().type != Type::kOutputEnd)
          return Error(absl::StrCat("unexpected ", Quote(Now().text)));
        ++at_;
        block->parts.push_back(MakeWith(Kind::kOutput, "", std::move(value)));
      } else {
        const std::string& word = Next().text;
        if (std::find(ends.begin(), ends.end(), word) != ends.end()) return block;
        ++at_;
        ASSIGN_OR_RETURN(NodePtr statement, Statement());
        if (statement != nullptr) block->parts.push_back(std::move(statement));
      }
    }
  }

  // Behind "{%"; consumes its end tag too.
  MaybeNode Statement() {
    ASSIGN_OR_RETURN(const std::string word, Name());
    if (word == "if") return If();
    if (word == "for") return For();
    if (word == "set") return Set();
    if (word == "macro") return Macro();
    if (word == "filter") return FilterBlock();
    if (word == "break" || word == "continue") {
      RETURN_IF_ERROR(EndTag());
      return Make(word == "break" ? Kind::kBreak : Kind::kContinue);
    }
    if (word == "generation") {  // marks what the assistant says; it renders as its content
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(NodePtr block, Block({"endgeneration"}));
      RETURN_IF_ERROR(CloseWith("endgeneration"));
      return block;
    }
    return Error(absl::StrCat("the tag ", Quote(word), " is not supported"));
  }

  absl::Status CloseWith(std::string_view word) {
    ++at_;  // "{%"
    if (!TakeWord(word)) return Error(absl::StrCat("expected ", Quote(word)));
    return EndTag();
  }

  // Behind "filter": the text of a block, filtered.
  MaybeNode FilterBlock() {
    NodePtr value = Make(Kind::kCapture);
    Node& capture = *value;
    for (int filters = 0; filters == 0 || TakeOperator("|"); ++filters) {
      if (filters == kMaxChain) return Error("an expression is too long");
      ASSIGN_OR_RETURN(value, Filtered(std::move(value)));
    }
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(NodePtr block, Block({"endfilter"}));
    RETURN_IF_ERROR(CloseWith("endfilter"));
    capture.parts.push_back(std::move(block));
    return MakeWith(Kind::kOutput, "", std::move(value));
  }

  // Behind "if" or "elif".
  MaybeNode If() {
    const Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deeply");
    ASSIGN_OR_RETURN(NodePtr condition, Expression());
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(NodePtr then, Block({"elif", "else", "endif"}));
    NodePtr otherwise;
    ++at_;  // "{%"
    if (TakeWord("elif")) {
      ASSIGN_OR_RETURN(otherwise, If());
      return MakeWith(Kind::kIf, "", std::move(condition), std::move(then), std::move(otherwise));
    }
    if (TakeWord("else")) {
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(otherwise, Block({"endif"}));
      ++at_;
    }
    if (!TakeWord("endif")) return Error("expected 'endif'");
    RETURN_IF_ERROR(EndTag());
    return MakeWith(Kind::kIf, "", std::move(condition), std::move(then), std::move(otherwise));
  }

  MaybeNode For() {
    NodePtr node = Make(Kind::kFor);
    ASSIGN_OR_RETURN(node->names, Targets());
    if (!TakeWord("in")) return Error("expected 'in'");
    ASSIGN_OR_RETURN(NodePtr iterable, Or());  // no conditional: the "if" is the loop's
    NodePtr condition, otherwise;
    if (TakeWord("if")) {
      ASSIGN_OR_RETURN(condition, Expression());
    }
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(NodePtr body, Block({"else", "endfor"}));
    if (Next().text == "else") {
      RETURN_IF_ERROR(CloseWith("else"));
      ASSIGN_OR_RETURN(otherwise, Block({"endfor"}));
    }
    RETURN_IF_ERROR(CloseWith("endfor"));
    for (NodePtr* part : {&iterable, &condition, &body, &otherwise})
      node->parts.push_back(std::move(*part));
    return node;
  }

  absl::StatusOr<std::vector<std::string>> Targets() {
    std::vector<std::string> names;
    do {
      ASSIGN_OR_RETURN(std::string name, Name());
      names.push_back(std::move(name));
    } while (TakeOperator(","));
    return names;
  }

  MaybeNode Set() {
    NodePtr node = Make(Kind::kSet);
    ASSIGN_OR_RETURN(node->names, Targets());
    if (TakeOperator(".")) {
      node->kind = Kind::kSetAttribute;
      ASSIGN_OR_RETURN(node->text, Name());
      node->parts.push_back(Make(Kind::kName, node->names[0]));
    } else if (Now().type == Type::kTagEnd && node->names.size() == 1) {
      ++at_;
      node->kind = Kind::kSetBlock;
      node->text = node->names[0];
      ASSIGN_OR_RETURN(NodePtr body, Block({"endset"}));
      node->parts.push_back(std::move(body));
      RETURN_IF_ERROR(CloseWith("endset"));
      return node;
    }
    RETURN_IF_ERROR(Expect("="));
    ASSIGN_OR_RETURN(NodePtr value, ExpressionOrTuple());
    node->parts.push_back(std::move(value));
    RETURN_IF_ERROR(EndTag());
    return node;
  }

  MaybeNode Macro() {
    NodePtr node = Make(Kind::kMacro);
    ASSIGN_OR_RETURN(node->text, Name());
    RETURN_IF_ERROR(Expect("("));
    std::vector<NodePtr> defaults;
    while (!IsOperator(")")) {
      ASSIGN_OR_RETURN(std::string name, Name());
      node->names.push_back(std::move(name));
      if (TakeOperator("=")) {
        ASSIGN_OR_RETURN(NodePtr value, Expression());
        defaults.push_back(std::move(value));
      } else if (!defaults.empty()) {
        return Error("a parameter without default follows one with");
      }
      if (!TakeOperator(",")) break;
    }
    RETURN_IF_ERROR(Expect(")"));
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(NodePtr body, Block({"endmacro"}));
    RETURN_IF_ERROR(CloseWith("endmacro"));
    node->parts.push_back(std::move(body));
    for (NodePtr& value : defaults) node->parts.push_back(std::move(value));
    return node;
  }

  MaybeNode ExpressionOrTuple() {
    ASSIGN_OR_RETURN(NodePtr first, Expression());
    if (!IsOperator(",")) return first;
    NodePtr list = MakeWith(Kind::kList, "", std::move(first));
    while (TakeOperator(",") && Now().type != Type::kTagEnd && !IsOperator(")")) {
      ASSIGN_OR_RETURN(NodePtr item, Expression());
      list->parts.push_back(std::move(item));
    }
    return list;
  }

  MaybeNode Expression() {
    const Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deeply");
    ASSIGN_OR_RETURN(NodePtr value, Or());
    while (TakeWord("if")) {
      ASSIGN_OR_RETURN(NodePtr condition, Or());
      NodePtr otherwise;
      if (TakeWord("else")) {
        ASSIGN_OR_RETURN(otherwise, Expression());
      }
      value = MakeWith(Kind::kConditional, "", std::move(value), std::move(condition),
                       std::move(otherwise));
    }
    return value;
  }

  MaybeNode Or() {
    ASSIGN_OR_RETURN(NodePtr left, And());
    while (TakeWord("or")) {
      ASSIGN_OR_RETURN(NodePtr right, And());
      left = MakeWith(Kind::kBinary, "or", std::move(left), std::move(right));
    }
    return left;
  }
  MaybeNode And() {
    ASSIGN_OR_RETURN(NodePtr left, Not());
    while (TakeWord("and")) {
      ASSIGN_OR_RETURN(NodePtr right, Not());
      left = MakeWith(Kind::kBinary, "and", std::move(left), std::move(right));
    }
    return left;
  }
  MaybeNode Not() {
    const Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deeply");
    if (!TakeWord("not")) return Comparison();
    ASSIGN_OR_RETURN(NodePtr operand, Not());
    return MakeWith(Kind::kNot, "", std::move(operand));
  }

  MaybeNode Comparison() {
    ASSIGN_OR_RETURN(NodePtr left, Sum());
    for (;;) {
      std::string op;
      for (const std::string_view known : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (op.empty() && TakeOperator(known)) op = std::string(known);
      }
      if (op.empty() && TakeWord("in")) op = "in";
      if (op.empty() && Is(Type::kName, "not") && Next().text == "in") {
        at_ += 2;
        op = "not in";
      }
      if (op.empty()) return left;
      ASSIGN_OR_RETURN(NodePtr right, Sum());
      left = MakeWith(Kind::kBinary, op, std::move(left), std::move(right));
    }
  }

  // Operators of one precedence, from left to right.
  template <typename Operand>
  MaybeNode LeftToRight(std::initializer_list<std::string_view> operators, const Operand& operand) {
    ASSIGN_OR_RETURN(NodePtr left, operand());
    for (;;) {
      std::string op;
      for (const std::string_view known : operators) {
        if (op.empty() && TakeOperator(known)) op = std::string(known);
      }
      if (op.empty()) return left;
      ASSIGN_OR_RETURN(NodePtr right, operand());
      left = MakeWith(Kind::kBinary, op, std::move(left), std::move(right));
    }
  }
  MaybeNode Sum() {
    return LeftToRight({"+", "-"}, [this] { return Concatenation(); });
  }
  MaybeNode Concatenation() {
    return LeftToRight({"~"}, [this] { return Product(); });
  }
  MaybeNode Product() {
    return LeftToRight({"*", "//", "/", "%"}, [this] { return Unary(); });
  }
  MaybeNode Unary() {
    const Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deeply");
    if (TakeOperator("-")) {
      ASSIGN_OR_RETURN(NodePtr operand, Unary());
      return MakeWith(Kind::kNegate, "", std::move(operand));
    }
    if (TakeOperator("+")) return Unary();
    ASSIGN_OR_RETURN(NodePtr value, Primary());
    return Postfix(std::move(value));
  }

  MaybeNode Primary() {
    const Token& token = Now();
    ++at_;
    switch (token.type) {
      case Type::kString: {
        std::string text = token.text;
        while (Now().type == Type::kString) text += tokens_[at_++].text;  // neighbours are joined
        return Literal(Value(std::move(text)));
      }
      case Type::kInteger: {
        int64_t number = 0;
        if (!absl::SimpleAtoi(token.text, &number)) return Error("a number is too large");
        return Literal(Value(number));
      }
      case Type::kFloat:
        return Literal(Value(std::strtod(token.text.c_str(), nullptr)));
      case Type::kName: {
        if (token.text == "true" || token.text == "True") return Literal(Value(true));
        if (token.text == "false" || token.text == "False") return Literal(Value(false));
        if (token.text == "none" || token.text == "None") return Literal(Value(None{}));
        return Make(Kind::kName, token.text);
      }
      case Type::kOperator:
        if (token.text == "(") {
          if (TakeOperator(")")) return Make(Kind::kList);
          ASSIGN_OR_RETURN(NodePtr value, ExpressionOrTuple());
          RETURN_IF_ERROR(Expect(")"));
          return value;
        }
        if (token.text == "[") return ListLiteral();
        if (token.text == "{") return DictLiteral();
        break;
      default:
        break;
    }
    --at_;
    return Error(absl::StrCat("unexpected ", Quote(Now().text), " in an expression"));
  }

  MaybeNode ListLiteral() {
    NodePtr list = Make(Kind::kList);
    while (!IsOperator("]")) {
      ASSIGN_OR_RETURN(NodePtr item, Expression());
      list->parts.push_back(std::move(item));
      if (!TakeOperator(",")) break;
    }
    RETURN_IF_ERROR(Expect("]"));
    return list;
  }

  MaybeNode DictLiteral() {
    NodePtr dict = Make(Kind::kDict);
    while (!IsOperator("}")) {
      ASSIGN_OR_RETURN(NodePtr key, Expression());
      RETURN_IF_ERROR(Expect(":"));
      ASSIGN_OR_RETURN(NodePtr value, Expression());
      dict->parts.push_back(std::move(key));
      dict->parts.push_back(std::move(value));
      if (!TakeOperator(",")) break;
    }
    RETURN_IF_ERROR(Expect("}"));
    return dict;
  }

  // Attributes, items, calls, filters and tests behind a value.
  MaybeNode Postfix(NodePtr value) {
    for (int length = 0; length < kMaxChain; ++length) {
      if (TakeOperator(".")) {
        ASSIGN_OR_RETURN(std::string name, Name());
        value = MakeWith(Kind::kAttribute, std::move(name), std::move(value));
      } else if (TakeOperator("[")) {
        ASSIGN_OR_RETURN(value, Subscript(std::move(value)));
      } else if (TakeOperator("(")) {
        NodePtr call = MakeWith(Kind::kCall, "", std::move(value));
        RETURN_IF_ERROR(Arguments(*call));
        value = std::move(call);
      } else if (TakeOperator("|")) {
        ASSIGN_OR_RETURN(value, Filtered(std::move(value)));
      } else if (TakeWord("is")) {
        ASSIGN_OR_RETURN(value, Test(std::move(value)));
      } else {
        return value;
      }
    }
    return Error("an expression is too long");
  }

  // Behind "|".
  MaybeNode Filtered(NodePtr value) {
    ASSIGN_OR_RETURN(std::string name, Name());
    NodePtr filter = MakeWith(Kind::kFilter, std::move(name), std::move(value));
    if (TakeOperator("(")) RETURN_IF_ERROR(Arguments(*filter));
    return filter;
  }

  MaybeNode Test(NodePtr value) {
    const bool negated = TakeWord("not");
    ASSIGN_OR_RETURN(std::string name, Name());
    NodePtr test = MakeWith(Kind::kTest, std::move(name), std::move(value));
    if (TakeOperator("(")) {
      RETURN_IF_ERROR(Arguments(*test));
    } else if (Now().type == Type::kString || Now().type == Type::kInteger) {
      ASSIGN_OR_RETURN(NodePtr argument, Primary());  // "is equalto 'x'"
      test->parts.push_back(std::move(argument));
    }
    if (!negated) return test;
    return MakeWith(Kind::kNot, "", std::move(test));
  }

  // Behind "["; consumes "]".
  MaybeNode Subscript(NodePtr object) {
    std::array<NodePtr, 3> parts;
    size_t colons = 0;
    for (;;) {
      if (!IsOperator(":") && !IsOperator("]")) {
        ASSIGN_OR_RETURN(parts[colons], Expression());
      }
      if (colons == 2 || !TakeOperator(":")) break;
      ++colons;
    }
    RETURN_IF_ERROR(Expect("]"));
    if (colons == 0) {
      if (parts[0] == nullptr) return Error("an index is missing");
      return MakeWith(Kind::kItem, "", std::move(object), std::move(parts[0]));
    }
    return MakeWith(Kind::kSlice, "", std::move(object), std::move(parts[0]), std::move(parts[1]),
                    std::move(parts[2]));
  }

  // Behind "("; consumes ")". Positional arguments come first.
  absl::Status Arguments(Node& call) {
    while (!IsOperator(")")) {
      if (Now().type == Type::kName && Next().type == Type::kOperator && Next().text == "=") {
        call.names.push_back(Now().text);
        at_ += 2;
      } else if (!call.names.empty()) {
        return Error("an argument without name follows one with");
      }
      ASSIGN_OR_RETURN(NodePtr value, Expression());
      call.parts.push_back(std::move(value));
      if (!TakeOperator(",")) break;
    }
    return Expect(")");
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Node>> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Template();
}

}  // namespace nibble::engine::jinja
