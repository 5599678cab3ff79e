#include "engine/spec/plan_names.h"

#include <string_view>

#include "absl/strings/str_cat.h"

namespace nibble::spec {
namespace {

std::string_view SlotName(Slot slot) {
  switch (slot) {
    case Slot::kIds:
      return "ids";
    case Slot::kLabels:
      return "labels";
    case Slot::kPositions:
      return "positions";
    case Slot::kStarts:
      return "starts";
    case Slot::kX:
      return "x";
    case Slot::kH1:
      return "h1";
    case Slot::kRstd1:
      return "rstd1";
    case Slot::kQRaw:
      return "q_raw";
    case Slot::kRstdQ:
      return "rstd_q";
    case Slot::kKRaw:
      return "k_raw";
    case Slot::kRstdK:
      return "rstd_k";
    case Slot::kQ:
      return "q";
    case Slot::kK:
      return "k";
    case Slot::kV:
      return "v";
    case Slot::kQkv:
      return "qkv";
    case Slot::kO:
      return "o";
    case Slot::kLse:
      return "lse";
    case Slot::kAttn:
      return "attn";
    case Slot::kRstdAttn:
      return "rstd_attn";
    case Slot::kX2:
      return "x2";
    case Slot::kH2:
      return "h2";
    case Slot::kRstd2:
      return "rstd2";
    case Slot::kGate:
      return "gate";
    case Slot::kUp:
      return "up";
    case Slot::kGateUp:
      return "gate_up";
    case Slot::kAct:
      return "act";
    case Slot::kMlp:
      return "mlp";
    case Slot::kRstdMlp:
      return "rstd_mlp";
    case Slot::kFinal:
      return "final";
    case Slot::kRstdFinal:
      return "rstd_final";
    case Slot::kGrad:
      return "grad";
    case Slot::kDMlp:
      return "dmlp";
    case Slot::kDAct:
      return "dact";
    case Slot::kDH2:
      return "dh2";
    case Slot::kDAttn:
      return "dattn";
    case Slot::kDO:
      return "do";
    case Slot::kDQ:
      return "dq";
    case Slot::kDK:
      return "dk";
    case Slot::kDV:
      return "dv";
    case Slot::kDQkv:
      return "dqkv";
    case Slot::kDH1:
      return "dh1";
    default:
      return "u";
  }
}

bool OfLayer(Slot slot) {
  return slot > Slot::kStarts && slot != Slot::kFinal && slot != Slot::kRstdFinal &&
         slot != Slot::kGrad;
}

}  // namespace

std::string TensorName(const TensorKey& key) {
  std::string name;
  if (key.walk == Walk::kPassing) name = "pass.";
  if (key.walk == Walk::kEval) name = "eval.";
  if (OfLayer(key.slot)) absl::StrAppend(&name, "layer", key.layer, ".");
  const std::string_view slot = SlotName(key.slot);
  name.append(slot);
  if (slot == "u") {
    const int module = static_cast<int>(key.slot) - static_cast<int>(Slot::kU);
    name.append("_").append(ModuleName(static_cast<Module>(module)));
  }
  return name;
}

std::string PhaseText(const CountedOp& op) {
  switch (op.phase) {
    case Phase::kForward:
      return absl::StrCat("forward layer ", op.layer);
    case Phase::kHead:
      return "loss";
    case Phase::kRecompute:
      return absl::StrCat("recompute layer ", op.layer);
    case Phase::kBackward:
      return absl::StrCat("backward layer ", op.layer);
    case Phase::kOptimizer:
      return "optimizer";
    case Phase::kEvaluate:
      return absl::StrCat("evaluate layer ", op.layer);
  }
  return "";
}

}  // namespace nibble::spec
