#include "tests/sim/checker.h"

#include <algorithm>
#include <cstdio>

namespace nibble::sim {

using core::EventRecord;
using core::Job;
using core::JobState;

void World::Print(std::string_view what) const {
  std::printf("%12.6f  %.*s\n", static_cast<double>(now_us() % (100'000 * kSecond)) / kSecond,
              static_cast<int>(what.size()), what.data());
}

void Checker::Fail(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

void Checker::CreateAcked(const std::string& request_id, const std::string& job_id) {
  const auto [it, fresh] = requests_.emplace(request_id, job_id);
  if (!fresh && it->second != job_id) {
    Fail("I8: request " + request_id + " made " + it->second + " and " + job_id);
  }
  acked_.insert(job_id);
}

void Checker::CancelAcked(const std::string& job_id) {
  jobs_[job_id].cancelled = true;
  if (jobs_[job_id].terminal == JobState::kSucceeded)
    Fail("P7: cancel of " + job_id + " was acknowledged after success");
}

void Checker::ReportAccepted(const std::string& job_id, int64_t epoch, const std::string& kind,
                             int64_t step) {
  const auto it = jobs_.find(job_id);
  if (it == jobs_.end())
    return Fail("I5: a report about " + job_id + ", which there never was, was accepted");
  const Audit& audit = it->second;
  if (audit.active && audit.epoch == epoch) return;
  // Else it can only be the repeat of one that counted.
  const auto ended = audit.ended.find(epoch);
  const std::string how = ended == audit.ended.end() ? "" : ended->second;
  const bool repeat = (kind == "failed" && how == "FAILED") ||
                      (kind == "finished" && how == "DONE") || (kind == "check" && how == "DONE") ||
                      (kind == "released" && how == "RELEASED") ||
                      (kind == "checkpoint" && audit.saved.count({epoch, step}) > 0);
  if (!repeat) {
    Fail("I5: " + kind + " of the stale attempt " + job_id + "/" + std::to_string(epoch) + " (" +
         how + ") was accepted");
  }
}

void Checker::DeviceUsed(const std::string& host, int64_t bytes, int64_t capacity_bytes) {
  if (bytes > capacity_bytes) {
    Fail("device of " + host + " is over-committed: " + std::to_string(bytes) + " of " +
         std::to_string(capacity_bytes));
  }
}

void Checker::Watched(const std::string& watcher, const EventRecord& record) {
  int64_t& last = watched_[watcher + record.job_id];
  if (record.sequence != last + 1)
    Fail("I7: watcher of " + record.job_id + " missed or repeated an event");
  last = record.sequence;
}

// What of its lease a worker had before is what it has afterwards.
void Checker::Sleeps(const core::State& state, int64_t slept_us) {
  trusted_until_us_.clear();
  for (const auto& [id, worker] : state.workers) {
    const int64_t left_us = worker.renewed_us + options_.lease_lost_us - world_.now_us();
    if (!worker.lost && left_us > 0) trusted_until_us_[id] = world_.now_us() + slept_us + left_us;
  }
}

// A pass is the last thing of a turn, so what it knew is what the turn left behind.
void Checker::AuditPlacement(const EventRecord& record, const Audit& audit,
                             const core::State& state) {
  const core::Worker* worker = state.FindWorker(record.fields.at("worker"));
  // What goes on in memory is given back by a call, not by the pass: a drain may follow in the same turn.
  const bool later = record.fields.at("continues_epoch") != "0" && worker != nullptr && worker->draining;
  if (worker == nullptr || worker->lost || (worker->draining && !later))
    Fail("S1: " + record.job_id + " was given to a worker that takes no work");
  // A CHECK needs no device, nor does a result that is on its way up.
  const core::Job* job = state.FindJob(record.job_id);
  const bool needs_device = job != nullptr && job->kind == core::JobKind::kTrain &&
                            record.fields.at("continues_epoch") == "0";
  if (needs_device && withdrawn_.count({record.fields.at("worker"), record.fields.at("device")}) != 0)
    Fail("S5: " + record.job_id + " was given to a device that is withdrawn");
  if (record.fields.at("continues_epoch") == "0" && full_.count(record.fields.at("worker")) != 0)
    Fail("S6: " + record.job_id + " was given to a worker whose disk is full");
  const int64_t newest = audit.kept.empty() ? 0 : *audit.kept.rbegin();
  if (std::stoll(record.fields.at("resume_step")) != newest)
    Fail("S2: " + record.job_id + " does not go on from its newest checkpoint");
}

void Checker::AuditEvent(const EventRecord& record, const core::State& state) {
  number_ = record.number;
  if (record.type == "device.withdrawn")
    withdrawn_.insert({record.fields.at("worker"), record.fields.at("device")});
  if (record.type == "device.restored")
    withdrawn_.erase({record.fields.at("worker"), record.fields.at("device")});
  if (record.type == "worker.lost") {
    const auto trusted = trusted_until_us_.find(record.fields.at("worker"));
    if (trusted != trusted_until_us_.end() && world_.now_us() < trusted->second - 2 * kSecond)
      Fail("S7: " + trusted->first + " lost its lease while the server slept");
  }
  if (record.type == "worker.disk_full") full_.insert(record.fields.at("worker"));
  if (record.type == "worker.has_room") full_.erase(record.fields.at("worker"));
  if (record.type == "worker.deleted") {
    full_.erase(record.fields.at("worker"));
    std::erase_if(withdrawn_, [&](const auto& d) { return d.first == record.fields.at("worker"); });
  }
  if (record.type == "worker.registered") {
    // A process that was started anew has opened what it offers.
    std::string& incarnation = incarnations_[record.fields.at("worker")];
    if (incarnation != record.fields.at("incarnation")) {
      std::erase_if(withdrawn_, [&](const auto& d) { return d.first == record.fields.at("worker"); });
      full_.erase(record.fields.at("worker"));
    }
    incarnation = record.fields.at("incarnation");
  }
  if (record.job_id.empty()) return;
  Audit& audit = jobs_[record.job_id];
  if (record.sequence != ++audit.sequence) Fail("I7: events of " + record.job_id + " have a gap");
  const auto field = [&](const char* name) {
    const auto it = record.fields.find(name);
    return it == record.fields.end() ? std::string() : it->second;
  };
  const auto epoch = [&] { return field("epoch").empty() ? 0 : std::stoll(field("epoch")); };
  if (core::IsTerminal(audit.terminal) && record.state != audit.terminal) {
    Fail("I4: " + record.job_id + " left its terminal state with " + record.type);
  }
  if (record.type == "attempt.assigned") {
    if (audit.active) Fail("I2: " + record.job_id + " has two ACTIVE attempts");
    if (epoch() <= audit.epoch) Fail("I2: epochs of " + record.job_id + " do not increase");
    audit.epoch = epoch();
    audit.active = true;
    AuditPlacement(record, audit, state);
  } else if (record.type == "attempt.ended") {
    if (!audit.active || epoch() != audit.epoch)
      Fail("I5: an attempt of " + record.job_id + " ended that was not current");
    audit.active = false;
    audit.ended[epoch()] = field("state");
    if (field("state") == "RELEASED" && field("spends_retry") == "true")
      Fail("S3: letting go cost " + record.job_id + " a retry");
  } else if (record.type == "checkpoint.saved" || record.type == "attempt.started" ||
             record.type == "attempt.planned") {
    if (!audit.active || epoch() != audit.epoch)
      Fail("I5: " + record.type + " of " + record.job_id + " from a stale attempt");
    if (record.type == "checkpoint.saved") {
      audit.saved.insert({epoch(), std::stoll(field("step"))});
      audit.kept.insert(std::stoll(field("step")));
    }
  } else if (record.type == "checkpoint.dropped") {
    audit.kept.erase(std::stoll(field("step")));
  } else if (record.type == "job.failed" && field("reason") == "NUMERICS_CHANGED") {
    Fail("S4: " + record.job_id + " was given to a device of other numerics");
  }
  if (core::IsTerminal(record.state)) audit.terminal = record.state;
  if (audit.cancelled && record.state == JobState::kSucceeded) {
    Fail("P7: " + record.job_id + " succeeded after its cancel was acknowledged");
  }
}

void Checker::AuditEvents(const core::State& state) {
  const auto& events = disk_.events();
  // Deleting a job takes its events along, so the place to go on is found by number.
  auto it = std::upper_bound(
      events.begin(), events.end(), number_,
      [](int64_t number, const EventRecord& record) { return number < record.number; });
  for (; it != events.end(); ++it) {
    if (it->number <= number_) Fail("I7: event numbers do not increase");
    AuditEvent(*it, state);
    world_.Trace(it->type + " " + it->job_id + " " + it->message);
  }
}

void Checker::CheckJobs(const core::State& state) {
  for (const std::string& id : acked_) {
    if (state.FindJob(id) == nullptr && deleted_.count(id) == 0)
      Fail("I1: acknowledged " + id + " is gone");
  }
  for (const auto& [id, job] : state.jobs) {
    const auto audit = jobs_.find(id);
    if (audit == jobs_.end()) {
      Fail("I1: " + id + " is there without an event");
      continue;
    }
    if (core::IsTerminal(audit->second.terminal) && job.state != audit->second.terminal)
      Fail("I4: row of " + id);
    if (job.epoch != audit->second.epoch)
      Fail("I2: row of " + id + " has another epoch than its events");
  }
  for (const std::string& id : numerics_allowed_) {
    const Job* job = state.FindJob(id);
    if (job != nullptr && !job->spec.allow_numerics_change)
      Fail("I13: " + id + " may no longer go on with other numerics, which was acknowledged");
  }
  for (const auto& [sha256, projects] : shown_) {
    const auto blob = state.blobs.find(sha256);
    for (const std::string& project : projects) {
      if (blob == state.blobs.end() || blob->second.projects.count(project) == 0)
        Fail("I9: it is forgotten that " + project + " has sent blob " + sha256);
    }
  }
  for (const auto& [id, adapter] : state.adapters) {
    const auto expected = results_.find(id);
    for (const core::FileRef& file : adapter.files) {
      const auto content = contents_.find(file.sha256);
      if (content == contents_.end()) {
        Fail("I6: adapter of " + id + " refers to bytes that are not there");
      } else if (expected != results_.end() && content->second != expected->second) {
        Fail("I6: adapter of " + id + " is " + content->second + ", not " + expected->second);
      }
    }
  }
}

void Checker::CheckRows(const core::State& state) {
  core::State rows = store::WithoutVolatile(disk_.rows());
  core::State mine = store::WithoutVolatile(state);
  const auto same = [&](const auto& a, const auto& b, const char* what) {
    if (a != b) Fail(std::string("rows differ from the state: ") + what);
  };
  // Heads of metrics are written along with other changes only.
  for (core::State* s : {&rows, &mine}) {
    for (auto& [id, job] : s->jobs) {
      job.progress = {};
      job.plan_key.clear();
    }
  }
  same(rows.jobs, mine.jobs, "jobs");
  same(rows.workers, mine.workers, "workers");
  same(rows.adapters, mine.adapters, "adapters");
  same(rows.blobs, mine.blobs, "blobs");
  same(rows.requests, mine.requests, "requests");
  same(rows.models, mine.models, "models");
  same(rows.datasets, mine.datasets, "datasets");
  if (rows.last_event_number != mine.last_event_number)
    Fail("rows differ from the state: last_event_number");
}

void Checker::AfterTurn(const core::State& state) {
  AuditEvents(state);
  if (const absl::Status s = state.CheckInvariants(options_); !s.ok())
    Fail(std::string(s.message()));
  CheckJobs(state);
  if (turns_++ % 16 == 0) CheckRows(state);
}

}  // namespace nibble::sim
