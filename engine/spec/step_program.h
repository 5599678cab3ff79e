// The training step of one micro-batch as a list of operations, for who wants to stop between two of them.
//
// The template of step.h does a micro-batch in one go. Several jobs in lockstep (engine/lockstep.h) each go
// as far as their next product with a frozen weight and wait there. RecordStep runs that same template and
// notes what it calls; Perform calls it again on an executor, one operation at a time. A value; pure.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/spec/step_tensors.h"

namespace nibble::spec {

enum class StepOpKind : uint8_t {
  kEmbedding,
  kRmsNorm,
  kRmsNormBackward,
  kLinear,
  kLinearBackward,
  kAdd,
  kRope,
  kAttention,
  kAttentionBackward,
  kSplit,
  kJoin,
  kGated,
  kGatedBackward,
  kCrossEntropy
};

struct StepOp {
  StepOpKind kind = StepOpKind::kEmbedding;
  bool flag = false;  // accumulates; of kRope: inverse
  Norm norm = Norm::kInput;
  Module module = Module::kQ;
  int32_t layer = 0;  // but of kEmbedding, kAdd, kSplit, kJoin, the gated and kCrossEntropy
  int32_t heads = 0;  // of kRope
  // Of a product with a frozen weight: its place in the order that all jobs of a base have in common,
  // whatever they target and recompute. Each job has some of the places, and passes them ascending. -1 =
  // another op.
  int32_t place = -1;
  std::array<int32_t, 9> tensors{};  // TensorKey::Index in the operation's order; -1 = none
};

using StepProgram = std::vector<StepOp>;

// `spec` must be resolved and its recompute policy chosen. Of the host: nothing is offloaded.
StepProgram RecordStep(const ModelConfig& model, const TrainSpec& spec);

// One operation. `tensor` makes an executor's tensor of an index.
template <class Exec, class TensorOf>
void Perform(Exec& e, const StepOp& op, const TensorOf& tensor) {
  const auto t = [&](size_t i) { return tensor(op.tensors[i]); };
  switch (op.kind) {
    case StepOpKind::kEmbedding:
      return e.Embedding(t(0));
    case StepOpKind::kRmsNorm:
      return e.RmsNorm(t(0), t(1), t(2), op.norm, op.layer);
    case StepOpKind::kRmsNormBackward:
      return e.RmsNormBackward(t(0), op.flag, t(1), t(2), t(3), op.norm, op.layer);
    case StepOpKind::kLinear:
      return e.Linear(t(0), t(1), t(2), op.layer, op.module);
    case StepOpKind::kLinearBackward:
      return e.LinearBackward(t(0), op.flag, t(1), t(2), t(3), op.layer, op.module);
    case StepOpKind::kAdd:
      return e.Add(t(0), t(1), t(2));
    case StepOpKind::kRope:
      return e.Rope(t(0), op.heads, op.layer, op.flag);
    case StepOpKind::kAttention:
      return e.Attention(t(0), t(1), t(2), t(3), t(4), op.layer);
    case StepOpKind::kAttentionBackward:
      return e.AttentionBackward(t(0), t(1), t(2), t(3), t(4), t(5), t(6), t(7), t(8), op.layer);
    case StepOpKind::kSplit:
      return e.Split(t(0), t(1), t(2), t(3));
    case StepOpKind::kJoin:
      return e.Join(t(0), t(1), t(2), t(3));
    case StepOpKind::kGated:
      return e.Gated(t(0), t(1), t(2));
    case StepOpKind::kGatedBackward:
      return e.GatedBackward(t(0), t(1), t(2), t(3), t(4));
    case StepOpKind::kCrossEntropy:
      return e.CrossEntropy(t(0), t(1));
  }
}

}  // namespace nibble::spec
