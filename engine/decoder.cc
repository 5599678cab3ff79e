#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/status.h"
#include "engine/spec/workspace.h"

namespace nibble::engine {

using spec::Module;

Decoder::Decoder(Device& device, const Adapter* adapter, int64_t max_tokens, int64_t max_prompt)
    : device_(device),
      table_(device.table()),
      model_(device.model()),
      max_tokens_(max_tokens),
      max_prompt_(std::max<int64_t>(1, max_prompt)),
      adapter_(static_cast<size_t>(model_.layers * spec::kModuleCount)),
      rope_(spec::RopeTable(model_, max_tokens)) {
  const int64_t act = kernels::DTypeBytes(table_.act);
  const int64_t real = kernels::DTypeBytes(table_.real);
  if (adapter != nullptr) {
    scale_ = adapter->config.Scale();
    rank_ = adapter->config.r;
    for (const AdapterPair& pair : adapter->pairs) {
      Pair& mine = adapter_[static_cast<size_t>(pair.layer * spec::kModuleCount +
                                                static_cast<int>(pair.module))];
      const auto convert = [&](const std::vector<float>& from, Buffer& to) {
        to.resize(from.size() * static_cast<size_t>(act));
        table_.to_act(&device_.context(), to.data(), from.data(),
                      static_cast<int64_t>(from.size()));
      };
      mine.present = true;
      convert(pair.a, mine.a);
      convert(pair.b, mine.b);
    }
  }
  const auto buffer = [&](int64_t width, int64_t bytes) {
    return Buffer(static_cast<size_t>(max_prompt_ * width * bytes));
  };
  const int64_t hidden = model_.hidden_size;
  x_ = buffer(hidden, act);
  h_ = buffer(std::max(hidden, model_.QueryWidth()), act);
  q_ = buffer(model_.QueryWidth(), act);
  k_ = buffer(model_.KeyValueWidth(), act);
  v_ = buffer(model_.KeyValueWidth(), act);
  o_ = buffer(std::max(hidden, model_.QueryWidth()), act);
  gate_ = buffer(model_.intermediate_size, act);
  up_ = buffer(model_.intermediate_size, act);
  u_ = buffer(std::max<int64_t>(1, rank_), act);
  rstd_ = buffer(model_.heads, real);
  lse_ = buffer(model_.heads, real);
  for (int64_t i = 0; i < model_.layers; ++i) {
    const auto bytes = static_cast<size_t>(max_tokens_ * model_.KeyValueWidth() * act);
    key_cache_.emplace_back(bytes);
    value_cache_.emplace_back(bytes);
  }
  const spec::OpShape shape{.m = max_prompt_,
                            .k = hidden,
                            .r = rank_,
                            .head_dim = model_.head_dim,
                            .vocab = model_.vocab_size,
                            .longest_document = max_prompt_};
  int64_t workspace = 0;
  for (const spec::Op op :
       {spec::Op::kLinearForward, spec::Op::kAttentionForward, spec::Op::kCrossEntropy}) {
    workspace = std::max(workspace, spec::WorkspaceBytes(op, shape, device.profile()));
  }
  workspace_.resize(static_cast<size_t>(workspace) + 64);
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
  kernels::Context& context = device_.context();
  const auto misalignment = reinterpret_cast<uintptr_t>(workspace_.data()) % 64;
  context.workspace = workspace_.data() + (misalignment == 0 ? 0 : 64 - misalignment);
  context.workspace_bytes = static_cast<int64_t>(workspace_.size()) - 64;
  positions_.resize(ids.size());
  std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(length_));

  const int64_t hidden = model_.hidden_size;
  table_.embedding_forward(&context, x_.data(), ids.data(), device_.view().embedding, m, hidden,
                           1.0f);
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
    Norm(h_, x_, of.input_norm, m, hidden);
    Linear(q_, h_, layer, Module::kQ, m);
    Linear(k_, h_, layer, Module::kK, m);
    Linear(v_, h_, layer, Module::kV, m);
    Attend(layer, m);
    Linear(h_, o_, layer, Module::kO, m);
    table_.add(&context, x_.data(), x_.data(), h_.data(), m * hidden);
    Norm(h_, x_, of.post_norm, m, hidden);
    Linear(gate_, h_, layer, Module::kGate, m);
    Linear(up_, h_, layer, Module::kUp, m);
    table_.gated_forward(&context, gate_.data(), gate_.data(), up_.data(),
                         m * model_.intermediate_size, kernels::Activation::kSilu);
    Linear(h_, gate_, layer, Module::kDown, m);
    table_.add(&context, x_.data(), x_.data(), h_.data(), m * hidden);
  }
  length_ += m;
}

