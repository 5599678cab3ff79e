// What would make a job fit: found by planning again, never by a formula.
//
// Changes come in ladders, one per kind, each from mild to severe; the kinds stand in order of what
// they cost the user:
//   recompute            the same result to the bit, more time
//   host memory          inputs of blocks or moments move to the host, or back: the same result
//   micro-batch          the same sequences a step by accumulation, more time
//   double quantization  the base's scales are rounded to 8 bits
//   optimizer            AdamW's moments are held in 8 bits
//   base                 a 16- or 8-bit base becomes NF4
//   rank, targets        a smaller adapter
//   sequence length      longer rows are dropped or cut
#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/spec/workspace.h"
#include "server/core/plan.h"
#include "server/core/schedule_load.h"

namespace nibble::core {
namespace {

struct Rung {
  std::vector<SpecChange> changes;
  std::string words;
  std::string cost;
  std::function<void(spec::TrainSpec&)> apply;
};
using Ladder = std::vector<Rung>;  // mild first

// All blocks keep their products, then half of those that do, then the top one alone.
Ladder LessKept(const spec::TrainSpec& spec, const spec::ModelConfig& model) {
  const std::string field = "training.recompute";
  Ladder ladder;
  const auto offer = [&](spec::Recomputation to) {
    const std::string name(spec::RecomputeName(to.policy));
    Rung rung{{}, absl::StrCat("recompute ", name), "the same result, slower",
              [to](spec::TrainSpec& s) { to.SetIn(s); }};
    if (to.policy != spec.recompute) rung.changes.push_back({field, name});
    if (to.keep_blocks != spec.keep_blocks) {
      rung.changes.push_back({"training.keep_blocks", absl::StrCat(to.keep_blocks)});
      absl::StrAppend(&rung.words, " with keep_blocks ", to.keep_blocks);
    }
    ladder.push_back(std::move(rung));
  };
  if (spec.recompute < spec::Recompute::kKeepGemmOutputs) offer({spec::Recompute::kKeepGemmOutputs});
  const bool full = spec.recompute == spec::Recompute::kFull;
  const int32_t kept = full ? spec.keep_blocks : static_cast<int32_t>(model.layers);
  if (kept / 2 > 0) offer({spec::Recompute::kFull, kept / 2});
  if (kept > 0) offer({spec::Recompute::kFull});
  return ladder;
}

// Of a device: what its host can hold instead; or cannot, where it was asked to.
Ladder HostMemory(const spec::TrainSpec& spec, const spec::DeviceProfile& profile, bool to_host) {
  Ladder ladder;
  if (!spec::IsCuda(profile)) return ladder;
  const auto offer = [&](std::vector<SpecChange> changes, const char* words, auto apply) {
    ladder.push_back({std::move(changes), words,
                      to_host ? "the same result; host memory instead" : "the same result", apply});
  };
  if (spec.paged_optimizer != to_host) {
    offer({{"optimizer.paged", to_host ? "true" : "false"}},
          to_host ? "a paged optimizer" : "no paged optimizer",
          [to_host](spec::TrainSpec& s) { s.paged_optimizer = to_host; });
  }
  if (spec.offload_activations != to_host) {
    std::vector<SpecChange> changes = {{"training.offload_activations", to_host ? "true" : "false"}};
    if (to_host) changes.push_back({"training.recompute", "full"});
    if (spec.keep_blocks != 0) changes.push_back({"training.keep_blocks", "0"});
    offer(changes, to_host ? "offloaded activations" : "no offloaded activations",
          [to_host](spec::TrainSpec& s) {
            s.offload_activations = to_host;
            if (to_host) spec::Recomputation{spec::Recompute::kFull}.SetIn(s);
          });
  }
  return ladder;
}

Ladder Batches(const spec::TrainSpec& spec) {
  Ladder ladder;
  const int32_t sequences = spec.micro_batch_size * spec.gradient_accumulation_steps;
  int32_t last = spec.micro_batch_size + 1;
  for (int32_t size = spec.micro_batch_size - 1; size >= 1; --size) {
    // The same number of sequences per optimizer step, and steps worth telling apart.
    if (sequences % size != 0 || (size > 1 && size > last * 3 / 4)) continue;
    const int32_t accumulation = sequences / size;
    last = size;
    ladder.push_back({{{"training.micro_batch_size", absl::StrCat(size)},
                       {"training.gradient_accumulation_steps", absl::StrCat(accumulation)}},
                      absl::StrCat("micro_batch_size ", size, " with gradient_accumulation_steps ",
                                   accumulation),
                      "the same batch, slower",
                      [size, accumulation](spec::TrainSpec& s) {
                        s.micro_batch_size = size;
                        s.gradient_accumulation_steps = accumulation;
                      }});
  }
  return ladder;
}

Ladder Scales(const spec::TrainSpec& spec) {
  const bool can = spec.quant != spec::QuantKind::kINT8 && spec.quant != spec::QuantKind::kBF16;
  if (spec.double_quant || !can) return {};
  return {{{{"quantization.double_quant", "true"}},
           "double quantization",
           "the base's scales in 8 bits",
           [](spec::TrainSpec& s) { s.double_quant = true; }}};
}

Ladder Optimizers(const spec::TrainSpec& spec) {
  if (spec.optimizer == spec::OptimizerKind::kAdamW8bit) return {};
  return {{{{"optimizer.type", "adamw8bit"}},
           "optimizer adamw8bit",
           "moments in 8 bits",
           [](spec::TrainSpec& s) { s.optimizer = spec::OptimizerKind::kAdamW8bit; }}};
}

Ladder Bases(const spec::TrainSpec& spec) {
  if (spec.quant != spec::QuantKind::kINT8 && spec.quant != spec::QuantKind::kBF16) return {};
  return {{{{"quantization.type", "nf4"}, {"quantization.double_quant", "true"}},
           "a base in nf4 with double quantization",
           "QLoRA instead of LoRA",
           [](spec::TrainSpec& s) {
             s.quant = spec::QuantKind::kNF4;
             s.double_quant = true;
           }}};
}

Ladder Ranks(const spec::TrainSpec& spec) {
  Ladder ladder;
  for (int32_t r = spec.lora_r / 2; r >= 4; r /= 2) {
    ladder.push_back({{{"lora.r", absl::StrCat(r)}},
                      absl::StrCat("lora.r ", r),
                      "a smaller adapter",
                      [r](spec::TrainSpec& s) { s.lora_r = r; }});
  }
  return ladder;
}

Ladder Targets(const spec::TrainSpec& spec) {
  using spec::Module;
  Ladder ladder;
  size_t last = spec.target_modules.size();
  for (const std::vector<Module>& wanted :
       {std::vector<Module>{Module::kQ, Module::kK, Module::kV, Module::kQkv, Module::kO},
        std::vector<Module>{Module::kQ, Module::kV, Module::kQkv}}) {
    std::vector<Module> fewer;
    std::vector<std::string> names;
    for (const Module module : wanted) {
      if (!spec.Targets(module)) continue;
      fewer.push_back(module);
      names.emplace_back(spec::ModuleName(module));
    }
    if (fewer.empty() || fewer.size() >= last) continue;
    last = fewer.size();
    ladder.push_back({{{"lora.target_modules", absl::StrJoin(names, ",")}},
                      absl::StrCat("adapters on ", absl::StrJoin(names, ", "), " only"),
                      "a smaller adapter",
                      [fewer](spec::TrainSpec& s) { s.target_modules = fewer; }});
  }
  return ladder;
}

Ladder Lengths(const spec::TrainSpec& spec) {
  constexpr int32_t kUnit = 64, kShortest = 128;
  Ladder ladder;
  for (int32_t length = spec.sequence_len;;) {
    length = std::min(length - 1, length / 8 * 7) / kUnit * kUnit;
    if (length < kShortest) return ladder;
    ladder.push_back({{{"data.sequence_len", absl::StrCat(length)}},
                      absl::StrCat("sequence_len ", length),
                      "longer rows are dropped or cut",
                      [length](spec::TrainSpec& s) { s.sequence_len = length; }});
  }
}

// Plans candidates against one device.
class Search {
 public:
  Search(Planner& planner, const Model& model, const spec::DeviceProfile& profile,
         int64_t capacity_bytes)
      : planner_(planner), model_(model), profile_(profile), capacity_bytes_(capacity_bytes) {}

