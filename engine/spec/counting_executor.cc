#include "engine/spec/counting_executor.h"

#include <algorithm>

#include "base/status.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/host_memory.h"

namespace nibble::spec {

CountingExecutor::CountingExecutor(const ModelConfig& model, const TrainSpec& spec,
                                   const DeviceProfile& profile)
    : model_(model),
      spec_(spec),
      profile_(profile),
      tokens_(int64_t{spec.micro_batch_size} * spec.sequence_len),
      real_bytes_(std::max(4, profile.act_bytes)),
      tensors_(static_cast<size_t>(TensorKey::IndexCount(model.layers))) {}

CountingExecutor::Tensor CountingExecutor::Name(const TensorKey& key, int64_t bytes_per_token) {
  const int64_t index = key.Index(model_.layers);
  CountedTensor& tensor = tensors_[static_cast<size_t>(index)];
  const int64_t size = tokens_ * bytes_per_token;
  if (tensor.size_bytes == 0) keys_.push_back(key);
  CHECK(tensor.size_bytes == 0 || tensor.size_bytes == size);
  tensor.size_bytes = size;
  return index;
}

CountingExecutor::Tensor CountingExecutor::Staged(Slot slot) {
  const TensorKey key{slot};
  const int64_t index = key.Index(model_.layers);
  CountedTensor& tensor = tensors_[static_cast<size_t>(index)];
  if (tensor.size_bytes == 0) keys_.push_back(key);
  tensor.size_bytes = 4 * (slot == Slot::kStarts ? tokens_ + 1 : tokens_);
  return index;
}

void CountingExecutor::Phase(enum Phase phase, int32_t layer) {
  phase_ = phase;
  layer_ = layer;
}

void CountingExecutor::Run(Op op, const OpShape& shape, std::initializer_list<Tensor> tensors) {
  const auto number = static_cast<int32_t>(ops_.size());
  for (const Tensor t : tensors) {
    if (IsNone(t)) continue;
    CountedTensor& tensor = tensors_[static_cast<size_t>(t)];
    if (tensor.first_use < 0) tensor.first_use = number;
    tensor.last_use = number;
  }
  ops_.push_back({phase_, layer_, WorkspaceBytes(op, shape, profile_)});
}

void CountingExecutor::Copy(Tensor x) { Run(Op::kAdd, {.m = tokens_}, {x}); }

OpShape CountingExecutor::LinearShapeOf(Module module) const {
  const LinearShape shape = ShapeOf(model_, module);
  return {.m = tokens_,
          .k = shape.k,
          .n = shape.n,
          .r = spec_.Targets(module) ? spec_.lora_r : 0,
          .tiles = spec_.base_cache == BaseCache::kAhead};
}

OpShape CountingExecutor::GroupShapeOf(Module first, size_t count, bool apart) const {
  OpShape all = LinearShapeOf(first);
  all.apart = apart;
  for (size_t i = 0; i < count; ++i) {
    const OpShape one = LinearShapeOf(static_cast<Module>(static_cast<size_t>(first) + i));
    all.group_n[all.group++] = one.n;
    all.r = std::max(all.r, one.r);
  }
  return all;
}

void CountingExecutor::Reads(int32_t layer, Module first, size_t count, bool backward) {
  ops_.back().weights = {layer, first, static_cast<int32_t>(count), backward};
}

void CountingExecutor::Embedding(Tensor out) {
  // All of the batch is staged before the first operation.
  Run(Op::kEmbedding, {.m = tokens_},
      {out, Staged(Slot::kIds), Staged(Slot::kLabels), Staged(Slot::kPositions),
       Staged(Slot::kStarts)});
}

void CountingExecutor::RmsNorm(Tensor y, Tensor rstd, Tensor x, Norm, int32_t) {
  Run(Op::kRmsNormForward, {.m = tokens_}, {y, rstd, x});
}

void CountingExecutor::RmsNormBackward(Tensor dx, bool, Tensor dy, Tensor x, Tensor rstd, Norm,
                                       int32_t) {
  Run(Op::kRmsNormBackward, {.m = tokens_}, {dx, dy, x, rstd});
}

void CountingExecutor::Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module) {
  Run(Op::kLinearForward, LinearShapeOf(module), {y, x, u});
  Reads(layer, module, 1, false);
}

