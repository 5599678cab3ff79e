// Cards people rent and own, so that a job can be planned for one without having it. Constant values.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/spec/memory_plan.h"

namespace nibble::core {

struct KnownCard {
  const char* name;         // "card-24gb"
  const char* description;  // which cards, and what they offer
  int64_t usable_bytes;     // what the driver calls the memory of the smallest card of the class
};
const std::vector<KnownCard>& KnownCards();

// What is assumed of a process on a card before it holds anything of a job: the CUDA context with the
// modules of our kernels and the libraries. A worker with a card measures its own when it starts.
inline constexpr int64_t kCardProcessBytes = int64_t{768} << 20;
spec::DeviceProfile CardProfile(const KnownCard& card);

}  // namespace nibble::core
