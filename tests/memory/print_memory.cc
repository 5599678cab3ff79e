// Prints the tables of docs/memory.md: every figure computed by the planner that admits jobs.
//
//     print_memory            all tables, each between the marks docs/memory.md has around it
//
// check_docs.py holds the page to it.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "server/core/known_cards.h"
#include "server/core/plan_methods.h"
#include "server/core/schedule_load.h"

namespace nibble::core {
namespace {

constexpr int kQlora = 0, kLora = 1, kFull = 2, kMixed = 3;

struct Shape {
  const char* name;
  int hidden, intermediate, layers, heads, kv_heads, vocab;
};
constexpr Shape k7B{"Llama 2 7B", 4096, 11008, 32, 32, 32, 32000};
constexpr Shape k8B{"Llama 3.1 8B", 4096, 14336, 32, 32, 8, 128256};
constexpr Shape k13B{"Llama 2 13B", 5120, 13824, 40, 40, 40, 32000};
constexpr Shape k65B{"LLaMA 65B", 8192, 22016, 80, 64, 64, 32000};
constexpr Shape k70B{"Llama 2 70B", 8192, 28672, 80, 64, 8, 32000};

Model ModelOf(const Shape& shape) {
  Model model;
  model.id = shape.name;
  const auto config = spec::ParseModelConfig(absl::StrFormat(
      R"({"model_type":"llama","vocab_size":%d,"hidden_size":%d,"intermediate_size":%d,)"
      R"("num_hidden_layers":%d,"num_attention_heads":%d,"num_key_value_heads":%d,)"
      R"("max_position_embeddings":4096})",
      shape.vocab, shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads));
  CHECK(config.ok());
  model.config = *config;
  return model;
}

spec::TrainSpec SpecOf(const Model& model, int rank, int tokens,
                       spec::OptimizerKind optimizer) {
  spec::TrainSpec spec;
  spec.lora_r = rank;
  spec.sequence_len = tokens;
  spec.micro_batch_size = 1;
  spec.optimizer = optimizer;
  spec.recompute = spec::Recompute::kFull;
  spec.base_cache = spec::BaseCache::kOff;
  const auto resolved = spec::ResolveTrainSpec(spec, model.config);
  CHECK(resolved.ok());
  return *resolved;
}

std::vector<MethodMemory> Methods(const Shape& shape, int rank, int tokens,
                                  spec::OptimizerKind optimizer = spec::OptimizerKind::kAdamW) {
  const Model model = ModelOf(shape);
  Planner planner(RealSpecFunctions());
  const auto methods = CompareMethods(model, SpecOf(model, rank, tokens, optimizer),
                                      CardProfile(KnownCards().back()), planner);
  CHECK(methods.ok());
  return *methods;
}

std::string Gb(int64_t bytes) { return absl::StrFormat("%.1f", static_cast<double>(bytes) / 1e9); }

void PrintMethods() {
  std::printf("| model | method | trained | weights | adapters | gradients | optimizer | "
              "activations | process | total |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : {k7B, k8B, k13B, k70B}) {
    for (const MethodMemory& m : Methods(shape, 16, 2048)) {
      const auto gb = [](int64_t bytes) { return absl::StrFormat("%.2f", static_cast<double>(bytes) / 1e9); };
      std::printf("| %s | %s | %.1f M | %s | %s | %s | %s | %s | %s | **%s** |\n", shape.name,
                  m.name.c_str(), static_cast<double>(m.trained_parameters) / 1e6,
                  gb(m.weights_bytes).c_str(), gb(m.adapters_bytes).c_str(), gb(m.gradients_bytes).c_str(),
                  gb(m.optimizer_bytes).c_str(), gb(m.activations_bytes).c_str(),
                  gb(m.process_bytes).c_str(), gb(m.TotalBytes()).c_str());
    }
  }
}

struct Quoted {
  const char* figure;
  const Shape& shape;
  int method;
  int rank;
  int tokens;
  std::string why;
};

void PrintQuoted() {
  const MethodMemory qlora_7b = Methods(k7B, 16, 2048)[kQlora];
  const MethodMemory mixed_7b = Methods(k7B, 16, 2048)[kMixed];
  const MethodMemory qlora_70b = Methods(k70B, 16, 2048)[kQlora];
  const MethodMemory qlora_65b =
      Methods(k65B, 64, 512, spec::OptimizerKind::kAdamW8bit)[kQlora];
  const MethodMemory qlora_8b = Methods(k8B, 16, 2048)[kQlora];
  // What a framework adds that holds embeddings and head in fp32 and makes all logits at once: 2 bytes
  // more for each weight of both, and 14 bytes a logit (bf16, an fp32 copy, log-probabilities, gradient).
  const int64_t embeddings_8b = int64_t{2} * k8B.vocab * k8B.hidden;
  const int64_t logits_8b = int64_t{14} * 2048 * k8B.vocab;
  const auto base_alone = [](const Shape& shape) {
    return absl::StrCat("the base alone is ", Gb(Methods(shape, 16, 2048)[kLora].weights_bytes),
                        " GB; larger batches and an allocator's reserve make up the rest");
  };
  const std::vector<Quoted> rows = {
      {"7B, full: ~60 GB", k7B, kFull, 16, 2048,
       absl::StrCat("8 bytes a weight: weights, gradients and both moments in 16 bits. With fp32 "
                    "master weights and moments (mixed precision) it is ",
                    Gb(mixed_7b.TotalBytes()), " GB")},
      {"7B, 16-bit LoRA: ~18 GB", k7B, kLora, 16, 2048, base_alone(k7B)},
      {"7B, QLoRA: ~6 GB", k7B, kQlora, 16, 2048,
       absl::StrCat("agrees: without the process it is ",
                    Gb(qlora_7b.TotalBytes() - qlora_7b.process_bytes), " GB")},
      {"13B, full: ~120 GB", k13B, kFull, 16, 2048, "8 bytes a weight as above, and rounded up"},
      {"13B, 16-bit LoRA: ~32 GB", k13B, kLora, 16, 2048, base_alone(k13B)},
      {"13B, QLoRA: ~10 GB", k13B, kQlora, 16, 2048, "agrees"},
      {"70B, full: ~600 GB", k70B, kFull, 16, 2048, "8 bytes a weight as above"},
      {"70B, 16-bit LoRA: ~160 GB", k70B, kLora, 16, 2048, base_alone(k70B)},
      {"70B, QLoRA: ~36 GB", k70B, kQlora, 16, 2048,
       absl::StrCat("36 GB is the weights alone (ours: ", Gb(qlora_70b.weights_bytes),
                    " GB); adapters, gradients and moments take ",
                    Gb(qlora_70b.adapters_bytes + qlora_70b.gradients_bytes +
                       qlora_70b.optimizer_bytes),
                    " GB more, activations and workspace ", Gb(qlora_70b.activations_bytes), " GB")},
      {"65B, QLoRA: under 48 GB", k65B, kQlora, 16, 512, "holds at r 16"},
      {"65B, QLoRA, r 64: 45.0 GB", k65B, kQlora, 64, 512,
       absl::StrCat("the QLoRA paper's setting. It counts adapters and gradients in 16 bits; ours "
                    "have fp32 masters and gradients, 6 bytes more for each of 800 M. With 8-bit "
                    "moments ours is ",
                    Gb(qlora_65b.TotalBytes()), " GB")},
      {"full 66.0 GB against ...", k8B, kFull, 16, 2048,
       "quoted without model or settings; 8 bytes a weight of an 8B model is that"},
      {"... QLoRA 12.3 GB", k8B, kQlora, 16, 2048,
       absl::StrCat("the same model. A framework that holds embeddings and head in fp32 adds ",
                    Gb(2 * embeddings_8b), " GB, one that makes all logits at once another ",
                    Gb(logits_8b), " GB; the quoted figure lies between")},
  };
  std::printf("| quoted | ours, GB | settings | why they differ |\n|---|---|---|---|\n");
  for (const Quoted& row : rows) {
    const MethodMemory m = Methods(row.shape, row.rank, row.tokens)[static_cast<size_t>(row.method)];
    const std::string rank = row.method == kFull ? "" : absl::StrCat(", r ", row.rank);
    std::printf("| %s | **%s** | %s%s, 1 x %d tokens | %s |\n", row.figure, Gb(m.TotalBytes()).c_str(),
                row.shape.name, rank.c_str(), row.tokens, row.why.c_str());
  }
}

PlanBytes CardPlan(const Shape& shape, int rank, int tokens, spec::OptimizerKind optimizer, bool paged,
                   const KnownCard& card, bool offloads = false) {
  const Model model = ModelOf(shape);
  spec::TrainSpec spec = SpecOf(model, rank, tokens, optimizer);
  spec.paged_optimizer = paged;
  spec.offload_activations = offloads;
  Planner planner(RealSpecFunctions());
  const auto plan = planner.Plan(model, spec, CardProfile(card));
  CHECK(plan.ok());
  return *plan;
}

struct Footprint {
  const Shape& shape;
  int rank;
  int tokens;
  double goal_gb;
};

// On the device, without context and libraries.
void PrintFootprints() {
  struct Column {
    spec::OptimizerKind optimizer;
    bool paged;
    bool offloads;
  };
  std::printf("| model | r, tokens | goal | adamw | adamw, activation_offloading | adamw_8bit | "
              "paged_adamw_32bit | paged_adamw_8bit |\n|---|---|---|---|---|---|---|---|\n");
  for (const Footprint& row : {Footprint{k7B, 16, 2048, 5.45}, Footprint{k8B, 16, 2048, 7.4},
                               Footprint{k70B, 16, 2048, 43.6}, Footprint{k65B, 64, 512, 44.0}}) {
    std::printf("| %s | %d, %d | %.2f |", row.shape.name, row.rank, row.tokens, row.goal_gb);
    for (const Column& column : {Column{spec::OptimizerKind::kAdamW, false, false},
                                 Column{spec::OptimizerKind::kAdamW, false, true},
                                 Column{spec::OptimizerKind::kAdamW8bit, false, false},
                                 Column{spec::OptimizerKind::kAdamW, true, false},
                                 Column{spec::OptimizerKind::kAdamW8bit, true, false}}) {
      const PlanBytes plan = CardPlan(row.shape, row.rank, row.tokens, column.optimizer, column.paged,
                                      KnownCards().back(), column.offloads);
      const double gb = static_cast<double>(plan.TotalBytes() - plan.fixed_bytes) / 1e9;
      const char* const mark = gb <= row.goal_gb ? "**" : "";
      std::printf(" %s%.2f%s |", mark, gb, mark);
    }
    std::printf("\n");
  }
}

// Jobs of one recipe that a card admits, by bytes alone: one base each, in a process each, or one for all.
int JobsOn(const KnownCard& card, const PlanBytes& plan, bool shared) {
  SchedulePolicy policy;
  policy.max_attempts_per_device = policy.max_bases_per_device = 1'000'000;
  LoadOn<int> load;
  int jobs = 0;
  while (load.Fits(Capacity(CardProfile(card)), shared ? 0 : jobs, plan, /*alone=*/false, policy)) {
    load.Add(shared ? 0 : jobs, plan, /*alone=*/false);
    ++jobs;
  }
  return jobs;
}

void PrintShared() {
  std::printf("| model | optimizer |");
  std::vector<KnownCard> cards(KnownCards().begin(), KnownCards().begin() + 3);
  for (const KnownCard& card : cards) std::printf(" %s |", card.name);
  std::printf("\n|---|---|---|---|---|\n");
  for (const Shape& shape : {k7B, k8B, k13B, k70B}) {
    for (const auto optimizer : {spec::OptimizerKind::kAdamW, spec::OptimizerKind::kAdamW8bit}) {
      const bool small = optimizer == spec::OptimizerKind::kAdamW8bit;
      std::printf("| %s | %s |", shape.name, small ? "adamw_8bit" : "adamw");
      for (const KnownCard& card : cards) {
        const PlanBytes plan = CardPlan(shape, 16, 2048, optimizer, /*paged=*/false, card);
        const int apart = JobsOn(card, plan, false), together = JobsOn(card, plan, true);
        std::printf(" %d / %d", apart, together);
        if (apart > 0) std::printf(" (%.1fx)", static_cast<double>(together) / apart);
        std::printf(" |");
      }
      std::printf("\n");
    }
  }
}

}  // namespace
}  // namespace nibble::core

int main() {
  std::printf("<!-- begin quoted -->\n");
  nibble::core::PrintQuoted();
  std::printf("<!-- end quoted -->\n<!-- begin methods -->\n");
  nibble::core::PrintMethods();
  std::printf("<!-- end methods -->\n<!-- begin footprints -->\n");
  nibble::core::PrintFootprints();
  std::printf("<!-- end footprints -->\n<!-- begin shared -->\n");
  nibble::core::PrintShared();
  std::printf("<!-- end shared -->\n");
  return 0;
}
