#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/model_args.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/compile_plan.h"
#include "engine/spec/rope.h"
#include "engine/spec/workspace.h"

namespace nibble::engine {

using kernels::Lane;
using spec::Module;

namespace {

constexpr int64_t kHeadRows = 64;  // logits of so many tokens at once

}  // namespace

Decoder::Decoder(Device& device, const Adapter* adapter, int64_t max_tokens, int64_t max_prompt)
    : device_(device),
      table_(device.table()),
      model_(device.model()),
      max_tokens_(max_tokens),
      max_prompt_(std::max<int64_t>(1, max_prompt)),
      adapter_(static_cast<size_t>(model_.layers * spec::kModuleCount)),
      key_cache_(static_cast<size_t>(model_.layers)),
      value_cache_(static_cast<size_t>(model_.layers)) {
  if (adapter != nullptr) {
    scale_ = adapter->config.Scale();
    rank_ = adapter->config.r;
  }
  const auto needs = [&](spec::Op op, const spec::OpShape& shape) {
    workspace_bytes_ =
        std::max(workspace_bytes_, spec::WorkspaceBytes(op, shape, device.profile()));
  };
  for (const Module module : spec::ModulesOf(model_)) {
    const spec::LinearShape shape = spec::ShapeOf(model_, module);
    needs(spec::Op::kLinearForward, {.m = max_prompt_, .k = shape.k, .n = shape.n, .r = rank_});
  }
  const spec::OpShape attention{.m = max_prompt_,
                                .heads = model_.heads,
                                .head_dim = model_.head_dim,
                                .longest_document = max_tokens_};
  needs(spec::Op::kAttentionForward, attention);
  needs(spec::Op::kAttentionDecode, attention);
  needs(spec::Op::kLogits, {.m = std::min(max_prompt_, kHeadRows),
                            .k = model_.hidden_size,
                            .vocab = model_.vocab_size});
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Make(Device& device, const Adapter* adapter,
                                                       int64_t max_tokens, int64_t max_prompt) {
  const int64_t most = spec::MostTokens(device.model(), device.profile());
  if (max_prompt > most) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("a prompt has ", max_prompt, " tokens; a GPU takes at most ", most,
                              " of this model at once, use a processor for it"));
  }
  std::unique_ptr<Decoder> decoder(new Decoder(device, adapter, max_tokens, max_prompt));
  const int64_t bytes = decoder->Place(adapter, nullptr);
  ASSIGN_OR_RETURN(decoder->region_, Region::On(device.backend(), bytes));
  RETURN_IF_ERROR(decoder->region_.Map(bytes));
  decoder->Place(adapter, decoder->region_.data());
  RETURN_IF_ERROR(decoder->Fill(adapter));
  return decoder;
}