void CountingExecutor::LinearBackward(Tensor dx, bool, Tensor dy, Tensor x, Tensor u, int32_t layer,
                                      Module module) {
  Run(Op::kLinearBackward, LinearShapeOf(module), {dx, dy, x, u});
  if (!IsNone(dx)) Reads(layer, module, 1, true);
}

void CountingExecutor::LinearGroup(std::initializer_list<Tensor> y, Tensor x, const Tensor* u,
                                   int32_t layer, Module first) {
  const bool apart = *y.begin() != *(y.begin() + 1);
  const Tensor none = None();
  const bool three = y.size() == 3;
  Run(Op::kLinearForward, GroupShapeOf(first, y.size(), apart),
      {x, *y.begin(), *(y.begin() + 1), three ? *(y.begin() + 2) : none, u[0], u[1], three ? u[2] : none});
  Reads(layer, first, y.size(), false);
}

void CountingExecutor::LinearGroupBackward(Tensor dx, std::initializer_list<Tensor> dy, Tensor x,
                                           const Tensor* u, int32_t layer, Module first) {
  const bool apart = *dy.begin() != *(dy.begin() + 1);
  const Tensor none = None();
  const bool three = dy.size() == 3;
  Run(Op::kLinearBackward, GroupShapeOf(first, dy.size(), apart),
      {dx, x, *dy.begin(), *(dy.begin() + 1), three ? *(dy.begin() + 2) : none, u[0], u[1],
       three ? u[2] : none});
  if (!IsNone(dx)) Reads(layer, first, dy.size(), true);
}

void CountingExecutor::Add(Tensor out, Tensor a, Tensor b) {
  Run(Op::kAdd, {.m = tokens_}, {out, a, b});
}

void CountingExecutor::Rope(Tensor x, int64_t, int32_t, bool) {
  Run(Op::kRope, {.m = tokens_}, {x, Staged(Slot::kPositions)});
}

void CountingExecutor::Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, int32_t) {
  Run(Op::kAttentionForward,
      {.m = tokens_,
       .heads = model_.heads,
       .head_dim = model_.head_dim,
       .longest_document = spec_.sequence_len},
      {out, lse, q, k, v, Staged(Slot::kStarts)});
}

void CountingExecutor::AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                         Tensor q, Tensor k, Tensor v, int32_t) {
  Run(Op::kAttentionBackward,
      {.m = tokens_,
       .heads = model_.heads,
       .kv_heads = model_.kv_heads,
       .head_dim = model_.head_dim,
       .longest_document = spec_.sequence_len},
      {dq, dk, dv, dout, out, lse, q, k, v, Staged(Slot::kStarts)});
}

void CountingExecutor::Split(Tensor q, Tensor k, Tensor v, Tensor all) {
  Run(Op::kColumns, {.m = tokens_}, {q, k, v, all});
}

void CountingExecutor::Join(Tensor all, Tensor q, Tensor k, Tensor v) {
  Run(Op::kColumns, {.m = tokens_}, {all, q, k, v});
}

void CountingExecutor::Gated(Tensor out, Tensor gate, Tensor up) {
  Run(Op::kGatedForward, {.m = tokens_}, {out, gate, up});
}

void CountingExecutor::GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate,
                                     Tensor up) {
  Run(Op::kGatedBackward, {.m = tokens_}, {dgate, dup, dout, gate, up});
}

void CountingExecutor::CrossEntropy(Tensor dh, Tensor h) {
  Run(Op::kCrossEntropy, {.m = tokens_, .k = model_.hidden_size, .vocab = model_.vocab_size},
      {dh, h, Staged(Slot::kLabels)});
}

// Copies: they need their tensor and nothing else.
void CountingExecutor::Offload(Tensor x, int32_t) { Copy(x); }
void CountingExecutor::OffloadDone(Tensor x) { Copy(x); }
void CountingExecutor::Fetch(Tensor x, int32_t) { Copy(x); }
void CountingExecutor::FetchDone(Tensor x) { Copy(x); }

void CountingExecutor::SumSquares() { Run(Op::kSumSquares, {}, {}); }
void CountingExecutor::AdamW() {
  Run(Op::kAdamW, {}, {});
  if (!Paged(spec_, profile_)) return;
  // Two chunks: one is worked on while the other travels.
  ops_.back().workspace_bytes += 2 * ChunkOf(spec_, LayoutAdapters(model_, spec_).elements).bytes;
}
void CountingExecutor::ToAct() { Run(Op::kToAct, {}, {}); }

}  // namespace nibble::spec
