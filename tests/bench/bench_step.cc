// nibble-bench-step: whole training steps at the shape of a known model, as one JSON line.
//
//   nibble-bench-step --shape 135m --seq 512 --micro-batch 1 --steps 3 --threads 2
//   nibble-bench-step --base DIR ...    the model that peer.py exported, and its tokens: losses
//   compare
//
//   --fp16 1, --accumulation N, --paged 1, --offload 1, --optimizer adamw8bit, --quant bf16, --recompute auto
//   --dropout P         0 unless given, as peers have another mask
//   --order flat        the base in flat order, not in tiles (random weights on the host; the same values)
//   --capacity BYTES    plan for a device of that memory, and refuse what does not fit it
//   --ops 1             every op is waited for: how long each kind took, of all steps but the first
//
// tokens_per_second is of the median step after one warm-up; peak_rss_bytes is VmHWM of this
// process, the base included; planned_bytes is what the memory plan says of base, persistent and
// step regions.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/device.h"
#include "engine/model/base_model.h"
#include "engine/spec/words.h"
#include "kernels/parallel.h"
#include "tests/bench/flags.h"
#include "tests/bench/planned_run.h"
#include "tests/bench/random_base.h"
#include "tests/bench/timed_backend.h"
#include "tests/kernels/bench_probe.h"

namespace nibble::bench {
namespace {

int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
  }
  return 0;
}

// Of all threads of this process: beside other programs it says more of a step than time on the wall does.
double ProcessorSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

engine::MicroBatch Batch(const std::vector<std::vector<int32_t>>& rows) {
  engine::MicroBatch batch;
  batch.starts.push_back(0);
  for (const std::vector<int32_t>& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      batch.ids.push_back(row[i]);
      batch.labels.push_back(i + 1 < row.size() ? row[i + 1] : -1);
      batch.positions.push_back(static_cast<int32_t>(i));
    }
    batch.target_tokens += static_cast<int64_t>(row.size()) - 1;
    batch.starts.push_back(static_cast<int32_t>(batch.ids.size()));
  }
  return batch;
}

// Rows of {"input_ids": [...]} as peer.py wrote them.
std::vector<std::vector<int32_t>> ReadRows(const std::string& path) {
  std::vector<std::vector<int32_t>> rows;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    rows.push_back(nlohmann::json::parse(line)["input_ids"].get<std::vector<int32_t>>());
  }
  return rows;
}

std::vector<std::vector<int32_t>> RandomRows(int64_t count, int64_t length, int64_t vocab) {
  Random random(7);
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(count));
  for (auto& row : rows) {
    for (int64_t i = 0; i < length; ++i) {
      row.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))));
    }
  }
  return rows;
}

spec::TrainSpec Recipe(const Flags& flags) {
  spec::TrainSpec spec;
  spec.lora_r = static_cast<int32_t>(Number(flags, "rank", 16));
  spec.lora_alpha = 2 * spec.lora_r;
  spec.lora_dropout = std::atof(Text(flags, "dropout", "0").c_str());
  spec.sequence_len = static_cast<int32_t>(Number(flags, "seq", 512));
  spec.micro_batch_size = static_cast<int32_t>(Number(flags, "micro-batch", 1));
  spec.gradient_accumulation_steps = static_cast<int32_t>(Number(flags, "accumulation", 1));
  spec.paged_optimizer = Number(flags, "paged", 0) != 0;
  spec.offload_activations = Number(flags, "offload", 0) != 0;
  spec.recompute =
      Number(flags, "checkpointing", 1) != 0 ? spec::Recompute::kFull : spec::Recompute::kNone;
  spec.keep_blocks = static_cast<int32_t>(Number(flags, "keep-blocks", 0));
  if (Text(flags, "optimizer", "") == "adamw8bit") spec.optimizer = spec::OptimizerKind::kAdamW8bit;
  if (Text(flags, "recompute", "") == "outputs") spec.recompute = spec::Recompute::kKeepGemmOutputs;
  const auto choice = [&](const char* name) { return Text(flags, name, "auto"); };
  const auto cache = spec::FromWord(spec::kBaseCacheWords, choice("base-cache"));
  spec.base_cache = cache.value_or(spec::BaseCache::kAuto);
  if (choice("graphs") != "auto") {
    spec.graphs = choice("graphs") == "on" ? spec::Graphs::kOn : spec::Graphs::kOff;
  }
  if (Text(flags, "recompute", "") == "auto") spec.recompute = spec::Recompute::kAuto;
  if (Text(flags, "quant", "nf4") == "bf16") spec.quant = spec::QuantKind::kBF16;
  return spec;
}

