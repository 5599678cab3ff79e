// Runs a parsed chat template, within bounds: steps, nesting, and bytes of output and of every
// string.
//
// Not sandboxed by trust but by poverty: there is no I/O, no clock, no import, and every loop is
// over a value that exists. Used by one thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/text/jinja_parse.h"
#include "engine/text/jinja_value.h"

namespace nibble::engine::jinja {

inline constexpr int64_t kMaxSteps = 500'000;
inline constexpr int kMaxCallDepth = 50;
inline constexpr int kMaxNesting = 400;     // of statements and expressions at work, macros' included
inline constexpr int kMaxValueDepth = 100;  // of lists and dictionaries inside one another
inline constexpr size_t kMaxTextBytes = 16 << 20;
inline constexpr int64_t kMaxRange = 100'000;  // items of a range, and of a sum of lists
inline constexpr int64_t kMaxWeight = 4'000'000;  // of one value
inline constexpr size_t kMaxCharacters = 1 << 20;  // of a text taken apart into its characters, in bytes
// Large values take more than a step: texts, which are copied, one for each 16 KiB.
inline constexpr int64_t kTextWeightPerStep = 1024, kWeightPerStep = 4096;

// The template with these names defined. CHAT_TEMPLATE_INVALID when it asks for what we do not
// have, runs out of bounds, or refuses the conversation itself (raise_exception).
absl::StatusOr<std::string> Render(const Node& root, const Named& globals);

absl::Status EvalError(std::string_view what);
bool IsMethod(const Value& object, std::string_view name);

// Arguments of a call: the positional ones, then the named.
struct Arguments {
  std::vector<Value> positional;
  Named named;

  // Positional `index`, else the named one; null when absent.
  const Value* Get(size_t index, std::string_view name) const;
  // The same as a whole number; `fallback` when it is absent or none.
  absl::StatusOr<int64_t> Whole(size_t index, std::string_view name, int64_t fallback) const;
};
// Functions that need nothing but their arguments (jinja_functions.cc): an exception, a range of whole
// numbers, a dictionary of the named arguments, and the day as strftime writes it. There is no clock: the
// day is always 26 July 2024, which Llama 3's templates write where there is none, so that a job repeated
// or resumed on another day reads the same text.
inline constexpr std::array<const char*, 4> kFunctions = {"raise_exception", "range", "dict", "strftime_now"};
absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments);
// Filters and methods that need nothing but their arguments (jinja_builtin.cc).
absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& value,
                                  const Arguments& arguments);
absl::StatusOr<Value> CallMethod(const Value& object, std::string_view name,
                                 const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& value,
                               const Arguments& arguments);
// Items of a list, keys of a dictionary, characters of a text.
absl::StatusOr<List> Items(const Value& value);
bool Contains(const Value& container, const Value& item);

}  // namespace nibble::engine::jinja
