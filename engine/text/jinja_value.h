// Values of the chat template language: what expressions are made of.
//
// Lists and dictionaries are shared and never change once made, so they cannot hold themselves; a
// namespace, which exists to be assigned to, is printed and compared by name only. Every value
// knows its weight: what it takes to print it, shared parts counted as often as they stand in it;
// and how deep it is: lists and dictionaries inside one another, which take stack.
// Used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::engine::jinja {

struct Node;
class Value;

struct Undefined {
  std::string name;  // for the message when it is used after all
};
struct None {};
// A macro of the template, or a function of ours by name.
struct Function {
  std::string name;
  const Node* macro = nullptr;
};
using List = std::vector<Value>;
// In order of insertion. Keys are texts, numbers, true and false, or none; no two are equal.
using Dict = std::vector<std::pair<Value, Value>>;
// What has names: the variables a template is given, arguments, a namespace.
using Named = std::vector<std::pair<std::string, Value>>;
struct Namespace;

class Value {
 public:
  using Variant =
      std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>,
                   std::shared_ptr<Dict>, std::shared_ptr<Namespace>, Function>;
  Value() = default;
  Value(Variant v);  // NOLINT: values convert from what they hold
  static Value Of(List list);
  static Value Of(Dict dict);

  template <typename T>
  const T* As() const {
    return std::get_if<T>(&v_);
  }
  const std::string* AsText() const { return As<std::string>(); }
  const List* AsList() const;
  const Dict* AsDict() const;
  Namespace* AsNamespace() const;
  bool IsUndefined() const { return As<Undefined>() != nullptr; }
  bool IsNone() const { return As<None>() != nullptr; }
  bool IsNumber() const { return As<int64_t>() || As<double>() || As<bool>(); }
  // Of a number; bools count as 0 and 1.
  double Number() const;
  // Of a whole number; bools count as 0 and 1.
  std::optional<int64_t> Whole() const;

  bool Truth() const;
  // As Python prints it: "True", "None", 'text' bare at the top and quoted inside lists.
  std::string Text(bool quoted = false) const;
  std::string Json(int64_t indent) const;  // indent < 0: on one line
  bool Equals(const Value& other) const;
  // Of a dictionary or namespace; null when there is no such key.
  const Value* Find(const std::string& key) const;
  // Of a dictionary.
  const Value* Find(const Value& key) const;
  int64_t weight() const { return weight_; }
  int depth() const { return depth_; }

 private:
  void AppendText(std::string& out, bool quoted) const;
  void AppendJson(std::string& out, int64_t indent, int64_t level) const;

  Variant v_;
  int64_t weight_ = 1;
  int depth_ = 0;
};

struct Namespace {
  Named values;
};

}  // namespace nibble::engine::jinja
