#include "server/store/memory_store.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "server/store/metric_read.h"

namespace nibble::store {
namespace {

template <typename Key, typename Row>
void CopyRows(const std::set<Key>& touched, const std::map<Key, Row>& from,
              std::map<Key, Row>& to) {
  for (const Key& key : touched) {
    const auto it = from.find(key);
    if (it == from.end()) {
      to.erase(key);
    } else {
      to[key] = it->second;
    }
  }
}

// What is there of the rows that are named goes to `found`; the others are dropped from `state`.
template <typename Key, typename Row>
void Pick(const std::set<Key>& keys, const std::map<Key, Row>& rows, std::map<Key, Row>& found,
          std::map<Key, Row>& state) {
  for (const Key& key : keys) {
    const auto it = rows.find(key);
    if (it == rows.end()) {
      state.erase(key);
    } else {
      found[key] = it->second;
    }
  }
}

template <typename Key, typename Row>
void Put(std::map<Key, Row>& found, std::map<Key, Row>& state) {
  for (auto& [key, row] : found) state[key] = std::move(row);
}

// Attempts are rows of their own; a job's row does not bring them along.
void CopyJobs(const core::State& from, core::State& to) {
  for (const std::string& id : from.touched.jobs) {
    const core::Job* job = from.FindJob(id);
    if (job == nullptr) {
      to.jobs.erase(id);
      continue;
    }
    auto attempts = std::move(to.jobs[id].attempts);
    to.jobs[id] = *job;
    to.jobs[id].attempts = std::move(attempts);
  }
  for (const core::AttemptKey& key : from.touched.attempts) {
    const auto job = to.jobs.find(key.first);
    const core::Attempt* attempt = from.FindAttempt(key);
    if (job != to.jobs.end() && attempt != nullptr) job->second.attempts[key.second] = *attempt;
  }
}

absl::Status Injected() { return Error(Reason::kStoreUnavailable, "the commit failed (injected)"); }

}  // namespace

std::vector<bool> OfReplacedJobs(const std::vector<core::EventRecord>& records) {
  std::vector<bool> replaced(records.size());
  std::set<std::string_view> begun;  // later on
  for (size_t i = records.size(); i-- > 0;) {
    const core::EventRecord& record = records[i];
    if (record.job_id.empty()) continue;
    replaced[i] = begun.count(record.job_id) > 0;
    if (record.sequence == 1) begun.insert(record.job_id);
  }
  return replaced;
}

core::State WithoutVolatile(core::State state) {
  state.rollback_suspected = false;
  state.touched = {};
  for (auto& [id, job] : state.jobs) {
    job.queued_us = job.not_before_us = job.cancel_deadline_us = 0;
    job.plan_key.clear();
    job.measured = {};
    for (auto& [epoch, attempt] : job.attempts) {
      attempt.start_us = attempt.assign_revision = attempt.seen_us = attempt.seen_step = 0;
      attempt.phase = core::Phase::kUnspecified;
      attempt.trouble.clear();
    }
  }
  for (auto& [id, worker] : state.workers) {
    worker.self_draining = worker.heard = false;
    worker.renewed_us = worker.revision = worker.known_revision = 0;
    worker.last_seen_unix_us = worker.stored_seen_unix_us = 0;
    for (auto& [device_id, device] : worker.devices) {
      device.used_bytes = 0;
      device.resident_bases.clear();
    }
  }
  for (auto& [digest, blob] : state.blobs) blob.pin_until_us = 0;
  return state;
}

absl::Status MemoryStore::Reread(core::State& state) {
  core::Touched touched = std::exchange(state.touched, {});
  for (const core::AttemptKey& key : touched.attempts) touched.jobs.insert(key.first);
  if (fail_reread_) {
    for (const std::string& id : touched.jobs) state.jobs.erase(id);
    return Injected();
  }
  state.timeline = rows_.timeline;
  state.generation = rows_.generation;
  state.last_job_number = rows_.last_job_number;
  state.last_event_number = rows_.last_event_number;
  core::State found;
  Pick(touched.jobs, rows_.jobs, found.jobs, state.jobs);
  Pick(touched.workers, rows_.workers, found.workers, state.workers);
  Pick(touched.datasets, rows_.datasets, found.datasets, state.datasets);
  Pick(touched.models, rows_.models, found.models, state.models);
  Pick(touched.adapters, rows_.adapters, found.adapters, state.adapters);
  Pick(touched.blobs, rows_.blobs, found.blobs, state.blobs);
  Pick(touched.requests, rows_.requests, found.requests, state.requests);
  found = WithoutVolatile(std::move(found));
  for (auto& [id, worker] : found.workers)
    worker.last_seen_unix_us = rows_.workers.at(id).last_seen_unix_us;
  Put(found.jobs, state.jobs);
  Put(found.workers, state.workers);
  Put(found.datasets, state.datasets);
  Put(found.models, state.models);
  Put(found.adapters, state.adapters);
  Put(found.blobs, state.blobs);
  Put(found.requests, state.requests);
  return absl::OkStatus();
}

absl::StatusOr<core::State> MemoryStore::Load() {
  ++loads_;
  if (fail_load_) return Injected();
  core::State state = WithoutVolatile(rows_);
  for (auto& [id, worker] : state.workers)
    worker.last_seen_unix_us = rows_.workers.at(id).last_seen_unix_us;
  state.BuildIndexes();
  return state;
}

absl::Status MemoryStore::Commit(const core::State& state,
                                 const std::vector<core::EventRecord>& records) {
  const Fault fault = faults_ ? faults_() : Fault::kNone;
  if (fault == Fault::kFailBefore) return Injected();
  if (state.touched.meta) {
    rows_.timeline = state.timeline;
    rows_.generation = state.generation;
    rows_.last_job_number = state.last_job_number;
    rows_.last_event_number = state.last_event_number;
  }
  std::erase_if(events_, [&](const core::EventRecord& record) {
    const core::Job* before = rows_.FindJob(record.job_id);
    const core::Job* now = state.FindJob(record.job_id);
    return state.touched.jobs.count(record.job_id) > 0 && before != nullptr && now != nullptr &&
           before->number != now->number;
  });
  CopyJobs(state, rows_);
  CopyRows(state.touched.workers, state.workers, rows_.workers);
  CopyRows(state.touched.datasets, state.datasets, rows_.datasets);
  CopyRows(state.touched.models, state.models, rows_.models);
  CopyRows(state.touched.adapters, state.adapters, rows_.adapters);
  CopyRows(state.touched.blobs, state.blobs, rows_.blobs);
  CopyRows(state.touched.requests, state.requests, rows_.requests);
  const std::vector<bool> of_dead = OfReplacedJobs(records);
  for (size_t i = 0; i < records.size(); ++i) {
    if (!of_dead[i]) events_.push_back(records[i]);
  }
  std::erase_if(events_, [&](const core::EventRecord& record) {
    return !record.job_id.empty() && state.touched.jobs.count(record.job_id) > 0 &&
           state.FindJob(record.job_id) == nullptr;
  });
  return fault == Fault::kFailAfter ? Injected() : absl::OkStatus();
}

absl::StatusOr<std::vector<core::EventRecord>> MemoryStore::ReadEvents(std::string_view job_id,
                                                                       int64_t after_sequence,
                                                                       int64_t limit) {
  std::vector<core::EventRecord> found;
  for (const core::EventRecord& record : events_) {
    if (static_cast<int64_t>(found.size()) >= limit) break;
    if (record.job_id == job_id && record.sequence > after_sequence) found.push_back(record);
  }
  return found;
}

absl::StatusOr<int64_t> MemoryStore::PruneEvents(int64_t before_unix_us, int64_t limit) {
  const int64_t looked_at = std::min(limit, static_cast<int64_t>(events_.size()));
  const auto end = events_.begin() + looked_at;
  const auto kept = std::remove_if(events_.begin(), end, [&](const core::EventRecord& record) {
    return record.unix_us < before_unix_us;
  });
  const int64_t removed = end - kept;
  events_.erase(kept, end);
  return removed;
}

absl::Status MemoryMetricStore::Append(std::string_view job_id,
                                       const std::vector<StepMetric>& metrics) {
  std::lock_guard lock(mutex_);
  auto& rows = metrics_[std::string(job_id)];
  for (const StepMetric& metric : metrics) {
    const auto [it, fresh] = rows.emplace(std::make_pair(metric.step, metric.epoch), metric);
    if (!fresh) Merge(metric, it->second);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StepMetric>> MemoryMetricStore::Read(std::string_view job_id,
                                                                int64_t after_step,
                                                                int64_t until_step,
                                                                int64_t max_points) {
  std::lock_guard lock(mutex_);
  const auto job = metrics_.find(job_id);
  if (job == metrics_.end()) return std::vector<StepMetric>();
  const auto asked = [&](const StepMetric& m) {
    return m.step > after_step && (until_step <= 0 || m.step <= until_step);
  };
  std::set<int64_t> steps;
  for (const auto& [key, metric] : job->second) {
    if (asked(metric)) steps.insert(metric.step);
  }
  SeriesReader series(static_cast<int64_t>(steps.size()), max_points);
  for (const auto& [key, metric] : job->second) {
    if (asked(metric)) series.Add(metric);
  }
  return std::move(series).Take();
}

absl::Status MemoryMetricStore::DeleteJob(std::string_view job_id) {
  std::lock_guard lock(mutex_);
  const auto it = metrics_.find(job_id);
  if (it != metrics_.end()) metrics_.erase(it);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MemoryMetricStore::JobIds(std::string_view after, int64_t limit) {
  std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  for (auto it = metrics_.upper_bound(after); it != metrics_.end(); ++it) {
    if (static_cast<int64_t>(ids.size()) >= limit) break;
    ids.push_back(it->first);
  }
  return ids;
}

}  // namespace nibble::store
