// Recipes that no check may let through, each with the field that is at fault and what its refusal says: for
// tests of everything that takes one.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "nibble/v1/job.pb.h"

namespace nibble::server {

struct AbsurdSpec {
  std::function<void(v1::JobSpec&)> spoil;
  const char* field;
  const char* bound;  // part of what is said
};

inline std::vector<AbsurdSpec> AbsurdSpecs() {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  constexpr int64_t kMostSteps = std::numeric_limits<int64_t>::max();
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  return {
      {[](auto& s) { s.mutable_lora()->set_r(-1); }, "spec.lora.r", "1 to 256"},
      {[](auto& s) { s.mutable_lora()->set_r(kMost); }, "spec.lora.r", "1 to 256"},
      {[](auto& s) { s.mutable_lora()->set_alpha(kInfinite); }, "spec.lora.alpha", "65536"},
      {[](auto& s) { s.mutable_lora()->set_alpha(kNan); }, "spec.lora.alpha", "65536"},
      {[](auto& s) { s.mutable_data()->set_sequence_len(-1); }, "spec.data.sequence_len", "8 to "},
      {[](auto& s) { s.mutable_data()->set_sequence_len(kMost); }, "spec.data.sequence_len", "8 to "},
      {[](auto& s) { s.mutable_training()->set_micro_batch_size(kLeast); }, "spec.training.micro_batch_size",
       "1 to 4096"},
      {[](auto& s) { s.mutable_training()->set_micro_batch_size(kMost); }, "spec.training.micro_batch_size",
       "1 to 4096"},
      {[](auto& s) { s.mutable_training()->set_gradient_accumulation_steps(kMost); },
       "spec.training.gradient_accumulation_steps", "1 to 65536"},
      {[](auto& s) { s.mutable_training()->set_max_steps(kMostSteps); }, "spec.training.max_steps",
       "1 to 1000000000"},
      {[](auto& s) { s.mutable_training()->set_evals_per_epoch(-1); }, "spec.training.evals_per_epoch",
       "0 to 1000"},
      {[](auto& s) { s.mutable_training()->set_recompute("some"); }, "spec.training.recompute",
       "must be one of"},
      {[](auto& s) {
         s.mutable_training()->set_recompute("full");
         s.mutable_training()->set_keep_blocks(kMost);
       },
       "spec.training.keep_blocks", "outside 0 to "},
      {[](auto& s) { s.mutable_training()->set_keep_blocks(-1); }, "spec.training.keep_blocks",
       "recompute is auto"},
  };
}

}  // namespace nibble::server
