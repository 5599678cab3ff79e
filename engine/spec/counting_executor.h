// Runs the step without running it: notes every tensor's size and lifetime and every operation's
// workspace.
//
// One counter of operations runs through training, optimizer and evaluation, so what one of them
// leaves behind the next may overwrite. Used once, by one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/spec/adapter_layout.h"
#include "engine/spec/host_memory.h"
#include "engine/spec/memory_plan.h"
#include "engine/spec/step_tensors.h"
#include "engine/spec/workspace.h"

namespace nibble::spec {

struct CountedTensor {
  int64_t size_bytes = 0;
  int32_t first_use = -1;  // -1: named but never used
  int32_t last_use = -1;
};

struct CountedOp {
  Phase phase = Phase::kForward;
  int32_t layer = 0;
  int64_t workspace_bytes = 0;
  LinearUse weights;
};

class CountingExecutor {
 public:
  using Tensor = int64_t;  // index of its key

  CountingExecutor(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile);

  Tensor None() const { return -1; }
  bool IsNone(Tensor t) const { return t < 0; }
  Tensor Act(const TensorKey& key, int64_t width) { return Name(key, width * profile_.act_bytes); }
  Tensor Real(const TensorKey& key, int64_t width) { return Name(key, width * real_bytes_); }
  void Phase(enum Phase phase, int32_t layer);
  bool Offloads() const { return Offloaded(spec_, profile_); }
  bool Groups() const { return IsCuda(profile_); }
  Tensor Column(Tensor t, int64_t) const { return t; }
  bool Stopped() const { return false; }

  void Embedding(Tensor out);
  void RmsNorm(Tensor y, Tensor rstd, Tensor x, Norm norm, int32_t layer);
  void RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd, Norm norm,
                       int32_t layer);
  void Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module);
  void LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u, int32_t layer,
                      Module module);
  void LinearGroup(std::initializer_list<Tensor> y, Tensor x, const Tensor* u, int32_t layer, Module first);
  void LinearGroupBackward(Tensor dx, std::initializer_list<Tensor> dy, Tensor x, const Tensor* u,
                           int32_t layer, Module first);
  void Add(Tensor out, Tensor a, Tensor b);
  void Rope(Tensor x, int64_t heads, int32_t layer, bool inverse);
  void Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, int32_t layer);
  void AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                         Tensor k, Tensor v, int32_t layer);
  void Split(Tensor q, Tensor k, Tensor v, Tensor all);
  void Join(Tensor all, Tensor q, Tensor k, Tensor v);
  void Gated(Tensor out, Tensor gate, Tensor up);
  void GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up);
  void CrossEntropy(Tensor dh, Tensor h);
  void Offload(Tensor x, int32_t layer);
  void OffloadDone(Tensor x);
  void Fetch(Tensor x, int32_t layer);
  void FetchDone(Tensor x);
  void SumSquares();
  void AdamW();
  void ToAct();

  const std::vector<CountedTensor>& tensors() const { return tensors_; }  // by TensorKey::Index
  const std::vector<CountedOp>& ops() const { return ops_; }
  // Keys in the order in which they were first named.
  const std::vector<TensorKey>& keys() const { return keys_; }

 private:
  Tensor Name(const TensorKey& key, int64_t bytes_per_token);
  Tensor Staged(Slot slot);
  void Copy(Tensor x);
  void Run(Op op, const OpShape& shape, std::initializer_list<Tensor> tensors);
  OpShape LinearShapeOf(Module module) const;
  OpShape GroupShapeOf(Module first, size_t count, bool apart) const;
  // Of the op that was run last.
  void Reads(int32_t layer, Module first, size_t count, bool backward);

  const ModelConfig& model_;
  const TrainSpec& spec_;
  const DeviceProfile& profile_;
  const int64_t tokens_;
  const int64_t real_bytes_;
  std::vector<CountedTensor> tensors_;
  std::vector<TensorKey> keys_;
  std::vector<CountedOp> ops_;
  enum Phase phase_ = Phase::kForward;
  int32_t layer_ = 0;
};

}  // namespace nibble::spec