int64_t Decoder::Place(const Adapter* adapter, std::byte* base) {
  const int64_t act = kernels::DTypeBytes(table_.act);
  const int64_t real = kernels::DTypeBytes(table_.real);
  int64_t next = 0;
  const auto take = [&](int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    std::byte* const at = base == nullptr ? nullptr : base + next;
    next += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  const auto rows = [&](int64_t width, int64_t bytes) { return take(max_prompt_ * width * bytes); };
  const int64_t hidden = model_.hidden_size;
  x_ = rows(hidden, act);
  h_ = rows(std::max(hidden, model_.QueryWidth()), act);
  qkv_ = model_.fused ? rows(model_.QueryWidth() + 2 * model_.KeyValueWidth(), act) : nullptr;
  q_ = rows(model_.QueryWidth(), act);
  k_ = rows(model_.KeyValueWidth(), act);
  v_ = rows(model_.KeyValueWidth(), act);
  o_ = rows(std::max(hidden, model_.QueryWidth()), act);
  // Fused, they are columns of one; what comes out of the gated product is dense either way.
  act_ = rows(model_.intermediate_size, act);
  gate_ = model_.fused ? rows(2 * model_.intermediate_size, act) : act_;
  up_ = model_.fused ? gate_ + model_.intermediate_size * act : rows(model_.intermediate_size, act);
  u_ = rows(std::max<int64_t>(1, rank_), act);
  rstd_ = rows(model_.heads, real);
  lse_ = rows(model_.heads, real);
  ids_ = rows(1, 4);
  places_ = rows(1, 4);
  starts_ = take(8);
  rope_ = take(4 * spec::RopeTableElements(model_, max_tokens_));
  head_ = take(std::min(max_prompt_, kHeadRows) * model_.vocab_size * 4);
  workspace_ = take(workspace_bytes_);
  for (size_t i = 0; i < key_cache_.size(); ++i) {
    key_cache_[i] = take(max_tokens_ * model_.KeyValueWidth() * act);
    value_cache_[i] = take(max_tokens_ * model_.KeyValueWidth() * act);
  }
  if (adapter == nullptr) return next;
  size_t largest = 0;
  for (const AdapterPair& pair : adapter->pairs) {
    Pair& mine = adapter_[static_cast<size_t>(pair.layer * spec::kModuleCount +
                                              static_cast<int>(pair.module))];
    mine.present = true;
    mine.a = take(static_cast<int64_t>(pair.a.size()) * act);
    mine.b = take(static_cast<int64_t>(pair.b.size()) * act);
    largest = std::max({largest, pair.a.size(), pair.b.size()});
  }
  converted_ = take(static_cast<int64_t>(largest) * 4);
  return next;
}

absl::Status Decoder::Fill(const Adapter* adapter) {
  kernels::Backend& backend = device_.backend();
  const std::vector<float> rope = spec::RopeTable(model_, max_tokens_);
  backend.CopyIn(Lane::kCompute, rope_, rope.data(), static_cast<int64_t>(rope.size() * 4));
  const auto convert = [&](const std::vector<float>& from, Buffer to) {
    const auto count = static_cast<int64_t>(from.size());
    backend.CopyIn(Lane::kCompute, converted_, from.data(), count * 4);
    table_.to_act(&backend.context(), to, converted_, count);
  };
  if (adapter != nullptr) {
    for (const AdapterPair& pair : adapter->pairs) {
      const Pair& mine = adapter_[static_cast<size_t>(pair.layer * spec::kModuleCount +
                                                      static_cast<int>(pair.module))];
      convert(pair.a, mine.a);
      convert(pair.b, mine.b);
    }
  }
  backend.Synchronize();
  return FaultStatus(backend);
}

std::span<const float> Decoder::Feed(std::span<const int32_t> ids) {
  CHECK(!ids.empty() && (ids.size() == 1 || length_ == 0));
  Blocks(ids);
  return Head(static_cast<int64_t>(ids.size()) - 1, 1);
}

std::vector<float> Decoder::AllLogits(std::span<const int32_t> ids) {
  Reset();
  Blocks(ids);
  const std::span<const float> logits = Head(0, static_cast<int64_t>(ids.size()));
  return {logits.begin(), logits.end()};
}

void Decoder::Blocks(std::span<const int32_t> ids) {
  const auto m = static_cast<int64_t>(ids.size());
  CHECK(m <= max_prompt_ && length_ + m <= max_tokens_);
  kernels::Backend& backend = device_.backend();
  kernels::Context& context = backend.context();
  context.workspace = workspace_;
  context.workspace_bytes = workspace_bytes_;
  if (length_ == 0) first_row_ = spec::RopeFirstRow(model_, m);
  positions_.resize(ids.size());
  std::iota(positions_.begin(), positions_.end(), first_row_ + static_cast<int32_t>(length_));
  const int32_t starts[] = {0, static_cast<int32_t>(m)};
  backend.CopyIn(Lane::kCompute, ids_, ids.data(), m * 4);
  backend.CopyIn(Lane::kCompute, places_, positions_.data(), m * 4);
  backend.CopyIn(Lane::kCompute, starts_, starts, sizeof starts);

  const int64_t hidden = model_.hidden_size;
  table_.embedding_forward(&context, x_, reinterpret_cast<const int32_t*>(ids_), device_.view().embedding, m,
                           hidden, EmbeddingScale(model_, table_.act));
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
    Norm(h_, x_, of.input_norm, m, hidden);
    Project(layer, m);
    Attend(layer, m);
    Linear(h_, o_, layer, Module::kO, m);
    if (model_.post_norms) Norm(h_, h_, of.attention_norm, m, hidden);
    table_.add(&context, x_, x_, h_, m * hidden);
    Norm(h_, x_, of.post_norm, m, hidden);
    if (model_.fused) {
      Linear(gate_, h_, layer, Module::kGateUp, m);
    } else {
      Linear(gate_, h_, layer, Module::kGate, m);
      Linear(up_, h_, layer, Module::kUp, m);
    }
    table_.gated_forward(&context, act_, gate_, up_,
                         {.rows = m,
                          .width = model_.intermediate_size,
                          .stride = model_.intermediate_size * (model_.fused ? 2 : 1),
                          .activation = ActivationOf(model_)});
    Linear(h_, act_, layer, Module::kDown, m);
    if (model_.post_norms) Norm(h_, h_, of.mlp_norm, m, hidden);
    table_.add(&context, x_, x_, h_, m * hidden);
  }
  length_ += m;
}

