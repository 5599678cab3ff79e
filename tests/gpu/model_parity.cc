// nibble-model-parity: logits, loss and gradients of a whole model on a device beside the reference's, in one
// process, as one JSON line.
//
//   nibble-model-parity [--device cuda:0] [--beside ref] [--shape demo] [--layers N] [--seq N] [--rank N]
//
// The same random NF4 base, adapters (A and B, neither zero) and two packed documents on both. Distances are
// |got - want| / |want| in the Euclidean norm: of all logits, of each adapter matrix's gradient.
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "engine/device.h"
#include "engine/model_args.h"
#include "tests/bench/flags.h"
#include "tests/bench/planned_run.h"
#include "tests/bench/random_base.h"

namespace nibble::bench {
namespace {

// Two documents of unequal length that fill the sequence between them.
engine::MicroBatch Documents(int64_t tokens, int64_t vocab) {
  Random random(11);
  engine::MicroBatch batch;
  const int64_t first = tokens / 3;
  batch.starts = {0, static_cast<int32_t>(first), static_cast<int32_t>(tokens)};
  const auto token = [&] { return static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))); };
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t start = i < first ? 0 : first, end = i < first ? first : tokens;
    batch.ids.push_back(token());
    batch.positions.push_back(static_cast<int32_t>(i - start));
    batch.labels.push_back(i + 1 < end ? token() : -1);
    batch.target_tokens += batch.labels.back() >= 0 ? 1 : 0;
  }
  return batch;
}

struct Result {
  std::string body;
  double loss = 0;  // mean
  std::vector<float> logits, gradients;
  spec::AdapterLayout layout;
};

absl::StatusOr<std::vector<float>> Read(kernels::Backend& backend, const void* from, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  backend.CopyOut(kernels::Lane::kCompute, values.data(), from, count * static_cast<int64_t>(sizeof(float)));
  if (!backend.Synchronize()) return engine::FaultStatus(backend);
  return values;
}

absl::StatusOr<Result> Compute(const std::string& device, const spec::ModelConfig& model,
                               spec::TrainSpec spec, const engine::MicroBatch& batch) {
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend, engine::OpenBackend(device, 0));
  const kernels::KernelTable& table = backend->table();
  if (table.real != kernels::DType::kF32) return absl::InvalidArgumentError(device + " has no fp32 masters");
  ASSIGN_OR_RETURN(const RandomBase base,
                   RandomBase::Make(*backend, model, spec.quant, spec.double_quant, 1));
  ASSIGN_OR_RETURN(const spec::CompiledPlan plan,
                   spec::CompileForEngine(model, spec, engine::MeasureProfile(*backend)));
  ASSIGN_OR_RETURN(const std::unique_ptr<PlannedRun> run,
                   PlannedRun::Open(*backend, base.view(), model, std::move(spec), plan));
  engine::KernelExecutor& executor = run->executor();
  std::vector<float> master(static_cast<size_t>(plan.adapters.elements));
  Random random(3);
  for (float& value : master) value = static_cast<float>(0.1 * (2 * random.Unit() - 1));
  run->SetMaster(master.data(), static_cast<int64_t>(master.size() * sizeof(float)));
  executor.DecodeBase();
  executor.RefreshCompute();
  Result result;
  result.body = table.body;
  result.layout = plan.adapters;
  // What fp16 would come down to after its first few steps, which find it.
  if (table.act == kernels::DType::kF16) executor.set_loss_scale({.scale = 4096});
  executor.ZeroGradients();
  const double targets = static_cast<double>(batch.target_tokens);
  result.loss = executor.Train(batch, 1 / targets, 1, 0) / targets;
  ASSIGN_OR_RETURN(result.gradients,
                   Read(*backend, run->persistent() + plan.persistent.gradient, plan.adapters.elements));
  for (float& value : result.gradients) value /= static_cast<float>(executor.loss_scale().scale);

  executor.Evaluate(batch);
  // The last operation of an evaluation reads the final hidden states, so they are still there.
  const spec::TensorKey key{spec::Slot::kFinal, spec::Walk::kEval};
  const int64_t offset = plan.tensor_offset[static_cast<size_t>(key.Index(model.layers))];
  const int64_t count = batch.tokens() * model.vocab_size;
  constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;
  kernels::Context context = backend->context();
  context.workspace = backend->Allocate(kWorkspaceBytes);
  context.workspace_bytes = kWorkspaceBytes;
  void* logits = backend->Allocate(count * static_cast<int64_t>(sizeof(float)));
  if (context.workspace == nullptr || logits == nullptr)
    return absl::ResourceExhaustedError("no room for logits");
  table.logits(&context, static_cast<float*>(logits), run->step() + offset, base.view().head, batch.tokens(),
               model.hidden_size, model.vocab_size, engine::LogitCap(model));
  ASSIGN_OR_RETURN(result.logits, Read(*backend, logits, count));
  backend->Release(logits);
  backend->Release(context.workspace);
  return result;
}

double Distance(const float* got, const float* want, int64_t count) {
  double off = 0, norm = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    off += d * d;
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(off / norm);  // not a number when the reference is all zero
}

absl::Status Run(const Flags& flags) {
  const spec::ModelConfig model = NamedShape(Text(flags, "shape", "demo"), Number(flags, "layers", 0));
  if (model.layers == 0) return absl::InvalidArgumentError("--shape: see random_base.h");
  spec::TrainSpec asked;
  asked.lora_r = static_cast<int32_t>(Number(flags, "rank", 16));
  asked.lora_dropout = 0;
  asked.sequence_len = static_cast<int32_t>(Number(flags, "seq", 128));
  asked.micro_batch_size = asked.gradient_accumulation_steps = 1;
  ASSIGN_OR_RETURN(const spec::TrainSpec spec, spec::ResolveTrainSpec(asked, model));
  const engine::MicroBatch batch = Documents(spec.sequence_len, model.vocab_size);
  ASSIGN_OR_RETURN(const Result got, Compute(Text(flags, "device", "cuda:0"), model, spec, batch));
  ASSIGN_OR_RETURN(const Result want, Compute(Text(flags, "beside", "ref"), model, spec, batch));
  double worst = 0;
  std::string where;
  for (const spec::AdapterMatrix& matrix : want.layout.matrices) {
    const auto compare = [&](int64_t first, int64_t count, const char* part) {
      const double distance = Distance(got.gradients.data() + first, want.gradients.data() + first, count);
      if (distance <= worst) return;  // one that is not a number counts as the worst
      worst = std::isnan(distance) ? HUGE_VAL : distance;
      where = std::to_string(matrix.layer) + "." + std::string(spec::ModuleName(matrix.module)) + part;
    };
    compare(matrix.a, spec.lora_r * matrix.in, ".A");
    compare(matrix.b, spec.lora_r * matrix.out, ".B");
  }
  const int64_t elements = want.layout.elements;
  const nlohmann::json line = {
      {"device", got.body},
      {"beside", want.body},
      {"tokens", batch.tokens()},
      {"loss", got.loss},
      {"loss_wanted", want.loss},
      {"logits_distance", Distance(got.logits.data(), want.logits.data(),
                                   static_cast<int64_t>(want.logits.size()))},
      {"gradients_distance", Distance(got.gradients.data(), want.gradients.data(), elements)},
      {"worst_gradient_distance", worst},  // infinite: null
      {"worst_gradient", where},
  };
  std::printf("%s\n", line.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  return nibble::bench::RunMain("nibble-model-parity", argc, argv, nibble::bench::Run);
}
