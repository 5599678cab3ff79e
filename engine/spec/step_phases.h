// Where the time of an optimizer step goes.
//
// Host time between the beginnings of operations, each counted for the operation that began: on the CPU
// that is the time the operation took. A device works behind the host, so it reports none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble::spec {

enum class StepPhase : uint8_t { kLinear, kAttention, kElementwise, kLoss, kOptimizer, kData };

// "linear" is decoding the frozen weights and all products with them and the adapters; "data" is making the
// batches ready.
inline constexpr std::array<std::string_view, 6> kStepPhaseNames = {
    "linear", "attention", "elementwise", "loss", "optimizer", "data"};

// Microseconds by StepPhase; all zero = not measured.
using StepPhaseTimes = std::array<int64_t, kStepPhaseNames.size()>;

}  // namespace nibble::spec
