// What people see of a plan's buffers and phases. Pure.
#pragma once

#include <string>

#include "engine/spec/counting_executor.h"
#include "engine/spec/step_tensors.h"

namespace nibble::spec {

std::string TensorName(const TensorKey& key);  // "layer3.q", "pass.layer0.gate", "eval.layer1.x"
std::string PhaseText(const CountedOp& op);    // "backward layer 3"

}  // namespace nibble::spec
