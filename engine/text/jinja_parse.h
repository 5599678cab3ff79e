// The chat template language, parsed: a subset of Jinja as chat templates use it.
//
// Statements: for (with if and else), if, set (also blocks and namespace attributes), macro, filter,
// break, continue, generation. Expressions: literals, names, attributes, items, slices, calls,
// filters, tests, arithmetic, comparison, logic, the conditional expression. Blocks are trimmed as
// transformers does (trim_blocks, lstrip_blocks). Anything else is refused with its place in the
// text.
//
// Pure; the tree is immutable.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/jinja_value.h"

namespace nibble::engine::jinja {

enum class Kind {
  // Statements.
  kBlock,
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetAttribute,
  kSetBlock,
  kMacro,
  kBreak,
  kContinue,
  // Expressions.
  kLiteral,
  kName,
  kAttribute,
  kItem,
  kSlice,
  kCall,
  kFilter,
  kTest,
  kCapture,
  kNot,
  kNegate,
  kBinary,
  kConditional,
  kList,
  kDict,
};

// What `parts` holds depends on the kind, in this order; a part may be null where it says so. `names` of a
// call, a filter or a test are the keywords of its last arguments.
//   kBlock          statements
//   kOutput         expression
//   kIf             condition, block, else block (null)
//   kFor            iterable, condition (null), block, else block (null); names = the targets
//   kSet            expression; names = the targets
//   kSetAttribute   object, expression; text = the attribute
//   kSetBlock       block; text = the name
//   kMacro          block, then defaults of the last parameters; text = the name, names = the parameters
//   kAttribute      object; text = the name
//   kItem           object, index
//   kSlice          object, start (null), stop (null), step (null)
//   kCall           callee, arguments
//   kFilter         value, arguments; text = the filter
//   kTest           value, arguments; text = the test
//   kCapture        block, whose text is the value
//   kNot, kNegate   operand
//   kBinary         left, right; text = the operator
//   kConditional    value, condition, other value (null)
//   kList           items
//   kDict           key, value, key, value, ...
struct Node {
  Kind kind = Kind::kBlock;
  std::string text;
  Value value;  // kLiteral
  std::vector<std::string> names;
  std::vector<std::unique_ptr<Node>> parts;
};

// CHAT_TEMPLATE_INVALID for what is not understood.
absl::StatusOr<std::unique_ptr<Node>> Parse(std::string_view source);

}  // namespace nibble::engine::jinja
