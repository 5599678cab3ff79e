// The tensors of the training step: what they are called, and how long each lives.
//
// What a block keeps for its backward is the recompute policy (TrainSpec::recompute; never kAuto
// here):
//   kNone             everything
//   kKeepGemmOutputs  its input x and what a product made: q, k, v, o, x2, gate, up, u, and what norms
//                     behind attention and the gated product read (ModelConfig::post_norms). Backward
//                     repeats norms, RoPE behind a query norm, and the gated product, each just
//                     before it is needed
//   kFull             x and the adapter product of its last linear (u of down_proj: r numbers a
//                     token, and with it backward need not repeat the widest product; where a norm is
//                     behind that product, backward reads it and repeats it instead)
// The top block's backward follows at once, so with kFull it keeps what products made, too; its norms and
// its gated product are repeated behind the loss, which is where memory is shortest. As many blocks below it
// do likewise as TrainSpec::keep_blocks says: where memory is left, but not enough for all of them.
#pragma once

#include <array>
#include <cstdint>

#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::spec {

enum class Slot : uint8_t {
  kIds,
  kLabels,
  kPositions,
  kStarts,  // i32 staging
  kX,
  kH1,
  kRstd1,
  kQRaw,
  kRstdQ,
  kKRaw,
  kRstdK,
  kQ,
  kK,
  kV,
  kQkv,  // what a fused product made
  kO,
  kLse,
  kAttn,  // what o_proj made, where a norm is behind it
  kRstdAttn,
  kX2,
  kH2,
  kRstd2,
  kGate,
  kUp,
  kGateUp,  // in place of both (Groups)
  kAct,
  kMlp,  // what down_proj made, where a norm is behind it
  kRstdMlp,
  kU,  // and as many as there are modules
  kFinal = kU + kModuleCount,
  kRstdFinal,
  kGrad,
  kDMlp,  // the gradient before the norm
  kDAct,
  kDH2,
  kDAttn,
  kDO,
  kDQ,
  kDK,
  kDV,
  kDQkv,
  kDH1,
  kCount
};

// Which walk a tensor belongs to. kKept: from forward to backward (or recomputed for it); kPassing:
// dies within its block; kEval: of the evaluation, which never meets the others.
enum class Walk : uint8_t { kKept, kPassing, kEval, kCount };

struct TensorKey {
  Slot slot;
  Walk walk = Walk::kKept;
  int32_t layer = 0;  // kX has layers + 1 of them

  int64_t Index(int64_t layers) const {
    const int64_t kind = static_cast<int64_t>(walk) * static_cast<int64_t>(Slot::kCount) +
                         static_cast<int64_t>(slot);
    return kind * (layers + 1) + layer;
  }
  static int64_t IndexCount(int64_t layers) {
    return static_cast<int64_t>(Walk::kCount) * static_cast<int64_t>(Slot::kCount) * (layers + 1);
  }
};

// kAttention and kMlp are behind attention and the gated product (ModelConfig::post_norms); kPost is before
// the latter.
enum class Norm : uint8_t { kInput, kPost, kQuery, kKey, kFinal, kAttention, kMlp };

enum class Phase : uint8_t { kForward, kHead, kRecompute, kBackward, kOptimizer, kEvaluate };

// The tensors of one block.
template <class Exec>
struct Block {
  using Tensor = typename Exec::Tensor;
  int32_t layer = 0;
  Tensor x, h1, rstd1, q_raw, rstd_q, k_raw, rstd_k, q, k, v, o, lse, x2, h2, rstd2, act;
  Tensor gate, up;  // up: none where both are one
  Tensor qkv;       // none where they are apart
  Tensor attn, rstd_attn, mlp, rstd_mlp;  // none without post norms
  std::array<Tensor, kModuleCount> u;
};

// Which tensors of a block live on from its forward to its backward.
enum class Keep : uint8_t { kAll, kOutputs, kInput };

constexpr Keep KeepOf(Recompute recompute) {
  return recompute == Recompute::kNone              ? Keep::kAll
         : recompute == Recompute::kKeepGemmOutputs ? Keep::kOutputs
                                                    : Keep::kInput;
}

