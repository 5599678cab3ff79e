// The scale of the loss in fp16 training.
//
// Small gradients vanish in fp16, so the loss is multiplied before backward and the gradients divided in
// the update. The scale is halved when a gradient overflows, which skips that step, and doubled after
// kGrowthSteps good ones. Powers of two, so the scaling itself rounds nothing. It is state of a job and
// stands in its checkpoints. A value.
#pragma once

#include <algorithm>
#include <cstdint>

namespace nibble::engine {

struct LossScale {
  static constexpr double kInitial = 65536;
  static constexpr double kLargest = 16777216;
  static constexpr int64_t kGrowthSteps = 2000;

  double scale = 1;        // 1 where nothing is scaled
  int64_t good_steps = 0;  // since the scale changed

  // After a step whose gradients were finite or not.
  void Update(bool finite) {
    if (!finite) {
      scale = std::max(1.0, scale / 2);
      good_steps = 0;
    } else if (++good_steps >= kGrowthSteps) {
      scale = std::min(kLargest, scale * 2);
      good_steps = 0;
    }
  }
};

}  // namespace nibble::engine
