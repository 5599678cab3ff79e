// A linear as bitsandbytes stores it in four bits: codes, scales and a description beside them.
//
// The tensors of weight <w> are <w> (packed codes, U8), <w>.absmax, <w>.quant_map, for double
// quantization <w>.nested_absmax and <w>.nested_quant_map, and <w>.quant_state.bitsandbytes__nf4
// (or __fp4), the bytes of a JSON object. All of it is checked against the shape before a value is
// used: files are not trusted.
//
// Immutable; thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/safetensors.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// The arrays in memory; `view` points into them.
struct LoadedBnbTensor {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> nested_absmax;
  std::vector<float> nested_map;
  std::vector<float> code_book;
  kernels::WeightView view;
};

class BnbTensor {
 public:
  // Null when tensor `name` of the checkpoint is not stored this way. `shape` is what the model
  // asks for.
  static absl::StatusOr<std::shared_ptr<const BnbTensor>> Find(const Checkpoint& checkpoint,
                                                               const std::string& name,
                                                               const std::vector<int64_t>& shape);
  absl::StatusOr<std::unique_ptr<LoadedBnbTensor>> Load() const;
  // Names of everything that belongs to it beside the codes.
  const std::vector<std::string>& companions() const { return companions_; }

 private:
  absl::StatusOr<const TensorInfo*> Part(const std::string& suffix, TensorType type, int64_t count);
  absl::Status ReadState(const TensorInfo& state, const std::vector<int64_t>& shape);
  absl::Status Bad(std::string_view what) const;

  const Checkpoint* checkpoint_ = nullptr;
  std::string name_;
  kernels::QuantType type_ = kernels::QuantType::kNF4;
  int64_t n_ = 0;
  int64_t k_ = 0;
  int64_t block_ = 64;
  bool nested_ = false;
  float offset_ = 0;
  const TensorInfo* codes_ = nullptr;
  const TensorInfo* absmax_ = nullptr;
  const TensorInfo* code_book_ = nullptr;
  const TensorInfo* nested_absmax_ = nullptr;
  const TensorInfo* nested_map_ = nullptr;
  std::vector<std::string> companions_;
};

}  // namespace nibble::engine
