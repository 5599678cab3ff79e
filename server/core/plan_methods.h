// The ways of fine-tuning side by side: what each would hold in memory for one model, from the same
// counted step.
//
// QLoRA and 16-bit LoRA are plans as they are. Full fine-tuning is what the engine does not do; its
// rows take the activations of the very same step (every linear's input is kept for its gradient, as
// for an adapter of rank 1) and hold all weights as trained. Pure but for the planner's memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/plan.h"

namespace nibble::core {

struct MethodMemory {
  std::string name;         // "qlora", "lora", "full", "full-mixed"
  std::string description;  // its number formats
  int64_t trained_parameters = 0;
  int64_t weights_bytes = 0;  // of the base, scales and alignment included
  int64_t adapters_bytes = 0;
  int64_t gradients_bytes = 0;
  int64_t optimizer_bytes = 0;    // moments; for full-mixed the fp32 master weights too
  int64_t activations_bytes = 0;  // the step region: activations and workspace
  int64_t process_bytes = 0;

  int64_t TotalBytes() const {
    return weights_bytes + adapters_bytes + gradients_bytes + optimizer_bytes + activations_bytes +
           process_bytes;
  }
};

// In the order of the names above. `spec` must be resolved; its batch, length, rank, targets and
// recomputation hold for all rows.
absl::StatusOr<std::vector<MethodMemory>> CompareMethods(const Model& model,
                                                         const spec::TrainSpec& spec,
                                                         const spec::DeviceProfile& profile,
                                                         Planner& planner);

}  // namespace nibble::core