// Names the tensors of a block. Where backward finds them (Keep::kAll) all stand apart; a forward
// that keeps less names the others kPassing, and lets them share where it can. `eval`: of the
// evaluation, which keeps nothing.
template <class Exec>
Block<Exec> NameBlock(Exec& e, const ModelConfig& model, const TrainSpec& spec, int32_t layer,
                      Keep keep, bool eval = false) {
  const Walk passing = eval ? Walk::kEval : Walk::kPassing;
  const Walk output = keep == Keep::kInput ? passing : Walk::kKept;  // what a product made
  const Walk other = keep == Keep::kAll ? Walk::kKept : passing;
  const auto act = [&](Slot slot, int64_t width, Walk walk) {
    return e.Act({slot, walk, layer}, width);
  };
  const auto real = [&](Slot slot, int64_t width, Walk walk) {
    return e.Real({slot, walk, layer}, width);
  };
  Block<Exec> b;
  b.layer = layer;
  b.x = act(Slot::kX, model.hidden_size, eval ? Walk::kEval : Walk::kKept);
  b.h1 = act(Slot::kH1, model.hidden_size, other);
  b.rstd1 = real(Slot::kRstd1, 1, other);
  // Behind a norm q and k are no longer what the product made: that is q_raw and k_raw.
  const Walk query = model.qk_norm ? other : output;
  b.q = act(Slot::kQ, model.QueryWidth(), query);
  b.k = act(Slot::kK, model.KeyValueWidth(), query);
  b.v = act(Slot::kV, model.KeyValueWidth(), output);
  b.qkv = model.fused ? act(Slot::kQkv, model.QueryWidth() + 2 * model.KeyValueWidth(), other) : e.None();
  b.q_raw = b.q;
  b.k_raw = b.k;
  b.rstd_q = b.rstd_k = e.None();
  if (model.qk_norm) {
    if (output == Walk::kKept) b.q_raw = act(Slot::kQRaw, model.QueryWidth(), output);
    if (output == Walk::kKept) b.k_raw = act(Slot::kKRaw, model.KeyValueWidth(), output);
    b.rstd_q = real(Slot::kRstdQ, model.heads, other);
    b.rstd_k = real(Slot::kRstdK, model.kv_heads, other);
  }
  b.o = act(Slot::kO, model.QueryWidth(), output);
  b.lse = real(Slot::kLse, model.heads, output);
  b.attn = b.rstd_attn = b.mlp = b.rstd_mlp = e.None();
  if (model.post_norms) {
    b.attn = act(Slot::kAttn, model.hidden_size, output);
    b.rstd_attn = real(Slot::kRstdAttn, 1, output);
    b.mlp = act(Slot::kMlp, model.hidden_size, output);
    b.rstd_mlp = real(Slot::kRstdMlp, 1, output);
  }
  b.x2 = act(Slot::kX2, model.hidden_size, output);
  b.h2 = act(Slot::kH2, model.hidden_size, other);
  b.rstd2 = real(Slot::kRstd2, 1, other);
  const bool one = e.Groups() || model.fused;
  b.gate = one ? act(Slot::kGateUp, 2 * model.intermediate_size, output)
               : act(Slot::kGate, model.intermediate_size, output);
  b.up = one ? e.None() : act(Slot::kUp, model.intermediate_size, output);
  b.act = keep == Keep::kInput && !one ? b.gate : act(Slot::kAct, model.intermediate_size, other);
  for (int m = 0; m < kModuleCount; ++m) {
    const Module module = static_cast<Module>(m);
    const Slot slot = static_cast<Slot>(static_cast<int>(Slot::kU) + m);
    // A passing block's u of down_proj stays for backward; see above.
    const bool stays = module == Module::kDown && !eval && !model.post_norms;
    const Walk walk = stays ? Walk::kKept : output;
    b.u[m] = spec.Targets(module) ? act(slot, spec.lora_r, walk) : e.None();
  }
  return b;
}

}  // namespace nibble::spec
