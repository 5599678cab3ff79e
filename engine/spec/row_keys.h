// How rows of training data spell what they are, and how large they may be: what a push to the server and
// the reader of the engine both go by. Pure constants.
#pragma once

#include <cstdint>
#include <string_view>

namespace nibble::spec {

inline constexpr int64_t kMaxRowBytes = int64_t{4} << 20;
inline constexpr int32_t kMaxRowDepth = 32;  // of brackets
inline constexpr int64_t kMaxRows = 10'000'000;

struct RowKeys {
  std::string_view format;
  std::string_view first;   // a row that has it is of the format; the first match counts
  std::string_view answer;  // what goes with it; "" = nothing
};

inline constexpr RowKeys kRowKeys[] = {
    {"messages", "messages", ""},           {"sharegpt", "conversations", ""},
    {"alpaca", "instruction", "output"},    {"alpaca", "instruction", "response"},
    {"completion", "prompt", "completion"}, {"completion", "prompt", "response"},
    {"text", "text", ""},                   {"completion", "input", "output"},
    {"completion", "question", "answer"},
};

// What an Alpaca row may have on top: by either name.
inline constexpr std::string_view kAlpacaInputs[] = {"input", "context"};

inline constexpr std::string_view kRowKeysInWords =
    "has none of the known keys; a row needs \"messages\", \"conversations\", \"instruction\" and "
    "\"output\", \"prompt\" and \"completion\", \"question\" and \"answer\", or \"text\"";

// The keys of `format` that a row has, by `has(key)`: those whose answer is there too, else the first whose
// first key is there, else the format's usual ones.
template <typename Has>
constexpr RowKeys KeysOf(std::string_view format, const Has& has) {
  RowKeys usual, partial;
  for (const RowKeys& keys : kRowKeys) {
    if (keys.format != format) continue;
    if (usual.format.empty()) usual = keys;
    if (!has(keys.first)) continue;
    if (partial.format.empty()) partial = keys;
    if (keys.answer.empty() || has(keys.answer)) return keys;
  }
  return partial.format.empty() ? usual : partial;
}

}  // namespace nibble::spec
