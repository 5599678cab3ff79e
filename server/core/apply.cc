#include "server/core/apply.h"

#include "base/status.h"
#include "server/core/apply_internal.h"

namespace nibble::core {

Job& Applier::JobOf(const std::string& id) {
  const auto it = state_.jobs.find(id);
  CHECK(it != state_.jobs.end());
  state_.touched.jobs.insert(id);
  it->second.update_unix_us = now_.unix_us;
  last_ = &it->second;
  return *last_;
}

Attempt& Applier::AttemptOf(const std::string& job_id, int64_t epoch) {
  const auto job = state_.jobs.find(job_id);
  CHECK(job != state_.jobs.end());
  const auto it = job->second.attempts.find(epoch);
  CHECK(it != job->second.attempts.end());
  state_.touched.attempts.insert({job_id, epoch});
  return it->second;
}

Worker& Applier::WorkerOf(const std::string& id) {
  const auto it = state_.workers.find(id);
  CHECK(it != state_.workers.end());
  state_.touched.workers.insert(id);
  return it->second;
}

void Applier::DesiredChanged(const std::string& worker_id) {
  const auto it = state_.workers.find(worker_id);
  if (it == state_.workers.end()) return;
  ++it->second.revision;
  state_.revised.insert(worker_id);
}

void Apply(State* state, const Event& event, std::vector<EventRecord>* records) {
  Applier applier(state, event.now);
  std::visit(applier, event.body);
  const Keep keep = std::visit([](const auto& e) { return std::decay_t<decltype(e)>::kKeep; }, event.body);
  if (keep == Keep::kVolatile) return;
  EventRecord record = Describe(event);
  record.number = ++state->last_event_number;
  state->touched.meta = true;
  if (keep == Keep::kJob) {
    Job& job = applier.Changed(record.job_id);
    record.sequence = ++job.last_sequence;
    record.state = job.state;
  }
  if (records != nullptr) records->push_back(std::move(record));
}

}  // namespace nibble::core
