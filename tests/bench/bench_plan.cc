// nibble-bench-plan: processor time of one memory plan of the 70B shape (80 layers) per recompute policy,
// as JSON lines. The best of several, since other work on the machine only ever adds.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "base/status.h"
#include "engine/spec/memory_plan.h"

namespace nibble::bench {
namespace {

constexpr int kRounds = 15;

double ProcessorMs() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

void Run() {
  spec::ModelConfig model;
  model.model_type = "llama";
  model.hidden_size = 8192;
  model.intermediate_size = 28672;
  model.layers = 80;
  model.heads = 64;
  model.kv_heads = 8;
  model.head_dim = 128;
  model.vocab_size = 32000;
  model.max_positions = 4096;
  spec::DeviceProfile profile;
  profile.threads = 2;
  for (const spec::Recompute recompute :
       {spec::Recompute::kNone, spec::Recompute::kKeepGemmOutputs, spec::Recompute::kFull}) {
    const auto spec = spec::ResolveTrainSpec({.sequence_len = 2048, .recompute = recompute}, model);
    CHECK_OK(spec.status());
    double best_ms = std::numeric_limits<double>::infinity();
    size_t buffers = 0;
    for (int i = 0; i < kRounds; ++i) {
      const double began_ms = ProcessorMs();
      const auto plan = spec::CompilePlan(model, *spec, profile);
      best_ms = std::min(best_ms, ProcessorMs() - began_ms);
      CHECK_OK(plan.status());
      buffers = plan->buffers.size();
    }
    const auto name = spec::RecomputeName(recompute);
    std::printf("{\"layers\":%d,\"recompute\":\"%.*s\",\"buffers\":%zu,\"plan_ms\":%.2f}\n", 80,
                static_cast<int>(name.size()), name.data(), buffers, best_ms);
  }
}

}  // namespace
}  // namespace nibble::bench

int main() {
  nibble::bench::Run();
  return 0;
}
