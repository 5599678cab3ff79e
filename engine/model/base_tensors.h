// Which tensor of a Hugging Face checkpoint each part of the base is, and whether it fits.
//
// Pure apart from reading; a BaseTensors is immutable after Make and its reads are thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/bnb_tensor.h"
#include "engine/model/safetensors.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/spec/model_config.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// One tensor of the base: floats, or what bitsandbytes made of them.
struct BaseTensor {
  const TensorInfo* info = nullptr;
  int64_t elements = 0;
  std::shared_ptr<const BnbTensor> quantized;  // null for floats
};

// Values of one tensor. Holds the codes of a quantized one as long as it lives.
class TensorReader {
 public:
  // Elements first .. first + count - 1 in fp32; a value that is not finite is an error.
  absl::Status Read(int64_t first, int64_t count, float* out) const;
  // Null for floats.
  const kernels::WeightView* quantized() const { return loaded_ ? &loaded_->view : nullptr; }

 private:
  friend class BaseTensors;
  const Checkpoint* checkpoint_ = nullptr;
  const TensorInfo* info_ = nullptr;
  std::unique_ptr<LoadedBnbTensor> loaded_;
};

class BaseTensors {
 public:
  // Checks that every tensor the model needs is there with the right shape, and that there is none
  // the model has no place for (it would be left out in silence). MODEL_FILE_INVALID names the
  // first fault.
  static absl::StatusOr<BaseTensors> Make(const Checkpoint* checkpoint,
                                          const spec::ModelConfig& model);

  // Null for parts that are no tensor of the checkpoint, or that this model does not have.
  const BaseTensor* Find(spec::BasePart part, int64_t layer = -1,
                         spec::Module module = spec::Module::kQ) const;
  absl::StatusOr<TensorReader> Open(const BaseTensor& tensor) const;

 private:
  absl::Status Add(const spec::ModelConfig& model, const spec::CheckpointTensor& wanted);
  absl::Status RefuseStrays(const spec::ModelConfig& model) const;

  using Key = std::tuple<spec::BasePart, int64_t, spec::Module>;
  const Checkpoint* checkpoint_ = nullptr;
  std::map<Key, BaseTensor> tensors_;
};

}  // namespace nibble::engine
