// What becomes of each tensor of a base when an adapter is added into it: matrices the adapter has are
// W + scale * B A, in fp32 with the sum over the rank in its order and rounded once; those stored in four
// bits are decoded to BF16; the rest is copied byte for byte.
//
// Everything handed in outlives the object. One thread at a time; rows are shared out among its own.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "engine/model/adapter.h"
#include "engine/model/base_model.h"
#include "engine/model/base_tensors.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/model_config.h"
#include "kernels/parallel.h"

namespace nibble::engine {

class MergedWeights {
 public:
  // `quantized`: add to what this base's linears come to instead of what the files say; may be null.
  MergedWeights(const spec::ModelConfig& model, const BaseTensors& tensors, const Adapter& adapter,
                const BaseModel* quantized, int threads);

  // The tensor to write for one of `file`, which must outlive it; nothing for what goes with codes that are
  // decoded. Its pieces fail with MODEL_FILE_INVALID where a value does not fit the type.
  std::optional<TensorToWrite> Made(const SafetensorsFile& file, const TensorInfo& tensor);

 private:
  struct Linear {
    int64_t layer = 0;
    spec::Module module = spec::Module::kQ;
    const BaseTensor* tensor = nullptr;
    const AdapterPair* pair = nullptr;  // null: the adapter leaves it alone
  };
  absl::Status Merge(const Linear& linear, TensorType type, const ByteSink& sink);

  const spec::ModelConfig& model_;
  const BaseTensors& tensors_;
  const Adapter& adapter_;
  const BaseModel* const quantized_;
  kernels::ThreadPool pool_;
  std::map<std::string, Linear, std::less<>> linears_;  // by name of the tensor
  std::set<std::string, std::less<>> decoded_;          // tensors that go with codes
};

}  // namespace nibble::engine
