// The adapter in the form PEFT reads and writes.
//
// Directory: adapter_config.json, adapter_model.safetensors (fp32, names without the adapter's
// own), README.md, trainer_state.json, metrics.jsonl, nibble_job.yaml, checksums.txt. The first two
// are equal byte for byte for equal weights and configuration; times stand only in the others. The metadata
// of the second says which base the adapter belongs to and how that was quantized.
//
// Pure apart from the files; thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"
#include "engine/spec/step_phases.h"
#include "engine/spec/train_spec.h"

namespace nibble::engine {

struct AdapterConfig {
  int32_t r = 16;
  double alpha = 32;
  double dropout = 0;
  bool use_rslora = false;
  std::vector<spec::Module> target_modules;  // in Module order
  std::string base_model_name;               // hub id or directory name; never a cache path

  double Scale() const;  // alpha / r, or alpha / sqrt(r)
};

// One module of one layer: A [r, in], B [out, r], row-major fp32.
struct AdapterPair {
  int64_t layer = 0;
  spec::Module module = spec::Module::kQ;
  std::vector<float> a;
  std::vector<float> b;
};

// The frozen base that an adapter was trained on.
struct AdapterBase {
  std::string weights_digest;  // WeightsDigest in base_cache.h; empty: nobody knows
  spec::QuantKind quant = spec::QuantKind::kNF4;
  bool double_quant = true;
};

struct Adapter {
  AdapterConfig config;
  AdapterBase base;                // of adapters made by Nibble
  std::vector<AdapterPair> pairs;  // by layer, then module
};

// As above, but the weights stay where they are (in the persistent region).
struct AdapterPairView {
  int64_t layer = 0;
  spec::Module module = spec::Module::kQ;
  const float* a = nullptr;
  const float* b = nullptr;
};

// Keys of AdapterBase in the metadata of adapter_model.safetensors.
inline constexpr char kBaseWeightsKey[] = "nibble.base_weights";
inline constexpr char kBaseQuantKey[] = "nibble.quant";
inline constexpr char kBaseDoubleQuantKey[] = "nibble.double_quant";

// One optimizer step or evaluation of the run, for metrics.jsonl and trainer_state.json.
struct MetricRow {
  int64_t step = 0;
  double epoch = 0;
  bool is_eval = false;
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  int64_t step_time_us = 0;
  spec::StepPhaseTimes phase_us{};  // of steps; not kept in checkpoints
};

struct AdapterExport {
  AdapterConfig config;
  std::vector<AdapterPairView> pairs;
  spec::ModelConfig model;
  spec::TrainSpec spec;  // resolved; becomes nibble_job.yaml
  bool has_eval_dataset = false;  // a file of its own; then no rows of the other were held out
  std::string job_name;  // title of the model card
  std::string base_digest;     // quantization included
  std::string weights_digest;  // of AdapterBase; its quantization is the spec's
  std::string numerics_id;
  int64_t step = 0;
  int64_t total_steps = 0;
  std::span<const MetricRow> metrics;
};

struct ExportedFile {
  std::string name;
  int64_t size_bytes = 0;
  std::string sha256;
};

// Writes all files into `directory` (made when missing), each atomically, checksums.txt last.
absl::StatusOr<std::vector<ExportedFile>> ExportAdapter(const std::string& directory,
                                                        const AdapterExport& adapter);

// Reads an adapter made by Nibble or PEFT. LoRA on the model's linears only; anything else in it
// (DoRA, modules_to_save, biases, rank patterns, other tensors, layers the model lacks) is refused
// by name. Where target_modules is a pattern, the modules are those that the file has matrices of.
absl::StatusOr<Adapter> ImportAdapter(const std::string& directory, const spec::ModelConfig& model);
// What ImportAdapter says of the base, before there is a model to hold the adapter against.
absl::StatusOr<AdapterBase> BaseOfAdapter(const std::string& directory);

}  // namespace nibble::engine
