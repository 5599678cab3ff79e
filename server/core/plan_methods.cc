#include "server/core/plan_methods.h"

#include <utility>

#include "base/status.h"
#include "engine/spec/adapter_layout.h"

namespace nibble::core {
namespace {

int64_t OfCategory(const PlanBytes& plan, spec::Category category) {
  return plan.category_bytes[static_cast<size_t>(category)];
}

// A plan of adapters on a frozen base.
absl::StatusOr<MethodMemory> WithAdapters(const Model& model, const spec::TrainSpec& spec,
                                          const spec::DeviceProfile& profile, Planner& planner) {
  ASSIGN_OR_RETURN(const PlanBytes plan, planner.Plan(model, spec, profile));
  MethodMemory method;
  method.trained_parameters = spec::LayoutAdapters(model.config, spec).parameters;
  method.weights_bytes = plan.base_bytes;
  method.adapters_bytes = OfCategory(plan, spec::Category::kAdapters);
  method.gradients_bytes = OfCategory(plan, spec::Category::kGradients);
  method.optimizer_bytes = OfCategory(plan, spec::Category::kOptimizer);
  // Positions' sines and cosines and alignment live as long as the adapters, and are small.
  method.activations_bytes = plan.persistent_bytes - method.adapters_bytes -
                             method.gradients_bytes - method.optimizer_bytes + plan.step_bytes;
  method.process_bytes = plan.TotalBytes() - plan.base_bytes - plan.persistent_bytes -
                         plan.step_bytes;
  return method;
}

}  // namespace

absl::StatusOr<std::vector<MethodMemory>> CompareMethods(const Model& model,
                                                         const spec::TrainSpec& spec,
                                                         const spec::DeviceProfile& profile,
                                                         Planner& planner) {
  spec::TrainSpec four_bit = spec;
  four_bit.quant = spec::QuantKind::kNF4;
  four_bit.double_quant = true;
  four_bit.base_cache = spec::BaseCache::kOff;  // a GPU with room keeps more, for speed
  ASSIGN_OR_RETURN(MethodMemory qlora, WithAdapters(model, four_bit, profile, planner));
  qlora.name = "qlora";
  qlora.description = "NF4 base with double quantization, LoRA adapters in fp32 and bf16";

  spec::TrainSpec sixteen_bit = spec;
  sixteen_bit.quant = spec::QuantKind::kBF16;
  sixteen_bit.double_quant = false;
  ASSIGN_OR_RETURN(MethodMemory lora, WithAdapters(model, sixteen_bit, profile, planner));
  lora.name = "lora";
  lora.description = "bf16 base, LoRA adapters in fp32 and bf16";

  spec::TrainSpec thin = sixteen_bit;
  thin.lora_r = 1;
  thin.target_modules.clear();
  ASSIGN_OR_RETURN(thin, planner.Resolve(thin, model.config));  // all of them
  ASSIGN_OR_RETURN(MethodMemory full, WithAdapters(model, thin, profile, planner));
  const int64_t parameters = model.config.TotalParameters();
  full.name = "full";
  full.description = "all weights trained; weights, gradients and both moments in bf16";
  full.trained_parameters = parameters;
  full.adapters_bytes = 0;
  full.gradients_bytes = 2 * parameters;
  full.optimizer_bytes = 2 * 2 * parameters;

  MethodMemory mixed = full;
  mixed.name = "full-mixed";
  mixed.description =
      "all weights trained; weights and gradients in bf16, master weights and moments in fp32";
  mixed.optimizer_bytes = (4 + 2 * 4) * parameters;
  std::vector<MethodMemory> methods;
  for (MethodMemory* method : {&qlora, &lora, &full, &mixed}) methods.push_back(std::move(*method));
  return methods;
}

}  // namespace nibble::core
