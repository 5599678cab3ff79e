#include "engine/spec/step_program.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/status.h"
#include "engine/spec/step.h"

namespace nibble::spec {
namespace {

// Where a product stands in the longest step there is: all modules forward from the lowest block up; then,
// from the highest down, those of the repeated forward and those of the backward.
class Places {
 public:
  explicit Places(int64_t layers) : layers_(static_cast<int32_t>(layers)) {}

  int32_t Forward(int32_t layer, Module module) const {
    return layer * kModuleCount + static_cast<int32_t>(module);
  }
  int32_t Repeated(int32_t layer, Module module) const {
    return Down(layer) + static_cast<int32_t>(module);
  }
  int32_t Backward(int32_t layer, Module module) const {
    constexpr std::array<Module, kModuleCount> kOrder = {
        Module::kDown, Module::kGateUp, Module::kGate, Module::kUp, Module::kO,
        Module::kQkv,  Module::kQ,      Module::kK,    Module::kV};
    int32_t at = 0;
    while (kOrder[static_cast<size_t>(at)] != module) ++at;
    return Down(layer) + kModuleCount + at;
  }

 private:
  int32_t Down(int32_t layer) const { return kModuleCount * (layers_ + 2 * (layers_ - 1 - layer)); }

  const int32_t layers_;
};

// An Executor (step.h) whose tensors are their keys' indexes.
class Recorder {
 public:
  using Tensor = int32_t;

  explicit Recorder(const ModelConfig& model) : layers_(model.layers), places_(model.layers) {}
  StepProgram Take() { return std::move(program_); }

  Tensor None() const { return -1; }
  bool IsNone(Tensor t) const { return t < 0; }
  Tensor Act(const TensorKey& key, int64_t) const { return static_cast<Tensor>(key.Index(layers_)); }
  Tensor Real(const TensorKey& key, int64_t) const { return static_cast<Tensor>(key.Index(layers_)); }
  void Phase(enum Phase phase, int32_t) { phase_ = phase; }
  bool Offloads() const { return false; }
  bool Groups() const { return false; }
  Tensor Column(Tensor t, int64_t) const { return t; }
  bool Stopped() const { return false; }
  void LinearGroup(std::initializer_list<Tensor>, Tensor, const Tensor*, int32_t, Module) {}
  void LinearGroupBackward(Tensor, std::initializer_list<Tensor>, Tensor, const Tensor*, int32_t, Module) {}
  void Offload(Tensor, int32_t) {}
  void OffloadDone(Tensor) {}
  void Fetch(Tensor, int32_t) {}
  void FetchDone(Tensor) {}

  void Embedding(Tensor out) { Note(StepOpKind::kEmbedding, {out}); }
  void RmsNorm(Tensor y, Tensor rstd, Tensor x, Norm norm, int32_t layer) {
    StepOp& op = Note(StepOpKind::kRmsNorm, {y, rstd, x});
    op.norm = norm;
    op.layer = layer;
  }
  void RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd, Norm norm,
                       int32_t layer) {
    StepOp& op = Note(StepOpKind::kRmsNormBackward, {dx, dy, x, rstd});
    op.flag = accumulate;
    op.norm = norm;
    op.layer = layer;
  }
  void Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module) {
    StepOp& op = Note(StepOpKind::kLinear, {y, x, u});
    op.layer = layer;
    op.module = module;
    Place(op, phase_ == Phase::kForward ? places_.Forward(layer, module) : places_.Repeated(layer, module));
  }
  void LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u, int32_t layer,
                      Module module) {
    StepOp& op = Note(StepOpKind::kLinearBackward, {dx, dy, x, u});
    op.flag = accumulate;
    op.layer = layer;
    op.module = module;
    Place(op, places_.Backward(layer, module));
  }
  void Add(Tensor out, Tensor a, Tensor b) { Note(StepOpKind::kAdd, {out, a, b}); }
  void Rope(Tensor x, int64_t heads, int32_t layer, bool inverse) {
    StepOp& op = Note(StepOpKind::kRope, {x});
    op.layer = layer;
    op.heads = static_cast<int32_t>(heads);
    op.flag = inverse;
  }
  void Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, int32_t layer) {
    Note(StepOpKind::kAttention, {out, lse, q, k, v}).layer = layer;
  }
  void AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                         Tensor k, Tensor v, int32_t layer) {
    Note(StepOpKind::kAttentionBackward, {dq, dk, dv, dout, out, lse, q, k, v}).layer = layer;
  }
  void Split(Tensor q, Tensor k, Tensor v, Tensor all) { Note(StepOpKind::kSplit, {q, k, v, all}); }
  void Join(Tensor all, Tensor q, Tensor k, Tensor v) { Note(StepOpKind::kJoin, {all, q, k, v}); }
  void Gated(Tensor out, Tensor gate, Tensor up) { Note(StepOpKind::kGated, {out, gate, up}); }
  void GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
    Note(StepOpKind::kGatedBackward, {dgate, dup, dout, gate, up});
  }
  void CrossEntropy(Tensor dh, Tensor h) { Note(StepOpKind::kCrossEntropy, {dh, h}); }

 private:
  StepOp& Note(StepOpKind kind, std::initializer_list<Tensor> tensors) {
    StepOp& op = program_.emplace_back();
    op.kind = kind;
    op.tensors.fill(-1);
    std::copy(tensors.begin(), tensors.end(), op.tensors.begin());
    return op;
  }
  void Place(StepOp& op, int32_t place) {
    CHECK(place > last_place_);
    op.place = last_place_ = place;
  }

  const int64_t layers_;
  const Places places_;
  enum Phase phase_ = Phase::kForward;
  int32_t last_place_ = -1;
  StepProgram program_;
};

}  // namespace

StepProgram RecordStep(const ModelConfig& model, const TrainSpec& spec) {
  Recorder recorder(model);
  TrainMicroBatch(recorder, model, spec);
  return recorder.Take();
}

}  // namespace nibble::spec
