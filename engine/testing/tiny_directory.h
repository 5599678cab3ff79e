// A random Hugging Face model directory and data files, written by tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/spec/model_config.h"

namespace nibble::engine::testing {

// The numbers of the model below: byte-level tokenizer of 259 entries, 2 layers, GQA, tied head. `hidden` is
// a multiple of 32; from 128 on rows have several blocks of a quantized base. `kind` is a model_type, or
// longrope: a Llama whose angles are others in documents of more than 20 tokens, which some rows of the data
// set below are.
spec::ModelConfig TinyDirectoryConfig(int64_t hidden = 32, const std::string& kind = "llama");
// config.json, model.safetensors (fp32), tokenizer.json, tokenizer_config.json.
void WriteTinyDirectory(const std::string& directory, uint64_t seed, int64_t hidden = 32,
                        const std::string& kind = "llama");
// `rows` lines of {"prompt","completion"} with a rule to learn.
void WriteTinyDataset(const std::string& path, int rows, uint64_t seed);

// ./dev test --full: what is too slow for every run.
inline bool FullRun() {
  const char* full = std::getenv("NIBBLE_FULL");
  return full != nullptr && std::string(full) == "1";
}

// A device's name as GoogleTest wants names of cases.
inline std::string TestName(std::string device) {
  std::replace_if(device.begin(), device.end(), [](char c) { return c == '-' || c == ',' || c == ':'; }, '_');
  return device;
}

}  // namespace nibble::engine::testing
