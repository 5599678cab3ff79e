// The linears of a base in the form in which bitsandbytes stores them, made from our own NF4 codes.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "engine/model/base_model.h"
#include "engine/model/safetensors_write.h"

namespace nibble::engine::testing {

// Tensors of all linears of a base with double quantization that lies flat; they point into `bytes`.
struct BnbLinears {
  explicit BnbLinears(const BaseModel& base);

  std::deque<std::string> bytes;
  std::vector<TensorToWrite> tensors;
};

}  // namespace nibble::engine::testing