// Operations a step executes in products: the frozen weights forward, for dx, and forward again in the blocks
// that are recomputed (all but the down projection), adapters, causal attention, the head.
double StepFlops(const spec::ModelConfig& model, const spec::TrainSpec& spec) {
  const auto hidden = static_cast<double>(model.hidden_size);
  const auto ffn = static_cast<double>(model.intermediate_size);
  const auto q = static_cast<double>(model.heads * model.head_dim);
  const auto kv = static_cast<double>(model.kv_heads * model.head_dim);
  const auto length = static_cast<double>(spec.sequence_len);
  const double m = length * spec.micro_batch_size, r = spec.lora_r;
  const double down = hidden * ffn;
  const double weights = 2 * hidden * q + 2 * hidden * kv + 2 * hidden * ffn + down;
  const double widths = 2 * (hidden + q) + 2 * (hidden + kv) + 3 * (hidden + ffn);  // inputs + outputs
  const auto layers = static_cast<double>(model.layers);
  const bool full = spec.recompute == spec::Recompute::kFull;
  const double again = full ? (layers - 1 - spec.keep_blocks) / layers : 0;  // the top one never is
  const double linear = 2 * m * (2 * weights + again * (weights - down));
  const double adapters = 2 * m * r * widths * (3 + again);
  const double product = m * (length + 1) * q;  // the causal half of one product
  const double attention = product * (2 + 5 + 2 * again);
  const double head = 4 * m * hidden * static_cast<double>(model.vocab_size);
  return layers * (linear + adapters + attention) + head;
}

