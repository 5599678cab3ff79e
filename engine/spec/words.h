// The words of a spec's choices: as recipes and the API, the engine's lines, base caches and adapters spell
// them. One table a choice, in the order of the enum; a word, once out, never changes: files hold it.
//
// Constants and pure functions.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "engine/spec/train_spec.h"

namespace nibble::spec {

template <typename Enum>
struct Word {
  std::string_view word;
  Enum value;
};

// What data.chat_template may be: the model's own, and the forms the engine knows by name.
inline constexpr std::string_view kChatTemplateNames[] = {"tokenizer_default", "chatml", "llama3", "llama2",
                                                          "mistral", "gemma", "phi_3", "phi_4", "zephyr"};

inline constexpr Word<QuantKind> kQuantWords[] = {{"nf4", QuantKind::kNF4},
                                                  {"fp4", QuantKind::kFP4},
                                                  {"int4", QuantKind::kINT4},
                                                  {"int8", QuantKind::kINT8},
                                                  {"bf16", QuantKind::kBF16}};
inline constexpr Word<LrSchedule> kScheduleWords[] = {{"cosine", LrSchedule::kCosine},
                                                      {"linear", LrSchedule::kLinear},
                                                      {"constant", LrSchedule::kConstant}};
inline constexpr Word<ExcessLength> kExcessWords[] = {{"drop", ExcessLength::kDrop},
                                                      {"truncate", ExcessLength::kTruncate}};
inline constexpr Word<OptimizerKind> kOptimizerWords[] = {{"adamw", OptimizerKind::kAdamW},
                                                          {"adamw8bit", OptimizerKind::kAdamW8bit}};
inline constexpr Word<Recompute> kRecomputeWords[] = {{"auto", Recompute::kAuto},
                                                      {"none", Recompute::kNone},
                                                      {"keep_gemm_outputs", Recompute::kKeepGemmOutputs},
                                                      {"full", Recompute::kFull}};
inline constexpr Word<BaseCache> kBaseCacheWords[] = {
    {"auto", BaseCache::kAuto},
    {"off", BaseCache::kOff},
    {"on", BaseCache::kOn},
    {"ahead", BaseCache::kAhead}};
inline constexpr Word<Graphs> kGraphsWords[] = {
    {"auto", Graphs::kAuto}, {"off", Graphs::kOff}, {"on", Graphs::kOn}};

// The word of a value; empty for what is no value of its enum.
template <typename Enum, size_t kCount>
constexpr std::string_view WordOf(const Word<Enum> (&words)[kCount], Enum value) {
  for (const auto& [word, known] : words) {
    if (known == value) return word;
  }
  return "";
}

template <typename Enum, size_t kCount>
constexpr std::optional<Enum> FromWord(const Word<Enum> (&words)[kCount], std::string_view given) {
  for (const auto& [word, value] : words) {
    if (word == given) return value;
  }
  return std::nullopt;
}

// "cosine, linear, constant": for the message to whoever wrote another word.
template <typename Enum, size_t kCount>
std::string AllWords(const Word<Enum> (&words)[kCount]) {
  std::string all;
  for (const auto& [word, value] : words) {
    if (!all.empty()) all += ", ";
    all += word;
  }
  return all;
}

}  // namespace nibble::spec
