#include "engine/testing/bnb_checkpoint.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "engine/model/base_tensors.h"
#include "engine/spec/base_layout.h"
#include "kernels/nf4.h"

namespace nibble::engine::testing {

using spec::BasePart;
using spec::Module;

BnbLinears::BnbLinears(const BaseModel& base) {
  const auto add = [&](const std::string& name, TensorType type, const void* data, int64_t size) {
    bytes.emplace_back(static_cast<const char*>(data), static_cast<size_t>(size));
    tensors.push_back({name, type, {size / TensorTypeBytes(type)}, bytes.back().data(), {}});
  };
  for (int64_t layer = 0; layer < base.config().layers; ++layer) {
    for (const Module module : spec::ModulesOf(base.config())) {
      const std::string name = spec::CheckpointName(base.config(), BasePart::kCodes, layer, module);
      const BaseView::Layer& of = base.view().layers[static_cast<size_t>(layer)];
      const kernels::WeightView& view = of.linear[static_cast<int>(module)];
      const int64_t count = view.n * view.k, blocks = kernels::AbsmaxCount(count, 64);
      add(name, TensorType::kU8, view.data, (count + 1) / 2);
      add(name + ".absmax", TensorType::kU8, view.absmax_codes, blocks);
      add(name + ".quant_map", TensorType::kF32, view.code_book, 64);
      add(name + ".nested_absmax", TensorType::kF32, view.nested_absmax, kernels::NestedCount(blocks) * 4);
      add(name + ".nested_quant_map", TensorType::kF32, view.nested_map, 1024);
      char offset[40];
      std::snprintf(offset, sizeof(offset), "%.17g", static_cast<double>(view.offset));
      const std::string state = absl::StrCat(
          R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","nested_blocksize":256,)",
          R"("nested_dtype":"float32","nested_offset":)", offset, R"(,"shape":[)", view.n, ",", view.k, "]}");
      add(name + ".quant_state.bitsandbytes__nf4", TensorType::kU8, state.data(),
          static_cast<int64_t>(state.size()));
    }
  }
}

}  // namespace nibble::engine::testing
