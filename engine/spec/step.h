// The training step, written out once: forward from top to bottom, backward from bottom to top.
//
// A template over an Executor, which knows operations and names of tensors but shows no pointers.
// The server runs it with CountingExecutor to learn what a job needs; the engine runs it with one
// that calls the kernels at the offsets of that very plan. So the estimate and the run cannot drift
// apart.
//
// An Executor has
//   Tensor            a handle; None() is "no tensor"
//   Act(key, width), Real(key, width)   [tokens, width] in the activation / accumulation type
//   Phase(phase, layer)                 where we are, for people
//   Offloads()                          inputs of blocks wait on the host (TrainSpec::offload_activations)
//   Groups()                            layers of one input are one operation, LinearGroup; gate and up are
//                                       then columns of one tensor, the second its Column. So they are where
//                                       a model has them fused. An operation is then given the first alone
//   Stopped()                           asked before every block; true: the rest of the micro-batch, and
//                                       with it the step, is not wanted any more
// and one method per operation, with outputs before inputs. A tensor lives from its first to its
// last mention. Tokens, labels, positions and document bounds of the micro-batch are the executor's
// own.
//
// What a block keeps for its backward is the recompute policy (step_tensors.h). A repeated operation has the
// same arguments, so the policy changes no bit of the result.
//
// With kFull the input x of a block below the top may wait on the host instead (Offloads). Its copy out
// has the time of the block's forward (Offload .. OffloadDone), its copy in that of the backward of the
// block above (Fetch .. FetchDone). So two of them are on the device at once, and no more.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "engine/spec/model_config.h"
#include "engine/spec/step_tensors.h"
#include "engine/spec/train_spec.h"

namespace nibble::spec {

// What attention (o_proj) or the gated product (down_proj) adds to the block's x: the product, and behind it
// a norm where the model has one.
template <class Exec>
void Product(Exec& e, const Block<Exec>& b, typename Exec::Tensor y, typename Exec::Tensor in,
             Module module) {
  const bool attention = module == Module::kO;
  const auto raw = attention ? b.attn : b.mlp;
  e.Linear(e.IsNone(raw) ? y : raw, in, b.u[static_cast<int>(module)], b.layer, module);
  if (e.IsNone(raw)) return;
  e.RmsNorm(y, attention ? b.rstd_attn : b.rstd_mlp, raw, attention ? Norm::kAttention : Norm::kMlp, b.layer);
}

// As an output of its own, or its gradient.
template <class Exec>
typename Exec::Tensor Up(Exec& e, const ModelConfig& model, const Block<Exec>& b) {
  return e.IsNone(b.up) ? e.Column(b.gate, model.intermediate_size) : b.up;
}

// `back`: what they do in the step's way back.
template <class Exec>
void TurnQueriesAndKeys(Exec& e, const ModelConfig& model, typename Exec::Tensor q, typename Exec::Tensor k,
                        int32_t layer, bool back) {
  if (!model.TurnsIn(layer)) return;
  e.Rope(q, model.heads, layer, back);
  e.Rope(k, model.kv_heads, layer, back);
}

// From x to act; then, unless `next` is none, on to the next block's x.
template <class Exec>
void ForwardBlock(Exec& e, const ModelConfig& model, const Block<Exec>& b,
                  typename Exec::Tensor next) {
  using Tensor = typename Exec::Tensor;
  const auto linear = [&](Tensor y, Tensor x, Module module) {
    e.Linear(y, x, b.u[static_cast<int>(module)], b.layer, module);
  };
  // Of layers from `first` on.
  const auto group = [&](std::initializer_list<Tensor> outputs, Tensor x, Module first) {
    int module = static_cast<int>(first);
    if (e.Groups()) return e.LinearGroup(outputs, x, &b.u[module], b.layer, first);
    for (const Tensor y : outputs) linear(y, x, static_cast<Module>(module++));
  };
  e.RmsNorm(b.h1, b.rstd1, b.x, Norm::kInput, b.layer);
  if (model.fused) {
    linear(b.qkv, b.h1, Module::kQkv);
    e.Split(b.q_raw, b.k_raw, b.v, b.qkv);
  } else {
    group({b.q_raw, b.k_raw, b.v}, b.h1, Module::kQ);
  }
  if (model.qk_norm) {
    e.RmsNorm(b.q, b.rstd_q, b.q_raw, Norm::kQuery, b.layer);
    e.RmsNorm(b.k, b.rstd_k, b.k_raw, Norm::kKey, b.layer);
  }
  TurnQueriesAndKeys(e, model, b.q, b.k, b.layer, false);
  e.Attention(b.o, b.lse, b.q, b.k, b.v, b.layer);
  Product(e, b, b.x2, b.o, Module::kO);
  e.Add(b.x2, b.x2, b.x);
  e.RmsNorm(b.h2, b.rstd2, b.x2, Norm::kPost, b.layer);
  if (model.fused) {
    linear(b.gate, b.h2, Module::kGateUp);
  } else {
    group({b.gate, Up(e, model, b)}, b.h2, Module::kGate);
  }
  e.Gated(b.act, b.gate, b.up);
  if (e.IsNone(next)) return;
  Product(e, b, next, b.act, Module::kDown);
  e.Add(next, next, b.x2);
}

// The products of a block's way back. One of which nobody wants anything, neither the gradient of its input
// (dx is none) nor those of an adapter, is left out.
template <class Exec>
struct BackwardProducts {
  using Tensor = typename Exec::Tensor;
  Exec& e;
  const TrainSpec& spec;
  const Block<Exec>& b;