  // Bytes of `spec`, or nothing where it cannot be planned.
  std::optional<int64_t> TotalBytes(const spec::TrainSpec& spec) {
    if (!planner_.Resolve(spec, model_.config).ok()) return std::nullopt;
    const absl::StatusOr<PlanBytes> plan = planner_.Plan(model_, spec, profile_);
    return plan.ok() ? std::optional(plan->TotalBytes()) : std::nullopt;
  }
  bool Fits(const spec::TrainSpec& spec) {
    if (!planner_.Resolve(spec, model_.config).ok()) return false;
    const absl::StatusOr<PlanBytes> plan = planner_.Plan(model_, spec, profile_);
    Capacity capacity(capacity_bytes_);
    capacity.beside = {profile_.pinned_capacity_bytes, profile_.host_capacity_bytes};
    return plan.ok() && Need(*plan).FitsAlone(capacity);
  }
  // The mildest rung with which `spec` fits; null when not even the last one helps.
  const Rung* Mildest(const Ladder& ladder, const spec::TrainSpec& spec) {
    if (ladder.empty() || !Fits(With(spec, {&ladder.back()}))) return nullptr;
    for (const Rung& rung : ladder) {
      if (Fits(With(spec, {&rung}))) return &rung;
    }
    return &ladder.back();
  }
  static spec::TrainSpec With(spec::TrainSpec spec, const std::vector<const Rung*>& rungs) {
    for (const Rung* rung : rungs) {
      if (rung) rung->apply(spec);
    }
    return spec;
  }

