// nibble-bench-plan: processor time of memory plans, as JSON lines. One plan of the 70B shape (80 layers) per
// recompute policy, the best of several, since other work on the machine only ever adds; and sweeps over
// batches and lengths, all policies, each plan once.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <vector>

#include "base/status.h"
#include "engine/spec/memory_plan.h"

namespace nibble::bench {
namespace {

constexpr int kRounds = 15;
constexpr spec::Recompute kPolicies[] = {spec::Recompute::kNone, spec::Recompute::kKeepGemmOutputs,
                                         spec::Recompute::kFull};

double ProcessorMs() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

struct Shape {
  const char* name;
  int64_t hidden, intermediate, layers, kv_heads, vocab;
};
constexpr Shape k8B{"8B", 4096, 14336, 32, 8, 128256};
constexpr Shape k70B{"70B", 8192, 28672, 80, 8, 32000};

spec::ModelConfig ModelOf(const Shape& shape) {
  spec::ModelConfig model;
  model.model_type = "llama";
  model.hidden_size = shape.hidden;
  model.intermediate_size = shape.intermediate;
  model.layers = shape.layers;
  model.heads = shape.hidden / 128;
  model.kv_heads = shape.kv_heads;
  model.head_dim = 128;
  model.vocab_size = shape.vocab;
  model.max_positions = 131072;
  return model;
}

spec::DeviceProfile ProfileOf(const char* backend) {
  spec::DeviceProfile profile;
  profile.backend = backend;
  profile.threads = 2;
  return profile;
}

spec::TrainSpec SpecOf(const spec::ModelConfig& model, int32_t rows, int32_t length,
                       spec::Recompute recompute) {
  const auto spec = spec::ResolveTrainSpec({.sequence_len = length,
                                            .micro_batch_size = rows,
                                            .recompute = recompute,
                                            .base_cache = spec::BaseCache::kOff},
                                           model);
  CHECK_OK(spec.status());
  return *spec;
}

// The least of several.
template <typename Plan>
double BestMs(const Plan& plan) {
  double best_ms = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRounds; ++i) {
    const double began_ms = ProcessorMs();
    plan();
    best_ms = std::min(best_ms, ProcessorMs() - began_ms);
  }
  return best_ms;
}

// One plan with all its buffers, and its totals alone.
void OnePlan(const Shape& shape, const char* backend, spec::Recompute recompute) {
  const spec::ModelConfig model = ModelOf(shape);
  const spec::TrainSpec spec = SpecOf(model, 1, 2048, recompute);
  const spec::DeviceProfile profile = ProfileOf(backend);
  size_t buffers = 0;
  const double plan_ms = BestMs([&] {
    const auto plan = spec::CompilePlan(model, spec, profile);
    CHECK_OK(plan.status());
    buffers = plan->buffers.size();
  });
  const double totals_ms = BestMs([&] { CHECK_OK(spec::PlanTotals(model, spec, profile).status()); });
  const auto policy = spec::RecomputeName(recompute);
  std::printf("{\"shape\":\"%s\",\"layers\":%d,\"backend\":\"%s\",\"recompute\":\"%.*s\",\"buffers\":%zu,"
              "\"plan_ms\":%.2f,\"totals_ms\":%.2f}\n",
              shape.name, static_cast<int>(shape.layers), backend, static_cast<int>(policy.size()),
              policy.data(), buffers, plan_ms, totals_ms);
}

// Plans of many batches and lengths, as `nibble plan` searches for the largest that fit.
void Sweep(const Shape& shape, const char* backend) {
  const spec::ModelConfig model = ModelOf(shape);
  const spec::DeviceProfile profile = ProfileOf(backend);
  std::vector<spec::TrainSpec> specs;
  for (const spec::Recompute recompute : kPolicies) {
    for (const int32_t rows : {1, 2, 3, 4, 6, 8, 16}) {
      for (const int32_t length : {256, 512, 1024, 2048, 3008, 4096, 8192})
        specs.push_back(SpecOf(model, rows, length, recompute));
    }
  }
  std::vector<double> ms;
  const double began_ms = ProcessorMs();
  for (const spec::TrainSpec& spec : specs) {
    const double plan_ms = ProcessorMs();
    CHECK_OK(spec::PlanTotals(model, spec, profile).status());
    ms.push_back(ProcessorMs() - plan_ms);
  }
  const double all_ms = ProcessorMs() - began_ms;
  std::sort(ms.begin(), ms.end());
  std::printf("{\"sweep\":\"%s\",\"layers\":%d,\"backend\":\"%s\",\"plans\":%zu,\"plans_per_s\":%.0f,"
              "\"p50_ms\":%.2f,\"p99_ms\":%.2f}\n",
              shape.name, static_cast<int>(shape.layers), backend, specs.size(),
              1e3 * static_cast<double>(specs.size()) / all_ms, ms[ms.size() / 2], ms[ms.size() * 99 / 100]);
}

}  // namespace
}  // namespace nibble::bench

int main() {
  using namespace nibble::bench;
  for (const char* backend : {"cpu", "cuda"}) {
    for (const auto recompute : kPolicies) OnePlan(k70B, backend, recompute);
    for (const Shape& shape : {k8B, k70B}) Sweep(shape, backend);
  }
  return 0;
}
