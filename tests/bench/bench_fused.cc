// nibble-bench-fused: what one product over the rows of several jobs would gain over a product for each.
//
//   nibble-bench-fused [--shape 7b] [--threads 1] [--rounds 5]
//
// Jobs that share a base take turns by whole steps, and each decodes every 4-bit weight anew; a fused turn
// (engine/fused_turn.h) decodes a tile once for the rows of all. Here: the frozen product alone, forward
// and the gradient of its input, of `jobs` parts of `rows` rows in one call, against as many calls,
// per linear of one layer; adapters stay each job's own and cost the same either way. Processor
// time, the best of several rounds taken in turn; and whether every row has the same bits either way.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "engine/device.h"
#include "engine/spec/workspace.h"
#include "kernels/parallel.h"
#include "tests/bench/flags.h"
#include "tests/bench/random_base.h"

namespace nibble::bench {
namespace {

double ProcessorSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// One linear of one shape: both ways, forward or backward.
class Case {
 public:
  Case(const kernels::KernelTable& table, const spec::DeviceProfile& profile, const kernels::WeightView& w,
       int threads, int64_t jobs, int64_t rows, bool backward)
      : table_(table), pool_(threads), w_(w), jobs_(jobs), rows_(rows), backward_(backward) {
    const spec::OpShape shape{.m = rows, .k = w.k, .n = w.n};
    workspace_.resize(static_cast<size_t>(spec::WorkspaceBytes(spec::Op::kLinearForward, shape, profile) +
                                          (jobs - 1) * spec::LinearPartBytes(shape, profile)));
    context_.workspace = workspace_.data();
    context_.workspace_bytes = static_cast<int64_t>(workspace_.size());
    context_.pool = threads > 1 ? &pool_ : nullptr;
    in_width_ = backward ? w.n : w.k;
    out_width_ = backward ? w.k : w.n;
    Random random(3);
    in_.resize(static_cast<size_t>(jobs * rows * in_width_));
    for (uint16_t& value : in_) value = static_cast<uint16_t>(0x3C00 | (random.Below(1 << 16) & 0x80FF));
    apart_.resize(static_cast<size_t>(jobs * rows * out_width_));
    fused_.resize(apart_.size());
  }

  void Apart() {
    for (int64_t job = 0; job < jobs_; ++job) {
      const kernels::LinearPart part = Part(apart_, job);
      if (backward_) {
        table_.linear_backward(&context_, part.out, false, part.in, nullptr, part.args);
      } else {
        table_.linear_forward(&context_, part.out, part.in, part.args);
      }
    }
  }
  void Fused() {
    std::vector<kernels::LinearPart> parts;
    for (int64_t job = 0; job < jobs_; ++job) parts.push_back(Part(fused_, job));
    (backward_ ? table_.linear_backward_parts : table_.linear_forward_parts)(&context_, parts.data(), jobs_);
  }
  bool Same() const { return std::memcmp(apart_.data(), fused_.data(), 2 * apart_.size()) == 0; }

 private:
  kernels::LinearPart Part(std::vector<uint16_t>& out, int64_t job) {
    kernels::LinearPart part;
    part.out = out.data() + job * rows_ * out_width_;
    part.in = in_.data() + job * rows_ * in_width_;
    part.args.m = rows_;
    part.args.w = w_;
    return part;
  }

  const kernels::KernelTable& table_;
  kernels::ThreadPool pool_;
  kernels::Context context_;
  const kernels::WeightView& w_;
  const int64_t jobs_, rows_;
  const bool backward_;
  int64_t in_width_ = 0, out_width_ = 0;
  std::vector<std::byte> workspace_;
  std::vector<uint16_t> in_, apart_, fused_;  // bf16
};

absl::Status Run(const Flags& flags) {
  const int threads = static_cast<int>(Number(flags, "threads", 1));
  const int rounds = static_cast<int>(Number(flags, "rounds", 5));
  const std::string shape = Text(flags, "shape", "7b");
  ASSIGN_OR_RETURN(const auto backend, engine::OpenBackend("cpu", threads));
  const spec::DeviceProfile profile = engine::MeasureProfile(*backend);
  const spec::ModelConfig model = NamedShape(shape, 1);
  if (model.layers == 0) return absl::InvalidArgumentError("--shape: see random_base.h");
  ASSIGN_OR_RETURN(const RandomBase base,
                   RandomBase::Make(*backend, model, spec::QuantKind::kNF4, true, 1));
  for (const int64_t rows : {64, 128, 256, 512}) {
    for (const int64_t jobs : {2, 4, 10}) {
      double apart = 0, fused = 0;
      bool same = true;
      for (const spec::Module module : {spec::Module::kQ, spec::Module::kGate, spec::Module::kDown}) {
        for (const bool backward : {false, true}) {
          const kernels::WeightView& w = base.view().layers[0].linear[static_cast<int>(module)];
          Case one(backend->table(), profile, w, threads, jobs, rows, backward);
          double best_apart = std::numeric_limits<double>::infinity(), best_fused = best_apart;
          for (int round = 0; round < rounds; ++round) {
            const double began = ProcessorSeconds();
            one.Apart();
            const double between = ProcessorSeconds();
            one.Fused();
            best_apart = std::min(best_apart, between - began);
            best_fused = std::min(best_fused, ProcessorSeconds() - between);
          }
          apart += best_apart;
          fused += best_fused;
          same = same && one.Same();
        }
      }
      const nlohmann::json line = {{"shape", shape},           {"body", backend->table().body},
                                   {"threads", threads},       {"jobs", jobs},
                                   {"rows", rows},             {"apart_ms", apart * 1e3},
                                   {"fused_ms", fused * 1e3},  {"gain", apart / fused - 1},
                                   {"same_bits", same}};
      std::printf("%s\n", line.dump().c_str());
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  return nibble::bench::RunMain("nibble-bench-fused", argc, argv, nibble::bench::Run);
}