// q, k and v hold this layer's projections; the result is in o.
void Decoder::Attend(int64_t layer, int64_t m) {
  kernels::Context& context = device_.context();
  const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
  if (model_.qk_norm) {
    Norm(q_, q_, of.q_norm, m * model_.heads, model_.head_dim);
    Norm(k_, k_, of.k_norm, m * model_.kv_heads, model_.head_dim);
  }
  table_.rope(&context, q_.data(), positions_.data(), rope_.data(), m, model_.heads,
              model_.head_dim, false);
  table_.rope(&context, k_.data(), positions_.data(), rope_.data(), m, model_.kv_heads,
              model_.head_dim, false);
  const auto row = static_cast<size_t>(model_.KeyValueWidth() * kernels::DTypeBytes(table_.act));
  Buffer& keys = key_cache_[static_cast<size_t>(layer)];
  Buffer& values = value_cache_[static_cast<size_t>(layer)];
  std::memcpy(keys.data() + static_cast<size_t>(length_) * row, k_.data(),
              static_cast<size_t>(m) * row);
  std::memcpy(values.data() + static_cast<size_t>(length_) * row, v_.data(),
              static_cast<size_t>(m) * row);
  const int32_t starts[] = {0, static_cast<int32_t>(m)};
  const kernels::AttentionArgs args{.m = m,
                                    .heads = model_.heads,
                                    .kv_heads = model_.kv_heads,
                                    .head_dim = model_.head_dim,
                                    .starts = starts,
                                    .documents = 1,
                                    .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim)),
                                    .window = model_.sliding_window};
  if (m == 1) {
    table_.attention_decode(&context, o_.data(), q_.data(), keys.data(), values.data(), length_ + 1,
                            args);
  } else {
    table_.attention_forward(&context, o_.data(), lse_.data(), q_.data(), k_.data(), v_.data(),
                             args);
  }
}

void Decoder::Linear(Buffer& y, const Buffer& x, int64_t layer, Module module, int64_t m) {
  const BaseView::Layer& of = device_.view().layers[static_cast<size_t>(layer)];
  const int index = static_cast<int>(module);
  const Pair& pair = adapter_[static_cast<size_t>(layer * spec::kModuleCount + index)];
  const kernels::LoraArgs lora{.r = rank_,
                               .scale = static_cast<float>(scale_),
                               .a = pair.a.data(),
                               .b = pair.b.data(),
                               .u = u_.data()};
  const kernels::LinearArgs args{.m = m,
                                 .w = of.linear[index],
                                 .bias = of.bias[index],
                                 .lora = pair.present ? &lora : nullptr};
  table_.linear_forward(&device_.context(), y.data(), x.data(), args);
}

void Decoder::Norm(Buffer& y, const Buffer& x, kernels::ParamView weight, int64_t rows,
                   int64_t dim) {
  table_.rmsnorm_forward(&device_.context(), y.data(), rstd_.data(), x.data(), weight, rows, dim,
                         static_cast<float>(model_.rms_norm_eps), 0.0f);
}

std::span<const float> Decoder::Head(int64_t first_row, int64_t rows) {
  const auto act = static_cast<size_t>(kernels::DTypeBytes(table_.act));
  const std::byte* from = x_.data() + static_cast<size_t>(first_row * model_.hidden_size) * act;
  table_.rmsnorm_forward(&device_.context(), h_.data(), rstd_.data(), from,
                         device_.view().final_norm, rows, model_.hidden_size,
                         static_cast<float>(model_.rms_norm_eps), 0.0f);
  logits_.resize(static_cast<size_t>(rows * model_.vocab_size));
  table_.logits(&device_.context(), logits_.data(), h_.data(), device_.view().head, rows,
                model_.hidden_size, model_.vocab_size);
  return logits_;
}

}  // namespace nibble::engine
