#include "engine/testing/tiny_model.h"

#include <cstring>
#include <memory>

#include "base/status.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/rope.h"
#include "kernels/bf16.h"
#include "kernels/counter.h"
#include "kernels/nf4.h"

namespace nibble::engine::testing {

namespace {

void MakeGemma(int which, spec::ModelConfig& config) {
  config.gelu = config.unit_norms = config.scaled_embedding = true;
  if (which < 2) return;
  config.post_norms = true;
  config.qk_norm = which == 3;
  config.query_scalar = 11;
  config.sliding_window = 4;
  for (int64_t layer = 0; layer < config.layers; ++layer) config.slides.push_back(layer % 2 == 0);
  if (which == 3) {
    config.local_rope_theta = 50;
  } else {
    config.attention_soft_cap = 1.5;
    config.logit_soft_cap = 2.5;
  }
}

}  // namespace

TinyModel::TinyModel(const TinyOptions& options)
    : seed_(options.seed), weight_scale_(options.weight_scale), bf16_weights_(options.bf16_weights) {
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
  config_.fused = options.fused;
  config_.rotary_dim = options.rotary_dim;
  for (int64_t layer = 0; options.some_turn && layer < options.layers; ++layer)
    config_.turns.push_back(layer % 2 == 1);
  if (options.gemma > 0) MakeGemma(options.gemma, config_);
  FillView();
}

TinyModel::TinyModel(const spec::ModelConfig& config, spec::QuantKind quant, bool double_quant,
                     uint64_t seed)
    : config_(config), seed_(seed) {
  FillView();
  for (BaseView::Layer& layer : view_.layers) {
    for (const spec::Module module : spec::ModulesOf(config_))
      Quantize(layer.linear[static_cast<int>(module)], quant, double_quant);
  }
}

void TinyModel::Quantize(kernels::WeightView& weight, spec::QuantKind quant, bool double_quant) {
  using kernels::QuantType;
  constexpr QuantType kTypes[] = {QuantType::kNF4, QuantType::kFP4, QuantType::kINT4,
                                  QuantType::kINT8, QuantType::kBF16};
  const auto* values = static_cast<const float*>(weight.data);
  const int64_t count = weight.n * weight.k;
  weight.type = kTypes[static_cast<int>(quant)];
  std::vector<uint8_t>& codes = codes_.emplace_back(
      static_cast<size_t>(kernels::WeightBytes(weight.type, count)));
  weight.data = codes.data();
  if (weight.type == QuantType::kBF16) {
    auto* out = reinterpret_cast<kernels::BF16*>(codes.data());
    for (int64_t i = 0; i < count; ++i) out[i] = kernels::ToBF16(values[i]);
    return;
  }
  const int64_t blocks = kernels::AbsmaxCount(count, weight.block);
  std::vector<float>& absmax = arrays_.emplace_back(static_cast<size_t>(blocks));
  kernels::QuantizeTensor(values, count, weight.type, weight.block, codes.data(), absmax.data(),
                          nullptr);
  weight.code_book = kernels::CodeBook(weight.type);
  weight.absmax = absmax.data();
  if (!double_quant || weight.type == QuantType::kINT8) return;
  std::vector<uint8_t>& nested_codes = codes_.emplace_back(static_cast<size_t>(blocks));
  std::vector<float>& nested =
      arrays_.emplace_back(static_cast<size_t>(kernels::NestedCount(blocks)));
  kernels::QuantizeAbsmax(absmax.data(), blocks, nested_codes.data(), nested.data(),
                          &weight.offset);
  weight.absmax = nullptr;
  weight.absmax_codes = nested_codes.data();
  weight.nested_absmax = nested.data();
  weight.nested_map = kernels::SignedDynamicMap();
}

void TinyModel::FillView() {
  using kernels::DType;
  const auto param = [&](int64_t count, double scale, double offset = 0) {
    return kernels::ParamView{Fill(count, scale, offset), DType::kF32};
  };
  const auto norm = [&](int64_t count) { return param(count, 0.3, config_.unit_norms ? 0 : 1); };
  const auto linear = [&](int64_t n, int64_t k) {
    return kernels::WeightView{
        .type = kernels::QuantType::kF32, .n = n, .k = k, .data = Fill(n * k, weight_scale_)};
  };
  const int64_t hidden = config_.hidden_size;
  view_.layers.resize(static_cast<size_t>(config_.layers));
  for (BaseView::Layer& layer : view_.layers) {
    for (const spec::Module module : spec::ModulesOf(config_)) {
      const spec::LinearShape shape = spec::ShapeOf(config_, module);
      const int m = static_cast<int>(module);
      layer.linear[m] = linear(shape.n, shape.k);
      if (config_.qkv_bias && module <= spec::Module::kV) layer.bias[m] = param(shape.n, 0.2);
    }
    layer.input_norm = norm(hidden);
    layer.post_norm = norm(hidden);
    if (config_.qk_norm) layer.q_norm = norm(config_.head_dim);
    if (config_.qk_norm) layer.k_norm = norm(config_.head_dim);
    if (config_.post_norms) layer.attention_norm = norm(hidden);
    if (config_.post_norms) layer.mlp_norm = norm(hidden);
  }
  view_.final_norm = norm(hidden);
  view_.embedding = param(config_.vocab_size * hidden, 1);
  view_.head =
      config_.tie_word_embeddings ? view_.embedding : param(config_.vocab_size * hidden, 0.3);
}

const float* TinyModel::Fill(int64_t count, double scale, double offset) {
  std::vector<float>& values = arrays_.emplace_back(static_cast<size_t>(count));
  const uint64_t stream = stream_++;
  for (size_t i = 0; i < values.size(); ++i) {
    const double unit = kernels::CounterUniform(seed_, stream, i);
    values[i] = static_cast<float>(offset + scale * (2 * unit - 1));
    if (bf16_weights_) values[i] = kernels::ToFloat(kernels::ToBF16(values[i]));
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
    : StepRig(kernels::MakeHostBackend(table, threads), model, spec, threads, red_zone_bytes) {}

StepRig::StepRig(std::unique_ptr<kernels::Backend> backend, const TinyModel& model,
                 const spec::TrainSpec& spec, int threads, int64_t red_zone_bytes)
    : backend_(std::move(backend)), table_(backend_->table()), config_(model.config()) {
  auto resolved = spec::ResolveTrainSpec(spec, config_);
  CHECK_OK(resolved.status());
  spec_ = *resolved;
  spec::DeviceProfile profile;
  if (!backend_->is_host()) profile.backend = table_.name;
  profile.converts_head = model.view().head.type != table_.act;
  profile.threads = threads;
  profile.act_bytes = static_cast<int32_t>(kernels::DTypeBytes(table_.act));
  auto plan = spec::CompileForEngine(config_, spec_, profile, {.red_zone_bytes = red_zone_bytes});
  CHECK_OK(plan.status());
  plan_ = *std::move(plan);
  plan_.recompute.SetIn(spec_);
  persistent_ = *Region::On(*backend_, plan_.memory.PersistentRegionBytes());
  step_ = *Region::On(*backend_, plan_.memory.step_bytes);
  CHECK_OK(persistent_.Map(plan_.memory.PersistentRegionBytes()));
  CHECK_OK(step_.Map(plan_.memory.step_bytes));
  backend_->Fill(persistent_.data(), 0, persistent_.mapped_bytes());
  const std::vector<float> rope = spec::RopeTable(config_, spec_.sequence_len);
  backend_->CopyIn(kernels::Lane::kCompute, persistent_.data() + plan_.persistent.rope, rope.data(),
                   static_cast<int64_t>(rope.size() * sizeof(float)));
  view_ = PlaceModel(model);
  executor_ = std::make_unique<KernelExecutor>(*backend_, table_, view_, config_, spec_, plan_,
                                               persistent_.data());
  executor_->set_step_region(step_.data());
  CHECK(executor_->has_memory());
  InitOptimizer(*backend_, plan_, spec_, persistent_.data(), executor_->pinned());
  std::vector<std::byte> master(static_cast<size_t>(RealBytes()));
  InitAdapters(plan_, spec_, table_.real, master.data());
  backend_->CopyIn(kernels::Lane::kCompute, persistent_.data() + plan_.persistent.master,
                   master.data(), RealBytes());
  executor_->DecodeBase();
  executor_->RefreshCompute();
}

StepRig::~StepRig() {
  executor_.reset();
  for (void* array : arrays_) backend_->Release(array);
}

BaseView StepRig::PlaceModel(const TinyModel& model) {
  BaseView view = model.view();
  if (backend_->is_host()) return view;
  const auto move_bytes = [&]<typename T>(const T*& data, int64_t bytes) {
    if (data == nullptr) return;
    void* array = backend_->Allocate(bytes);
    CHECK(array != nullptr);
    backend_->CopyIn(kernels::Lane::kCompute, array, data, bytes);
    arrays_.push_back(array);
    data = static_cast<const T*>(array);
  };
  const auto move = [&](const void*& data, int64_t count) { move_bytes(data, count * 4); };
  const auto move_weight = [&](kernels::WeightView& w) {
    const int64_t blocks = kernels::AbsmaxCount(w.n * w.k, w.block);
    move_bytes(w.data, kernels::WeightBytes(w.type, w.n * w.k));
    move_bytes(w.absmax, blocks * 4);
    move_bytes(w.absmax_codes, blocks);
    move_bytes(w.nested_absmax, kernels::NestedCount(blocks) * 4);
  };
  for (BaseView::Layer& layer : view.layers) {
    for (int m = 0; m < spec::kModuleCount; ++m) {
      move_weight(layer.linear[m]);
      move(layer.bias[m].data, layer.linear[m].n);
    }
    move(layer.input_norm.data, config_.hidden_size);
    move(layer.post_norm.data, config_.hidden_size);
    move(layer.q_norm.data, config_.head_dim);
    move(layer.k_norm.data, config_.head_dim);
    move(layer.attention_norm.data, config_.hidden_size);
    move(layer.mlp_norm.data, config_.hidden_size);
  }
  move(view.final_norm.data, config_.hidden_size);
  move(view.embedding.data, config_.vocab_size * config_.hidden_size);
  move(view.head.data, config_.vocab_size * config_.hidden_size);
  return view;
}

std::vector<double> StepRig::Read(int64_t offset) const {
  std::vector<double> values(static_cast<size_t>(plan_.adapters.elements));
  const std::byte* from = persistent_.data() + offset;
  if (table_.real == kernels::DType::kF64) {
    backend_->CopyOut(kernels::Lane::kCompute, values.data(), from, RealBytes());
    CHECK(backend_->Synchronize());
    return values;
  }
  std::vector<float> real(values.size());
  backend_->CopyOut(kernels::Lane::kCompute, real.data(), from, RealBytes());
  CHECK(backend_->Synchronize());
  return {real.begin(), real.end()};
}

void StepRig::Write(int64_t offset, const std::vector<double>& values) {
  std::byte* const to = persistent_.data() + offset;
  if (table_.real == kernels::DType::kF64) {
    return backend_->CopyIn(kernels::Lane::kCompute, to, values.data(), RealBytes());
  }
  const std::vector<float> real(values.begin(), values.end());
  backend_->CopyIn(kernels::Lane::kCompute, to, real.data(), RealBytes());
}

void StepRig::WriteMaster(int64_t element, double value) {
  const int64_t bytes = kernels::DTypeBytes(table_.real);
  const auto single = static_cast<float>(value);
  const void* from = table_.real == kernels::DType::kF64 ? static_cast<const void*>(&value) : &single;
  backend_->CopyIn(kernels::Lane::kCompute,
                   persistent_.data() + plan_.persistent.master + element * bytes, from, bytes);
}

double StepRig::ReadMaster(int64_t element) const {
  return Read(plan_.persistent.master)[static_cast<size_t>(element)];
}

std::vector<double> StepRig::Gradients(const std::vector<MicroBatch>& batches, double scale) {
  executor().ZeroGradients();
  for (size_t i = 0; i < batches.size(); ++i)
    executor().Train(batches[i], scale, 1, static_cast<int64_t>(i));
  std::vector<double> gradients = Read(plan_.persistent.gradient);
  for (double& value : gradients) value /= executor().loss_scale().scale;
  return gradients;
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
