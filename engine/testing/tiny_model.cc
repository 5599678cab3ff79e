#include "engine/testing/tiny_model.h"

#include <cstring>
#include <memory>

#include "base/status.h"
#include "kernels/counter.h"

namespace nibble::engine::testing {

TinyModel::TinyModel(const TinyOptions& options) : seed_(options.seed) {
  config_.model_type = "llama";
  config_.hidden_size = 24;
  config_.intermediate_size = 40;
  config_.layers = options.layers;
  config_.heads = 4;
  config_.kv_heads = 2;
  config_.head_dim = 8;
  config_.vocab_size = 31;
  config_.max_positions = 64;
  config_.qkv_bias = options.qkv_bias;
  config_.qk_norm = options.qk_norm;
  config_.sliding_window = options.sliding_window;
  using kernels::DType;
  const auto param = [&](int64_t count, double scale, double offset = 0) {
    return kernels::ParamView{Fill(count, scale, offset), DType::kF32};
  };
  const auto linear = [&](int64_t n, int64_t k) {
    return kernels::WeightView{
        .type = kernels::QuantType::kF32, .n = n, .k = k, .data = Fill(n * k, 0.3)};
  };
  const int64_t hidden = config_.hidden_size;
  const int64_t q = config_.QueryWidth();
  const int64_t kv = config_.KeyValueWidth();
  const int64_t ffn = config_.intermediate_size;
  const int64_t outputs[] = {q, kv, kv, hidden, ffn, ffn, hidden};
  const int64_t inputs[] = {hidden, hidden, hidden, q, hidden, hidden, ffn};
  view_.layers.resize(static_cast<size_t>(options.layers));
  for (BaseView::Layer& layer : view_.layers) {
    for (int m = 0; m < spec::kModuleCount; ++m) {
      layer.linear[m] = linear(outputs[m], inputs[m]);
      if (options.qkv_bias && m < 3) layer.bias[m] = param(outputs[m], 0.2);
    }
    layer.input_norm = param(hidden, 0.3, 1);
    layer.post_norm = param(hidden, 0.3, 1);
    if (options.qk_norm) layer.q_norm = param(config_.head_dim, 0.3, 1);
    if (options.qk_norm) layer.k_norm = param(config_.head_dim, 0.3, 1);
  }
  view_.final_norm = param(hidden, 0.3, 1);
  view_.embedding = param(config_.vocab_size * hidden, 1);
  view_.head = param(config_.vocab_size * hidden, 0.3);
}

const float* TinyModel::Fill(int64_t count, double scale, double offset) {
  std::vector<float>& values = arrays_.emplace_back(static_cast<size_t>(count));
  const uint64_t stream = stream_++;
  for (size_t i = 0; i < values.size(); ++i) {
    const double unit = kernels::CounterUniform(seed_, stream, i);
    values[i] = static_cast<float>(offset + scale * (2 * unit - 1));
  }
  return values.data();
}

MicroBatch RandomBatch(const std::vector<int>& documents, int64_t vocab, uint64_t seed) {
  MicroBatch batch;
  batch.starts.push_back(0);
  uint64_t index = 0;
  for (const int length : documents) {
    for (int p = 0; p < length; ++p) {
      const uint64_t bits = kernels::CounterBits(seed, 99, index++);
      batch.ids.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(vocab)));
      batch.positions.push_back(p);
      const bool labelled = p + 1 < length && (bits >> 40) % 4 != 0;
      batch.labels.push_back(
          labelled ? static_cast<int32_t>((bits >> 20) % static_cast<uint64_t>(vocab)) : -1);
      batch.target_tokens += labelled;
    }
    batch.starts.push_back(static_cast<int32_t>(batch.ids.size()));
  }
  return batch;
}

StepRig::StepRig(const kernels::KernelTable& table, const TinyModel& model,
                 const spec::TrainSpec& spec, int threads, int64_t red_zone_bytes)
    : table_(table), config_(model.config()), pool_(threads) {
  auto resolved = spec::ResolveTrainSpec(spec, config_);
  CHECK_OK(resolved.status());
  spec_ = *resolved;
  spec::DeviceProfile profile;
  profile.threads = threads;
  profile.act_bytes = static_cast<int32_t>(kernels::DTypeBytes(table.act));
  auto plan = spec::CompileForEngine(config_, spec_, profile, {.red_zone_bytes = red_zone_bytes});
  CHECK_OK(plan.status());
  plan_ = *std::move(plan);
  persistent_ = *Region::Reserve(plan_.memory.persistent_bytes);
  step_ = *Region::Reserve(plan_.memory.step_bytes);
  CHECK_OK(persistent_.Map(plan_.memory.persistent_bytes));
  CHECK_OK(step_.Map(plan_.memory.step_bytes));
  const std::vector<float> rope = spec::RopeTable(config_, spec_.sequence_len);
  std::memcpy(persistent_.data() + plan_.persistent.rope, rope.data(), rope.size() * sizeof(float));
  context_.pool = &pool_;
  executor_ = std::make_unique<KernelExecutor>(table_, context_, model.view(), config_, spec_,
                                               plan_, persistent_.data());
  executor_->set_step_region(step_.data());
  InitAdapters(plan_, spec_, table_.real, persistent_.data());
  executor_->RefreshCompute();
}

std::vector<double> StepRig::Read(int64_t offset) const {
  std::vector<double> values(static_cast<size_t>(plan_.adapters.elements));
  const std::byte* from = persistent_.data() + offset;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = table_.real == kernels::DType::kF64 ? reinterpret_cast<const double*>(from)[i]
                                                    : reinterpret_cast<const float*>(from)[i];
  }
  return values;
}

void StepRig::WriteMaster(int64_t element, double value) {
  std::byte* master = persistent_.data() + plan_.persistent.master;
  if (table_.real == kernels::DType::kF64) {
    reinterpret_cast<double*>(master)[element] = value;
  } else {
    reinterpret_cast<float*>(master)[element] = static_cast<float>(value);
  }
}

double StepRig::ReadMaster(int64_t element) const {
  return Read(plan_.persistent.master)[static_cast<size_t>(element)];
}

void StepRig::Randomize(uint64_t seed) {
  for (const spec::AdapterMatrix& matrix : plan_.adapters.matrices) {
    const auto fill = [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        WriteMaster(i, 0.4 * kernels::CounterUniform(seed, 7, static_cast<uint64_t>(i)) - 0.2);
      }
    };
    fill(matrix.a, spec_.lora_r * matrix.in);
    fill(matrix.b, spec_.lora_r * matrix.out);
  }
  executor_->RefreshCompute();
}

}  // namespace nibble::engine::testing