  // The fewest and mildest changes that fit together; empty when not even all of them do.
  std::vector<const Rung*> Together(const spec::TrainSpec& spec,
                                    const std::vector<Ladder>& ladders) {
    std::vector<const Rung*> taken;  // by ladder; null = not taken
    bool fits = false;
    for (const Ladder& ladder : ladders) {
      const spec::TrainSpec now = With(spec, taken);
      const Rung* rung = Mildest(ladder, now);
      fits = rung != nullptr;
      if (rung == nullptr && !ladder.empty()) rung = &ladder.back();
      taken.push_back(rung);
      if (fits) break;
    }
    if (!fits) return {};
    // Dearest first: leave out what is not needed, then go up the ladder as far as it still fits.
    for (size_t i = taken.size(); i-- > 0;) {
      if (taken[i] == nullptr) continue;
      taken[i] = nullptr;
      const spec::TrainSpec without = With(spec, taken);
      if (!Fits(without)) taken[i] = Mildest(ladders[i], without);
    }
    std::erase(taken, nullptr);
    return taken;
  }

 private:
  Planner& planner_;
  const Model& model_;
  const spec::DeviceProfile& profile_;
  const int64_t capacity_bytes_;
};

}  // namespace

std::vector<Suggestion> Planner::Suggest(const Model& model, const spec::TrainSpec& spec,
                                         const spec::DeviceProfile& profile,
                                         int64_t capacity_bytes) {
  const std::vector<Ladder> ladders = {LessKept(spec, model.config),
                                       HostMemory(spec, profile, true),
                                       HostMemory(spec, profile, false),
                                       Batches(spec),
                                       Scales(spec),
                                       Optimizers(spec),
                                       Bases(spec),
                                       Ranks(spec),
                                       Targets(spec),
                                       Lengths(spec)};
  Search search(*this, model, profile, capacity_bytes);
  std::vector<Suggestion> suggestions;
  const std::optional<int64_t> now = search.TotalBytes(spec);
  if (!now || search.Fits(spec)) return suggestions;
  const auto offer = [&](const std::vector<const Rung*>& rungs) {
    Suggestion s;
    s.spec = Search::With(spec, rungs);
    std::vector<std::string> words, costs;
    for (const Rung* rung : rungs) {
      s.changes.insert(s.changes.end(), rung->changes.begin(), rung->changes.end());
      words.push_back(absl::StrCat(rung->words, " (", rung->cost, ")"));
      if (std::find(costs.begin(), costs.end(), rung->cost) == costs.end()) {
        costs.push_back(rung->cost);
      }
    }
    s.total_bytes = search.TotalBytes(s.spec).value_or(0);
    s.saved_bytes = *now - s.total_bytes;
    s.cost = absl::StrJoin(costs, "; ");
    s.description = absl::StrCat(absl::StrJoin(words, ", and "), ": ", HumanBytes(s.total_bytes));
    suggestions.push_back(std::move(s));
  };
  for (const Ladder& ladder : ladders) {
    if (const Rung* rung = search.Mildest(ladder, spec)) offer({rung});
  }
  // No single change is enough.
  if (suggestions.empty()) {
    if (const auto rungs = search.Together(spec, ladders); !rungs.empty()) offer(rungs);
  }
  return suggestions;
}

}  // namespace nibble::core
