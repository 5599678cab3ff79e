// What a memory plan says, as text: bytes by category, devices, changes that would make a job fit, and
// the methods side by side. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// "recompute=full, keep_blocks=12, base_cache=on, optimizer paged": what was chosen for the device, and what
// of the spec takes effect there; "" when the plan does not say.
std::string ChoicesText(const v1::MemoryPlan& plan);
// Regions with their categories, the peak, the lower bound and what is lost to alignment and gaps.
std::string MemoryText(const v1::MemoryPlan& plan);
// `worker`: whose plan is shown in full (a worker's or a card's name); "" = the first that fits.
std::string PlanText(const v1::PlanJobResponse& plan, const std::string& worker, int64_t now_unix_us,
                     const Style& style);
// In short: a line a device with what it needs there; devices of workers, or without any, known cards.
std::string FitsText(const v1::PlanJobResponse& plan, const Style& style);
// The first device that the job fits, else the first; nullptr when there is none.
const v1::DeviceFit* ShownFit(const v1::PlanJobResponse& plan);
// "w1/cpu0".
std::string PlaceText(const v1::DeviceFit& fit);
std::string MethodsText(const v1::PlanJobResponse& plan, const Style& style);
// A change as overrides of a recipe: "micro_batch_size=1 gradient_accumulation_steps=8".
std::string OverridesText(const v1::Suggestion& suggestion);
// An error about fields of a JobSpec, about keys of a recipe instead: who reads it wrote
// `sequence_len`, not `spec.data.sequence_len`.
absl::Status InRecipeWords(const absl::Status& status);
std::string InRecipeWords(absl::string_view text);

}  // namespace nibble::client