absl::Status Run(const Flags& flags) {
  const int64_t steps = Number(flags, "steps", 3);
  const int threads = static_cast<int>(Number(flags, "threads", 2));
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Backend> backend,
                   engine::OpenBackend(Text(flags, "device", "cpu") +
                                           (Number(flags, "fp16", 0) != 0 ? ",fp16" : ""),
                                       threads));
  TimedBackend* timed_ops = nullptr;
  if (Number(flags, "ops", 0) != 0) {
    auto around = std::make_unique<TimedBackend>(std::move(backend));
    timed_ops = around.get();
    backend = std::move(around);
  }
  const kernels::KernelTable* const table = &backend->table();
  spec::DeviceProfile profile = engine::MeasureProfile(*backend);
  profile.capacity_bytes =
      std::min(profile.capacity_bytes, Number(flags, "capacity", profile.capacity_bytes));
  const int64_t free_before_bytes = backend->free_bytes();
  const spec::TrainSpec asked = Recipe(flags);

  std::unique_ptr<engine::BaseModel> opened;
  RandomBase random_base;
  engine::BaseView view;
  spec::ModelConfig model;
  std::vector<std::vector<int32_t>> rows;
  const int64_t accumulation = asked.gradient_accumulation_steps;
  const int64_t needed = (steps + 1) * accumulation * asked.micro_batch_size;
  const std::string directory = Text(flags, "base", "");
  if (!directory.empty()) {
    engine::BaseModelOptions options;
    options.model_dir = directory;
    options.cache_dir = JoinPath(directory, "cache");
    options.threads = threads;
    ASSIGN_OR_RETURN(opened, engine::BaseModel::Open(options));
    view = opened->view();
    model = opened->config();
    rows = ReadRows(JoinPath(directory, "tokens.jsonl"));
  } else {
    model = NamedShape(Text(flags, "shape", "135m"), Number(flags, "layers", 0));
    if (model.layers == 0)
      return absl::InvalidArgumentError("--shape: see random_base.h");
    ASSIGN_OR_RETURN(random_base, RandomBase::Make(*backend, model, asked.quant, asked.double_quant, 1,
                                                   Text(flags, "order", "tiles") == "tiles"));
    view = random_base.view();
    rows = RandomRows(needed, asked.sequence_len, model.vocab_size);
  }
  if (static_cast<int64_t>(rows.size()) < needed)
    return absl::InvalidArgumentError("too few rows of tokens");

  ASSIGN_OR_RETURN(const spec::TrainSpec resolved, spec::ResolveTrainSpec(asked, model));
  ASSIGN_OR_RETURN(const spec::CompiledPlan plan, spec::CompileForEngine(model, resolved, profile));
  if (!backend->is_host() && !plan.memory.Fits(profile))
    return absl::ResourceExhaustedError("the plan is above --capacity");
  ASSIGN_OR_RETURN(const std::unique_ptr<PlannedRun> run,
                   PlannedRun::Open(*backend, view, model, resolved, plan));
  engine::KernelExecutor& executor = run->executor();
  const spec::TrainSpec& spec = run->spec();
  {  // freed before the steps: an engine reads adapters straight into their region
    std::vector<std::byte> master(
        static_cast<size_t>(plan.adapters.elements * kernels::DTypeBytes(table->real)));
    engine::InitAdapters(plan, spec, table->real, master.data());
    run->SetMaster(master.data(), static_cast<int64_t>(master.size()));
  }
  engine::InitOptimizer(*backend, plan, spec, run->persistent(), executor.pinned());
  executor.DecodeBase();
  executor.RefreshCompute();

  std::vector<double> losses, norms, seconds, processor_seconds, probes, shares;
  spec::StepPhaseTimes phases{};
  int64_t tokens = 0, updates = 0;
  const double work = StepFlops(model, spec) * static_cast<double>(accumulation);
  for (int64_t i = 0; i <= steps; ++i) {
    std::vector<engine::MicroBatch> batches;
    double count = 0;
    for (int64_t b = 0; b < accumulation; ++b) {
      const auto first = rows.begin() + (i * accumulation + b) * asked.micro_batch_size;
      batches.push_back(Batch({first, first + asked.micro_batch_size}));
      count += static_cast<double>(batches.back().target_tokens);
    }
    const double probe = kernels::bench::ProductRate(table->body, threads);
    for (const engine::MicroBatch& batch : batches) executor.Record(batch);
    executor.TakePhaseTimes();
    if (timed_ops != nullptr && i <= 1) timed_ops->Restart();
    const int64_t began_us = RealClock::Get().NowMonotonicUs();
    const double processor_began = ProcessorSeconds();
    executor.ZeroGradients();
    for (int64_t b = 0; b < accumulation; ++b)
      executor.Queue(batches[static_cast<size_t>(b)], 1.0 / count, i + 1, b);
    const auto update = executor.Optimize(spec.learning_rate, updates + 1, accumulation);
    updates += update.applied;
    RETURN_IF_ERROR(engine::FaultStatus(*backend));
    const double loss = update.loss_sum / count;
    norms.push_back(update.grad_norm);
    seconds.push_back(static_cast<double>(RealClock::Get().NowMonotonicUs() - began_us) * 1e-6);
    processor_seconds.push_back(ProcessorSeconds() - processor_began);
    losses.push_back(loss);
    tokens = batches[0].tokens() * accumulation;
    if (i == 0) continue;  // the warm-up
    const spec::StepPhaseTimes of_step = executor.TakePhaseTimes();
    for (size_t p = 0; p < phases.size(); ++p) phases[p] += of_step[p];
    probes.push_back(probe);
    shares.push_back(work / seconds.back() / probe);
  }
  std::vector<double> timed(seconds.begin() + 1, seconds.end());
  for (std::vector<double>* values : {&timed, &probes, &shares}) std::sort(values->begin(), values->end());
  nlohmann::json phase_us;
  for (size_t p = 0; p < phases.size(); ++p)
    phase_us[std::string(spec::kStepPhaseNames[p])] = phases[p] / steps;
  nlohmann::json line = {
      {"shape", directory.empty() ? Text(flags, "shape", "135m") : directory},
      {"layers", model.layers},
      {"body", table->body},
      {"threads", threads},
      {"sequence_len", spec.sequence_len},
      {"micro_batch_size", spec.micro_batch_size},
      {"recompute", std::string(spec::RecomputeName(spec.recompute))},
      {"keep_blocks", spec.keep_blocks},
      {"tokens_per_second", static_cast<double>(tokens) / timed[timed.size() / 2]},
      {"step_seconds", seconds},
      {"step_processor_seconds", processor_seconds},
      {"losses", losses},
      {"grad_norms", norms},
      {"device", Text(flags, "device", "cpu")},
      {"quant", Text(flags, "quant", "nf4")},
      {"base_bytes", plan.memory.base_bytes},
      {"fixed_bytes", backend->fixed_bytes()},
      {"planned_device_bytes", plan.memory.DeviceBytes()},
      {"planned_pinned_bytes", plan.memory.pinned_bytes},
      {"planned_recording_bytes", plan.memory.recording_bytes},
      {"recording_bytes", executor.RecordedBytes()},
      {"updates", updates},
      {"allocated_bytes", backend->is_host() ? 0 : free_before_bytes - backend->free_bytes()},
      // Context, libraries and what was allocated since; what is set aside for later counts when it is taken.
      {"driver_bytes", backend->is_host() ? 0
                                          : backend->fixed_bytes() - backend->late_bytes() +
                                                free_before_bytes - backend->free_bytes()},
      {"phase_us", phase_us},
      {"step_gflop", work * 1e-9},
      {"probe_gflops", probes[probes.size() / 2] * 1e-9},
      {"share_of_probe", shares[shares.size() / 2]},
      {"planned_bytes",
       plan.memory.base_bytes + plan.memory.persistent_bytes + plan.memory.step_bytes},
      {"peak_rss_bytes", PeakResidentBytes()},
  };
  if (timed_ops != nullptr) line["ops"] = timed_ops->Times();
  std::printf("%s\n", line.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  return nibble::bench::RunMain("nibble-bench-step", argc, argv, nibble::bench::Run);
}