  bool Targets(std::initializer_list<Module> modules) const {
    return std::any_of(modules.begin(), modules.end(), [&](Module m) { return spec.Targets(m); });
  }
  void One(Tensor dx, bool accumulate, Tensor dy, Tensor x, Module module) const {
    const bool lora = spec.Targets(module);
    if (e.IsNone(dx) && !lora) return;
    e.LinearBackward(dx, accumulate, dy, lora ? x : e.None(), b.u[static_cast<int>(module)], b.layer, module);
  }
  // Those from `first` on, of one input.
  void Group(Tensor dx, std::initializer_list<Tensor> gradients, Tensor x, Module first) const {
    int module = static_cast<int>(first);
    if (!e.Groups()) {
      for (const Tensor dy : gradients) {
        One(dx, module > static_cast<int>(first), dy, x, static_cast<Module>(module));
        ++module;
      }
      return;
    }
    bool lora = false;
    for (size_t i = 0; i < gradients.size(); ++i) {
      lora = lora || spec.Targets(static_cast<Module>(module + static_cast<int>(i)));
    }
    if (e.IsNone(dx) && !lora) return;
    e.LinearGroupBackward(dx, gradients, lora ? x : e.None(), &b.u[module], b.layer, first);
  }
};

// `d` holds the gradient of the block's output and then of its input. In the lowest block it stops
// where no adapter is left below. `rebuild`: forward kept the outputs of products only.
template <class Exec>
void BackwardBlock(Exec& e, const ModelConfig& model, const TrainSpec& spec, const Block<Exec>& b,
                   bool rebuild, typename Exec::Tensor d) {
  using Tensor = typename Exec::Tensor;
  const int32_t layer = b.layer;
  const BackwardProducts<Exec> products{e, spec, b};
  const bool below = layer > 0;
  const bool need_qkv =
      below || products.Targets({Module::kQ, Module::kK, Module::kV, Module::kQkv});
  const bool need_attention = need_qkv || spec.Targets(Module::kO);
  const bool need_gate_up =
      need_attention || products.Targets({Module::kGate, Module::kUp, Module::kGateUp});
  const auto grad = [&](Slot slot, int64_t width) {
    return e.Act({slot, Walk::kKept, layer}, width);
  };
  // The gradient of what the product made: that of the sum, through the norm between them.
  const auto before = [&](Slot slot, Tensor raw, Tensor rstd, Norm norm) {
    if (e.IsNone(raw)) return d;
    const Tensor dy = grad(slot, model.hidden_size);
    e.RmsNormBackward(dy, false, d, raw, rstd, norm, layer);
    return dy;
  };
  const Tensor d_mlp = before(Slot::kDMlp, b.mlp, b.rstd_mlp, Norm::kMlp);
  if (rebuild && spec.Targets(Module::kDown)) e.Gated(b.act, b.gate, b.up);
  const Tensor dact = need_gate_up ? grad(Slot::kDAct, model.intermediate_size) : e.None();
  products.One(dact, false, d_mlp, b.act, Module::kDown);
  if (!need_gate_up) return;
  e.GatedBackward(b.gate, b.up, dact, b.gate, b.up);
  if (rebuild) e.RmsNorm(b.h2, b.rstd2, b.x2, Norm::kPost, layer);
  const Tensor dh2 = need_attention ? grad(Slot::kDH2, model.hidden_size) : e.None();
  if (model.fused) {
    products.One(dh2, false, b.gate, b.h2, Module::kGateUp);
  } else {
    products.Group(dh2, {b.gate, Up(e, model, b)}, b.h2, Module::kGate);
  }
  if (!need_attention) return;
  e.RmsNormBackward(d, true, dh2, b.x2, b.rstd2, Norm::kPost, layer);

  const Tensor d_attn = before(Slot::kDAttn, b.attn, b.rstd_attn, Norm::kAttention);
  const Tensor d_o = need_qkv ? grad(Slot::kDO, model.QueryWidth()) : e.None();
  products.One(d_o, false, d_attn, b.o, Module::kO);
  if (!need_qkv) return;
  if (rebuild && model.qk_norm) {
    e.RmsNorm(b.q, b.rstd_q, b.q_raw, Norm::kQuery, layer);
    e.RmsNorm(b.k, b.rstd_k, b.k_raw, Norm::kKey, layer);
    TurnQueriesAndKeys(e, model, b.q, b.k, layer, false);
  }
  const Tensor dq = grad(Slot::kDQ, model.QueryWidth());
  const Tensor dk = grad(Slot::kDK, model.KeyValueWidth());
  const Tensor dv = grad(Slot::kDV, model.KeyValueWidth());
  e.AttentionBackward(dq, dk, dv, d_o, b.o, b.lse, b.q, b.k, b.v, layer);
  TurnQueriesAndKeys(e, model, dq, dk, layer, true);
  if (model.qk_norm) {
    e.RmsNormBackward(dq, false, dq, b.q_raw, b.rstd_q, Norm::kQuery, layer);
    e.RmsNormBackward(dk, false, dk, b.k_raw, b.rstd_k, Norm::kKey, layer);
  }
  if (rebuild) e.RmsNorm(b.h1, b.rstd1, b.x, Norm::kInput, layer);
  const Tensor dh1 = below ? grad(Slot::kDH1, model.hidden_size) : e.None();
  if (model.fused) {
    const Tensor dqkv = grad(Slot::kDQkv, model.QueryWidth() + 2 * model.KeyValueWidth());
    e.Join(dqkv, dq, dk, dv);
    products.One(dh1, false, dqkv, b.h1, Module::kQkv);
  } else {
    products.Group(dh1, {dq, dk, dv}, b.h1, Module::kQ);
  }
  if (below) e.RmsNormBackward(d, true, dh1, b.x, b.rstd1, Norm::kInput, layer);
}

// Forward, loss and backward of one micro-batch; adds to the adapters' gradients and to the loss.
template <class Exec>
void TrainMicroBatch(Exec& e, const ModelConfig& model, const TrainSpec& spec) {
  using Tensor = typename Exec::Tensor;
  const auto top = static_cast<int32_t>(model.layers) - 1;
  const auto x = [&](int32_t layer) {
    return e.Act({Slot::kX, Walk::kKept, layer}, model.hidden_size);
  };
  const auto kept = [&](int32_t layer) {
    const Keep keep = KeepOf(spec.recompute);
    return layer >= top - spec.keep_blocks && keep == Keep::kInput ? Keep::kOutputs : keep;
  };
  const bool offloads = e.Offloads();
  // What is offloaded is another tensor in forward than in backward.
  const auto forward_x = [&](int32_t layer) {
    const Walk walk = offloads && layer < top ? Walk::kPassing : Walk::kKept;
    return e.Act({Slot::kX, walk, layer}, model.hidden_size);
  };

  e.Phase(Phase::kForward, 0);
  e.Embedding(forward_x(0));
  for (int32_t layer = 0; layer <= top; ++layer) {
    if (e.Stopped()) return;
    e.Phase(Phase::kForward, layer);
    const Tensor next = forward_x(layer + 1);
    Block<Exec> block = NameBlock(e, model, spec, layer, kept(layer));
    block.x = forward_x(layer);
    const bool out = offloads && layer < top;
    if (out) e.Offload(block.x, layer);
    ForwardBlock(e, model, block, next);
    if (out) e.OffloadDone(block.x);
  }

  if (e.Stopped()) return;
  e.Phase(Phase::kHead, top);
  const Tensor out = x(top + 1);
  const Tensor rstd = e.Real({Slot::kRstdFinal}, 1);
  const Tensor hidden = e.Act({Slot::kFinal}, model.hidden_size);
  const Tensor d = e.Act({Slot::kGrad}, model.hidden_size);
  e.RmsNorm(hidden, rstd, out, Norm::kFinal, 0);
  e.CrossEntropy(d, hidden);
  e.RmsNormBackward(d, false, d, out, rstd, Norm::kFinal, 0);

  for (int32_t layer = top; layer >= 0; --layer) {
    if (e.Stopped()) return;
    const Block<Exec> block = NameBlock(e, model, spec, layer, Keep::kAll);
    e.Phase(kept(layer) == Keep::kInput ? Phase::kRecompute : Phase::kBackward, layer);
    if (offloads && layer < top) e.FetchDone(block.x);
    if (offloads && layer > 0) e.Fetch(x(layer - 1), layer - 1);
    if (kept(layer) == Keep::kInput) {
      ForwardBlock(e, model, block, e.None());
      // What the norm behind it reads; what the norm makes is not wanted again.
      if (model.post_norms) {
        const Tensor scratch = e.Act({Slot::kDMlp, Walk::kKept, layer}, model.hidden_size);
        Product(e, block, scratch, block.act, Module::kDown);
      }
    }
    e.Phase(Phase::kBackward, layer);
    BackwardBlock(e, model, spec, block, kept(layer) == Keep::kOutputs, d);
  }
}

// After the last micro-batch: the norm of the gradients, the update, fresh compute copies.
template <class Exec>
void OptimizerStep(Exec& e) {
  e.Phase(Phase::kOptimizer, 0);
  e.SumSquares();
  e.AdamW();
  e.ToAct();
}

// The loss of one micro-batch, nothing kept.
template <class Exec>
void EvalMicroBatch(Exec& e, const ModelConfig& model, const TrainSpec& spec) {
  using Tensor = typename Exec::Tensor;
  const auto x = [&](int32_t layer) {
    return e.Act({Slot::kX, Walk::kEval, layer}, model.hidden_size);
  };
  e.Phase(Phase::kEvaluate, 0);
  e.Embedding(x(0));
  const auto layers = static_cast<int32_t>(model.layers);
  for (int32_t layer = 0; layer < layers; ++layer) {
    if (e.Stopped()) return;
    e.Phase(Phase::kEvaluate, layer);
    ForwardBlock(e, model, NameBlock(e, model, spec, layer, Keep::kInput, true), x(layer + 1));
  }
  const Tensor rstd = e.Real({Slot::kRstdFinal, Walk::kEval}, 1);
  const Tensor hidden = e.Act({Slot::kFinal, Walk::kEval}, model.hidden_size);
  e.RmsNorm(hidden, rstd, x(layers), Norm::kFinal, 0);
  e.CrossEntropy(e.None(), hidden);
}

}  // namespace nibble::spec
