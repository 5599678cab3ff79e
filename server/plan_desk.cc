#include "server/plan_desk.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "server/core/schedule_sync.h"

namespace nibble::server {
namespace {

struct Card {
  const char* name;
  const char* description;
  int64_t bytes;
};
// Memory classes people rent and own; capacities as sold.
constexpr int64_t kGiB = int64_t{1} << 30;
constexpr Card kCards[] = {{"card-24gb", "24 GB card", 24 * kGiB},
                           {"card-48gb", "48 GB card", 48 * kGiB},
                           {"card-80gb", "80 GB card", 80 * kGiB},
                           {"card-141gb", "141 GB card", 141 * kGiB}};
// What a process with a GPU context takes before it does anything.
constexpr int64_t kCardFixedBytes = int64_t{768} << 20;

core::State Cards() {
  core::State state;
  for (const Card& card : kCards) {
    core::Worker& worker = state.workers[card.name];
    worker.id = card.name;
    core::Device& device = worker.devices["gpu0"];
    device.id = "gpu0";
    device.backend = "cuda";
    device.description = card.description;
    device.capacity_bytes = card.bytes;
    device.profile = {.backend = "cuda",
                      .body = "card",
                      .build = "",
                      .threads = 1,
                      .act_bytes = 2,
                      .fixed_bytes = kCardFixedBytes,
                      .capacity_bytes = card.bytes};
  }
  state.BuildIndexes();
  return state;
}

}  // namespace

core::State PlanningExcerpt(const core::State& state) {
  core::State excerpt;
  excerpt.timeline = state.timeline;
  excerpt.generation = state.generation;
  excerpt.workers = state.workers;
  for (const auto& [worker, keys] : state.holding) {
    for (const core::AttemptKey& key : keys) {
      const core::Job* job = state.FindJob(key.first);
      if (!job) continue;
      excerpt.jobs[job->id] = *job;
      if (const core::Model* model = state.ModelOf(*job)) excerpt.models[model->id] = *model;
    }
  }
  excerpt.BuildIndexes();
  excerpt.learned = state.learned;
  excerpt.learned_loads = state.learned_loads;
  excerpt.picos_per_work = state.picos_per_work;
  excerpt.board.SetPolicy(state.board.policy());
  core::RebuildBoard(&excerpt, state.board.now_us());
  return excerpt;
}

absl::StatusOr<PlanDesk::Answer> PlanDesk::Plan(const core::State& excerpt, const core::Model& model,
                                                const spec::TrainSpec& spec) {
  static const core::State& cards = *new core::State(Cards());
  std::lock_guard lock(mutex_);
  Answer answer;
  ASSIGN_OR_RETURN(answer.devices, core::FitsOf(excerpt, model, spec, core_));
  ASSIGN_OR_RETURN(core::FitReport report, core::FitsOf(cards, model, spec, core_));
  answer.cards = std::move(report.fits);
  answer.card_suggestions = std::move(report.suggestions);
  return answer;
}

}  // namespace nibble::server
