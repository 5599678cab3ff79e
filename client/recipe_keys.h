// The compatibility promise as data: every recipe key we know, and what becomes of it.
//
// A key is honoured (it lands in the JobSpec), ignored with a notice (it cannot change the result),
// or refused by name (it would change the result and we cannot do it). Names are Axolotl's; aliases
// are those of LLaMA-Factory, TRL, Unsloth and Hugging Face's trainer. Pure and constant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::client {

enum class KeyAction {
  kText,
  kInteger,
  kNumber,
  kFlag,         // honoured: goes to `path` in the JobSpec, as that type
  kInverseFlag,  // honoured, negated
  kSpecial,      // honoured by code of its own in recipe.cc
  kIgnored,      // no effect on the result; a notice, unless the value is in `path`
  kMustBe,       // only the value in `path` (several parted by |) is supported
  kRefused,      // unsupported unless unset, false, 0 or "none"
};

struct KeyRule {
  std::string_view key;
  std::string_view aliases;  // parted by spaces
  KeyAction action;
  std::string_view path;  // in JobSpec's JSON form, e.g. "lora.useRslora"; or values
  std::string_view note;  // why ignored, or what to do instead
};

const std::vector<KeyRule>& KeyRules();
// By name or alias; by prefix for families such as wandb_*. Null when we do not know it.
const KeyRule* FindKeyRule(std::string_view key);
// The known key closest to `key`, or "" when nothing is close.
std::string ClosestKey(std::string_view key, const std::vector<std::string_view>& known);
// All names and aliases, for suggestions and completion.
std::vector<std::string_view> KnownKeys();

}  // namespace nibble::client
