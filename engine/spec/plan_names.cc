#include "engine/spec/plan_names.h"

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble::spec {
namespace {

// Those between, kU and as many as there are modules, are "u".
constexpr std::pair<Slot, std::string_view> kSlotNames[] = {
    {Slot::kIds, "ids"}, {Slot::kLabels, "labels"}, {Slot::kPositions, "positions"},
    {Slot::kStarts, "starts"}, {Slot::kX, "x"}, {Slot::kH1, "h1"}, {Slot::kRstd1, "rstd1"},
    {Slot::kQRaw, "q_raw"}, {Slot::kRstdQ, "rstd_q"}, {Slot::kKRaw, "k_raw"}, {Slot::kRstdK, "rstd_k"},
    {Slot::kQ, "q"}, {Slot::kK, "k"}, {Slot::kV, "v"}, {Slot::kQkv, "qkv"}, {Slot::kO, "o"},
    {Slot::kLse, "lse"}, {Slot::kAttn, "attn"}, {Slot::kRstdAttn, "rstd_attn"}, {Slot::kX2, "x2"},
    {Slot::kH2, "h2"}, {Slot::kRstd2, "rstd2"}, {Slot::kGate, "gate"}, {Slot::kUp, "up"},
    {Slot::kGateUp, "gate_up"}, {Slot::kAct, "act"}, {Slot::kMlp, "mlp"}, {Slot::kRstdMlp, "rstd_mlp"},
    {Slot::kFinal, "final"}, {Slot::kRstdFinal, "rstd_final"}, {Slot::kGrad, "grad"},
    {Slot::kDMlp, "dmlp"}, {Slot::kDAct, "dact"}, {Slot::kDH2, "dh2"}, {Slot::kDAttn, "dattn"},
    {Slot::kDO, "do"}, {Slot::kDQ, "dq"}, {Slot::kDK, "dk"}, {Slot::kDV, "dv"}, {Slot::kDQkv, "dqkv"},
    {Slot::kDH1, "dh1"}};

std::string_view SlotName(Slot slot) {
  static constexpr auto kBySlot = [] {
    std::array<std::string_view, static_cast<size_t>(Slot::kCount)> names;
    names.fill("u");
    for (const auto& [slot, name] : kSlotNames) names[static_cast<size_t>(slot)] = name;
    return names;
  }();
  return kBySlot[static_cast<size_t>(slot)];
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
