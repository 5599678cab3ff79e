#include "server/core/excerpt.h"

#include "server/core/schedule_sync.h"

namespace nibble::core {

size_t Excerpt::CopyWorker(const State& state, const Worker& worker) {
  copied_.workers[worker.id] = worker;
  size_t rows = 1;
  const auto held = state.holding.find(worker.id);
  if (held == state.holding.end()) return rows;
  for (const AttemptKey& key : held->second) {
    const Job* job = state.FindJob(key.first);
    if (job == nullptr) continue;
    copied_.jobs[job->id] = *job;
    ++rows;
    const Model* model = state.ModelOf(*job);
    if (model != nullptr && !copied_.models.contains(model->id)) copied_.models[model->id] = *model;
  }
  return rows;
}

bool Excerpt::Copy(const State& state, size_t rows) {
  size_t copied = 0;
  if (part_ == Part::kBegin) {
    copied_.timeline = state.timeline;
    copied_.generation = state.generation;
    copied_.learned_loads = state.learned_loads;
    copied_.picos_per_work = state.picos_per_work;
    copied_.picos_mflops = state.picos_mflops;
    copied_.board.SetPolicy(state.board.policy());
    part_ = Part::kLearned;
  }
  if (part_ == Part::kLearned) {
    auto it = state.learned.upper_bound(after_);
    for (; it != state.learned.end() && copied < rows; ++it, ++copied)
      copied_.learned.insert_or_assign(copied_.learned.end(), after_ = it->first, it->second);
    if (it != state.learned.end()) return false;
    part_ = Part::kWorkers;
    after_.clear();
  }
  if (part_ == Part::kWorkers) {
    auto it = state.workers.upper_bound(after_);
    for (; it != state.workers.end() && copied < rows; ++it) {
      copied += CopyWorker(state, it->second);
      after_ = it->first;
    }
    if (it != state.workers.end()) return false;
    part_ = Part::kDone;
  }
  return true;
}

State Excerpt::Take(int64_t now_us) && {
  for (auto& [id, job] : copied_.jobs) {
    // On a worker that came when its place in the order had been passed.
    for (auto& [epoch, attempt] : job.attempts)
      if (!copied_.workers.contains(attempt.worker_id)) attempt.holds_bytes = false;
  }
  copied_.BuildIndexes();
  RebuildBoard(&copied_, now_us);
  return std::move(copied_);
}

}  // namespace nibble::core
