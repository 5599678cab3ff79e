#include "tests/oracle/rig.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "engine/model_args.h"
#include "engine/spec/rope.h"

namespace nibble::oracle {
namespace {

engine::MicroBatch BatchOf(const spec::ModelConfig& model, const Documents& documents) {
  engine::MicroBatch batch;
  batch.starts.push_back(0);
  for (const std::vector<int32_t>& ids : documents) {
    const int32_t first = spec::RopeFirstRow(model, static_cast<int64_t>(ids.size()));
    for (size_t i = 0; i < ids.size(); ++i) {
      batch.ids.push_back(ids[i]);
      batch.labels.push_back(i + 1 < ids.size() ? ids[i + 1] : -1);
      batch.positions.push_back(first + static_cast<int32_t>(i));
    }
    batch.target_tokens += static_cast<int64_t>(ids.size()) - 1;
    batch.starts.push_back(static_cast<int32_t>(batch.ids.size()));
  }
  return batch;
}

std::vector<Documents> Cut(const Documents& documents, size_t most_tokens) {
  std::vector<Documents> batches;
  size_t room = 0;
  for (const std::vector<int32_t>& ids : documents) {
    CHECK(ids.size() <= most_tokens);
    if (ids.size() > room) {
      batches.emplace_back();
      room = most_tokens;
    }
    batches.back().push_back(ids);
    room -= ids.size();
  }
  return batches;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Rig>> Rig::Open(const RigOptions& options) {
  std::unique_ptr<Rig> rig(new Rig);
  RETURN_IF_ERROR(rig->Build(options));
  return rig;
}

absl::Status Rig::Build(const RigOptions& options) {
  options_ = options;
  CHECK(options.table != nullptr && options.table->real == kernels::DType::kF32);
  engine::BaseModelOptions base;
  base.model_dir = options.model_dir;
  base.cache_dir = options.cache_dir;
  base.quant = options.quant;
  base.exact = options.table->act == kernels::DType::kF32;
  ASSIGN_OR_RETURN(base_, engine::BaseModel::Open(base));
  view_ = base_->view();

  spec::TrainSpec spec;
  engine::Adapter adapter;
  if (!options.adapter_dir.empty()) {
    ASSIGN_OR_RETURN(adapter, engine::ImportAdapter(options.adapter_dir, model()));
    spec.lora_r = adapter.config.r;
    spec.lora_alpha = adapter.config.alpha;
    spec.use_rslora = adapter.config.use_rslora;
    spec.target_modules = adapter.config.target_modules;
  }
  spec.lora_dropout = 0;
  spec.quant = options.quant;
  spec.sequence_len = options.tokens;
  spec.max_grad_norm = options.max_grad_norm;
  spec.gradient_accumulation_steps = 256;  // room for that many parts of a step
  ASSIGN_OR_RETURN(spec_, spec::ResolveTrainSpec(spec, model()));

  spec::DeviceProfile profile;
  profile.act_bytes = static_cast<int32_t>(kernels::DTypeBytes(options.table->act));
  ASSIGN_OR_RETURN(plan_, spec::CompileForEngine(model(), spec_, profile));
  ASSIGN_OR_RETURN(persistent_, engine::Region::Reserve(plan_.memory.persistent_bytes));
  ASSIGN_OR_RETURN(step_, engine::Region::Reserve(plan_.memory.step_bytes));
  RETURN_IF_ERROR(persistent_.Map(plan_.memory.persistent_bytes));
  RETURN_IF_ERROR(step_.Map(plan_.memory.step_bytes));
  const std::vector<float> rope = spec::RopeTable(model(), spec_.sequence_len);
  std::memcpy(persistent_.data() + plan_.persistent.rope, rope.data(), rope.size() * sizeof(float));
  backend_ = kernels::MakeHostBackend(*options.table, 1);
  executor_ = std::make_unique<engine::KernelExecutor>(*backend_, *options.table, view_, model(), spec_,
                                                       plan_, persistent_.data());
  executor_->set_step_region(step_.data());
  engine::InitAdapters(plan_, spec_, options.table->real, persistent_.data() + plan_.persistent.master);
  ImportWeights(adapter);
  executor_->RefreshCompute();
  return absl::OkStatus();
}

void Rig::ImportWeights(const engine::Adapter& adapter) {
  float* master = reinterpret_cast<float*>(persistent_.data() + plan_.persistent.master);
  for (const engine::AdapterPair& pair : adapter.pairs) {
    const spec::AdapterMatrix* matrix =
        plan_.adapters.Find(static_cast<int32_t>(pair.layer), pair.module);
    CHECK(matrix != nullptr);
    std::copy(pair.a.begin(), pair.a.end(), master + matrix->a);
    std::copy(pair.b.begin(), pair.b.end(), master + matrix->b);
  }
}

std::vector<float> Rig::Logits(const Documents& documents) {
  const engine::MicroBatch batch = BatchOf(model(), documents);
  executor_->Evaluate(batch);
  // The last operation of an evaluation reads the final hidden states, so they are still there.
  const spec::TensorKey key{spec::Slot::kFinal, spec::Walk::kEval};
  const int64_t offset = plan_.tensor_offset[static_cast<size_t>(key.Index(model().layers))];
  CHECK(offset >= 0);
  // Jobs of short micro-batches keep theirs beside the adapter (fused turns).
  const int64_t own = plan_.persistent.activations;
  const std::byte* const tensors = own >= 0 ? persistent_.data() + own : step_.data();
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model().vocab_size));
  std::vector<std::byte> workspace(32 << 20);
  kernels::Context context = backend_->context();
  context.workspace = workspace.data();
  context.workspace_bytes = static_cast<int64_t>(workspace.size());
  options_.table->logits(&context, logits.data(), tensors + offset, view_.head, batch.tokens(),
                         model().hidden_size, model().vocab_size, engine::LogitCap(model()));
  return logits;
}

double Rig::LossSum(const Documents& documents) {
  double sum = 0;
  for (const Documents& part : Cut(documents, static_cast<size_t>(options_.tokens))) {
    sum += executor_->Evaluate(BatchOf(model(), part));
  }
  return sum;
}

Rig::StepRow Rig::Step(const Documents& documents, double learning_rate) {
  StepRow row;
  for (const std::vector<int32_t>& ids : documents) {
    row.target_tokens += static_cast<int64_t>(ids.size()) - 1;
  }
  const double scale = 1.0 / static_cast<double>(row.target_tokens);
  ++steps_done_;
  executor_->ZeroGradients();
  double sum = 0;
  int64_t micro_batch = 0;
  for (const Documents& part : Cut(documents, static_cast<size_t>(options_.tokens))) {
    sum += executor_->Train(BatchOf(model(), part), scale, steps_done_, micro_batch++);
  }
  row.loss = sum * scale;
  row.grad_norm = executor_->Optimize(learning_rate, steps_done_, micro_batch).grad_norm;
  return row;
}

engine::Adapter Rig::TrainedAdapter() const {
  engine::Adapter adapter;
  adapter.config.r = spec_.lora_r;
  adapter.config.alpha = spec_.lora_alpha;
  adapter.config.use_rslora = spec_.use_rslora;
  adapter.config.target_modules = spec_.target_modules;
  const float* master = reinterpret_cast<const float*>(persistent_.data() + plan_.persistent.master);
  for (const spec::AdapterMatrix& matrix : plan_.adapters.matrices) {
    const float* a = master + matrix.a;
    const float* b = master + matrix.b;
    adapter.pairs.push_back({matrix.layer, matrix.module, {a, a + spec_.lora_r * matrix.in},
                             {b, b + spec_.lora_r * matrix.out}});
  }
  return adapter;
}

}  // namespace nibble::oracle