// h's into q, k and v.
void Decoder::Project(int64_t layer, int64_t m) {
  if (model_.fused) {
    Linear(qkv_, h_, layer, Module::kQkv, m);
    return table_.split_columns(
        &device_.backend().context(), qkv_,
        {.rows = m,
         .width = {model_.QueryWidth(), model_.KeyValueWidth(), model_.KeyValueWidth()},
         .part = {q_, k_, v_}});
  }
  Linear(q_, h_, layer, Module::kQ, m);
  Linear(k_, h_, layer, Module::kK, m);
  Linear(v_, h_, layer, Module::kV, m);
}

// q, k and v hold this layer's projections; the result is in o.
void Decoder::Attend(int64_t layer, int64_t m) {
  kernels::Context& context = device_.backend().context();
  const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
  const auto* positions = reinterpret_cast<const int32_t*>(places_);
  const auto* rope = reinterpret_cast<const float*>(rope_) + spec::RopeTableBegin(model_, layer, max_tokens_);
  if (model_.qk_norm) {
    Norm(q_, q_, of.q_norm, m * model_.heads, model_.head_dim);
    Norm(k_, k_, of.k_norm, m * model_.kv_heads, model_.head_dim);
  }
  const int64_t width = model_.head_dim, rotary = model_.RotaryWidth();
  if (model_.TurnsIn(layer)) {
    table_.rope(&context, q_, positions, rope, m, model_.heads, width, rotary, false);
    table_.rope(&context, k_, positions, rope, m, model_.kv_heads, width, rotary, false);
  }
  const int64_t row = model_.KeyValueWidth() * kernels::DTypeBytes(table_.act);
  const Buffer keys = key_cache_[static_cast<size_t>(layer)];
  const Buffer values = value_cache_[static_cast<size_t>(layer)];
  kernels::Backend& backend = device_.backend();
  backend.CopyWithin(Lane::kCompute, keys + length_ * row, k_, m * row);
  backend.CopyWithin(Lane::kCompute, values + length_ * row, v_, m * row);
  kernels::AttentionArgs args = AttentionArgsOf(model_, layer);
  args.m = m;
  args.starts = reinterpret_cast<const int32_t*>(starts_);
  args.documents = 1;
  if (m == 1) {
    table_.attention_decode(&context, o_, q_, keys, values, length_ + 1,
                            args);
  } else {
    table_.attention_forward(&context, o_, lse_, q_, k_, v_,
                             args);
  }
}

void Decoder::Linear(Buffer y, Buffer x, int64_t layer, Module module, int64_t m) {
  const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
  const int index = static_cast<int>(module);
  const Pair& pair = adapter_[static_cast<size_t>(layer * spec::kModuleCount + index)];
  const kernels::LoraArgs lora{.r = rank_,
                               .scale = static_cast<float>(scale_),
                               .a = pair.a,
                               .b = pair.b,
                               .u = u_};
  const kernels::LinearArgs args{.m = m,
                                 .w = of.linear[index],
                                 .bias = of.bias[index],
                                 .lora = pair.present ? &lora : nullptr};
  table_.linear_forward(&device_.backend().context(), y, x, args);
}

void Decoder::Norm(Buffer y, Buffer x, kernels::ParamView weight, int64_t rows,
                   int64_t dim) {
  table_.rmsnorm_forward(&device_.backend().context(), y, rstd_, x, weight, rows, dim,
                         static_cast<float>(model_.rms_norm_eps), NormOffset(model_));
}

std::span<const float> Decoder::Head(int64_t first_row, int64_t rows) {
  kernels::Backend& backend = device_.backend();
  const std::byte* from = x_ + first_row * model_.hidden_size * kernels::DTypeBytes(table_.act);
  table_.rmsnorm_forward(&backend.context(), h_, rstd_, from, device_.view().final_norm, rows,
                         model_.hidden_size, static_cast<float>(model_.rms_norm_eps), NormOffset(model_));
  logits_.resize(static_cast<size_t>(rows * model_.vocab_size));
  const int64_t width = model_.hidden_size * kernels::DTypeBytes(table_.act);
  for (int64_t row = 0; row < rows; row += kHeadRows) {
    const int64_t count = std::min(kHeadRows, rows - row);
    table_.logits(&backend.context(), reinterpret_cast<float*>(head_), h_ + row * width, device_.view().head,
                  count, model_.hidden_size, model_.vocab_size, LogitCap(model_));
    backend.CopyOut(Lane::kCompute, logits_.data() + row * model_.vocab_size, head_,
                    count * model_.vocab_size * 4);
    backend.Synchronize();
  }
  return logits_;
}

}  // namespace nibble::engine
