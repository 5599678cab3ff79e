#include "server/core/state.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "server/core/blob_references.h"
#include "server/core/schedule.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {
namespace {

absl::Status Broken(std::string message) {
  return absl::InternalError(absl::StrCat("invariant broken: ", message));
}

bool HasActiveAttempt(JobState s) {
  return s == JobState::kStarting || s == JobState::kRunning || s == JobState::kPausing ||
         s == JobState::kCancelling;
}

absl::Status CheckAttempts(const Job& job) {
  int active = 0;
  int64_t previous = 0;
  for (const auto& [epoch, attempt] : job.attempts) {
    if (attempt.epoch != epoch || attempt.job_id != job.id) return Broken(job.id + " attempt key");
    if (epoch != previous + 1)
      return Broken(absl::StrCat(job.id, " epochs are not dense at ", epoch));
    previous = epoch;
    if (attempt.state == AttemptState::kActive) {
      ++active;
      if (epoch != job.epoch)
        return Broken(absl::StrCat(job.id, " has an old ACTIVE attempt ", epoch));
      if (!attempt.holds_bytes) return Broken(absl::StrCat(job.id, " ACTIVE without bytes"));
    }
  }
  if (previous != job.epoch)
    return Broken(absl::StrCat(job.id, " epoch is not that of its last attempt"));
  if (active != (HasActiveAttempt(job.state) ? 1 : 0)) {
    return Broken(absl::StrCat(job.id, " is ", std::string(JobStateName(job.state)), " with ",
                               active, " ACTIVE attempts"));
  }
  return absl::OkStatus();
}

absl::Status CheckFiles(const State& state, const std::vector<FileRef>& files,
                        const std::string& owner) {
  for (const FileRef& file : files) {
    const auto blob = state.blobs.find(file.sha256);
    if (blob == state.blobs.end()) return Broken(absl::StrCat(owner, " refers to a missing blob"));
    if (blob->second.size_bytes != file.size_bytes)
      return Broken(absl::StrCat(owner, " blob size"));
  }
  return absl::OkStatus();
}

absl::Status CheckJob(const State& state, const Job& job) {
  if (absl::Status s = CheckAttempts(job); !s.ok()) return s;
  const bool succeeded = job.state == JobState::kSucceeded;
  if (job.kind == JobKind::kTrain && succeeded != !job.adapter_id.empty()) {
    return Broken(
        absl::StrCat(job.id, " SUCCEEDED without a result, or a result without SUCCEEDED"));
  }
  if (succeeded && job.attempts.at(job.epoch).state != AttemptState::kDone) {
    return Broken(absl::StrCat(job.id, " SUCCEEDED but its last attempt is not DONE"));
  }
  int64_t step = -1;
  for (const Checkpoint& checkpoint : job.checkpoints) {
    if (checkpoint.step <= step) return Broken(absl::StrCat(job.id, " checkpoints out of order"));
    step = checkpoint.step;
    if (absl::Status s = CheckFiles(state, checkpoint.files, job.id); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckDevices(const State& state, const Worker& worker, const CoreOptions& options) {
  for (const auto& [device_id, device] : worker.devices) {
    const DeviceLoad load = LoadOf(state, worker, device_id);
    if (load.TotalBytes() > device.capacity_bytes) {
      return Broken(absl::StrCat(worker.id, "/", device_id, " is over-committed: ",
                                 load.TotalBytes(), " of ", device.capacity_bytes));
    }
    if (!Capacity(device).Holds(load.beside)) {
      return Broken(absl::StrCat(worker.id, "/", device_id, " has too little host memory for ",
                                 load.beside.pinned_bytes, " bytes page-locked and ",
                                 load.beside.host_bytes, " others"));
    }
    if (load.attempts > options.max_attempts_per_device) {
      return Broken(absl::StrCat(worker.id, "/", device_id, " has too many attempts"));
    }
    for (const DeviceLoad::Group& group : load.groups) {
      if (group.alone && group.attempts > 1)
        return Broken(absl::StrCat(worker.id, " run_alone shared"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

const Job* State::FindJob(std::string_view id) const {
  const auto it = jobs.find(std::string(id));
  return it == jobs.end() ? nullptr : &it->second;
}

const Worker* State::FindWorker(std::string_view id) const {
  const auto it = workers.find(std::string(id));
  return it == workers.end() ? nullptr : &it->second;
}

const Attempt* State::FindAttempt(const AttemptKey& key) const {
  const Job* job = FindJob(key.first);
  if (job == nullptr) return nullptr;
  const auto it = job->attempts.find(key.second);
  return it == job->attempts.end() ? nullptr : &it->second;
}

const Model* State::ModelOf(const Job& job) const {
  const auto it = models.find(job.model_id);
  return it == models.end() ? nullptr : &it->second;
}

int64_t RevisionOfNew(const State& state) { return std::max(state.generation << 32, state.gone_revision); }

bool IsUnread(const State& state, const Job& job) {
  return job.kind == JobKind::kTrain && job.state == JobState::kQueued &&
         job.progress.planned_steps == 0 && job.report_json.empty() &&
         state.checks.count(job.check_key) == 0;
}

namespace {

std::string KindKey(const Device& device) {
  return absl::StrCat(ProfileKey(device.profile), "/", device.capacity_bytes, "/",
                      device.profile.pinned_capacity_bytes, "/",
                      device.profile.host_capacity_bytes);
}

}  // namespace

void State::ListDevices(const Worker& worker) {
  for (const auto& [id, device] : worker.devices) {
    DeviceKind& kind = device_kinds[KindKey(device)];
    kind.profile = device.profile;
    kind.profile.capacity_bytes = device.capacity_bytes;
    kind.devices.insert({worker.id, id});
  }
}

void State::UnlistDevices(const Worker& worker) {
  for (const auto& [id, device] : worker.devices) {
    const auto it = device_kinds.find(KindKey(device));
    if (it == device_kinds.end()) continue;
    it->second.devices.erase({worker.id, id});
    if (it->second.devices.empty()) device_kinds.erase(it);
  }
}

void State::BuildIndexes() {
  device_kinds.clear();
  for (const auto& [id, worker] : workers) ListDevices(worker);
  for (auto* index : {&live_jobs, &queued_jobs, &queued_checks, &cancelling_jobs})
    index->clear();
  for (auto* index : {&model_users, &dataset_users, &check_users, &unread}) index->clear();
  holding.clear();
  checks.clear();
  checks_held.clear();
  requests_by_age.clear();
  jobs_by_number.clear();
  job_counts = {};
  for (auto& [id, job] : jobs) {
    // Of a job's life neither changes; rows come without.
    const Model* model = job.plan_key.empty() ? ModelOf(job) : nullptr;
    if (model != nullptr) job.plan_key = PlanKey(*model, job.spec);
    if (job.kind == JobKind::kTrain) jobs_by_number[job.number] = id;
    if (job.kind == JobKind::kTrain) ++job_counts[static_cast<size_t>(job.state)];
    if (job.kind == JobKind::kCheck) {
      std::string& newest = checks[job.check_key];
      if (newest.empty() || jobs.at(newest).number < job.number) newest = id;
    }
    for (const auto& [epoch, attempt] : job.attempts) {
      if (!attempt.holds_bytes) continue;
      holding[attempt.worker_id].insert({id, epoch});
      if (job.kind == JobKind::kCheck) ++checks_held[attempt.worker_id];
    }
    if (IsTerminal(job.state)) continue;
    live_jobs.insert(id);
    if (job.state == JobState::kQueued) {
      queued_jobs.insert(id);
      if (job.kind == JobKind::kCheck) queued_checks.insert(id);
    }
    if (job.state == JobState::kCancelling) cancelling_jobs.insert(id);
    model_users[job.model_id].insert(id);
    dataset_users[job.dataset_id].insert(id);
    if (!job.eval_dataset_id.empty()) dataset_users[job.eval_dataset_id].insert(id);
    if (job.kind == JobKind::kTrain) check_users[job.check_key].insert(id);
  }
  for (const auto& [id, job] : jobs) {
    if (IsUnread(*this, job)) unread[job.check_key].insert(id);
  }
  for (const auto& [key, record] : requests) {
    if (JobMadeBy(*this, record) == nullptr) requests_by_age.insert({record.create_unix_us, key});
  }
  RebuildBoard(this, 0);
}

absl::Status State::CheckInvariants(const CoreOptions& options) const {
  for (const auto& [id, job] : jobs) {
    if (job.id != id) return Broken(id + " job key");
    if (absl::Status s = CheckJob(*this, job); !s.ok()) return s;
  }
  for (const auto& [id, worker] : workers) {
    if (absl::Status s = CheckDevices(*this, worker, options); !s.ok()) return s;
  }
  for (const auto& [id, adapter] : adapters) {
    if (absl::Status s = CheckFiles(*this, adapter.files, "adapter " + id); !s.ok()) return s;
  }
  for (const auto& [key, record] : requests) {
    const Job* job = JobMadeBy(*this, record);
    if (job != nullptr && job->body_sha256 != record.body_sha256) {
      return Broken(absl::StrCat("request ", record.request_id, " names a job made by another"));
    }
  }
  State rebuilt = *this;
  for (auto& [id, job] : rebuilt.jobs) job.plan_key.clear();
  rebuilt.BuildIndexes();
  std::erase_if(rebuilt.holding, [](const auto& entry) { return entry.second.empty(); });
  State mine = *this;
  std::erase_if(mine.holding, [](const auto& entry) { return entry.second.empty(); });
  if (rebuilt.live_jobs != mine.live_jobs) return Broken("index live_jobs");
  if (rebuilt.queued_jobs != mine.queued_jobs) return Broken("index queued_jobs");
  if (rebuilt.holding != mine.holding) return Broken("index holding");
  if (rebuilt.checks != mine.checks) return Broken("index checks");
  if (rebuilt.model_users != mine.model_users) return Broken("index model_users");
  if (rebuilt.dataset_users != mine.dataset_users) return Broken("index dataset_users");
  if (rebuilt.queued_checks != mine.queued_checks) return Broken("index queued_checks");
  if (rebuilt.cancelling_jobs != mine.cancelling_jobs) return Broken("index cancelling_jobs");
  if (rebuilt.check_users != mine.check_users) return Broken("index check_users");
  if (rebuilt.checks_held != mine.checks_held) return Broken("index checks_held");
  if (rebuilt.requests_by_age != mine.requests_by_age) return Broken("index requests_by_age");
  if (rebuilt.jobs_by_number != mine.jobs_by_number) return Broken("index jobs_by_number");
  if (rebuilt.job_counts != mine.job_counts) return Broken("index job_counts");
  if (rebuilt.unread != mine.unread) return Broken("index unread");
  if (!std::equal(rebuilt.device_kinds.begin(), rebuilt.device_kinds.end(),
                  mine.device_kinds.begin(), mine.device_kinds.end(),
                  [](const auto& a, const auto& b) {
                    return a.first == b.first && a.second.devices == b.second.devices;
                  }))
    return Broken("index device_kinds");
  const std::string made = rebuilt.board.Dump();
  const std::string kept = mine.board.Dump();
  if (made != kept) {
    const auto at = std::mismatch(made.begin(), made.end(), kept.begin(), kept.end()).second;
    const auto line = kept.rfind('\n', static_cast<size_t>(at - kept.begin())) + 1;
    return Broken(absl::StrCat("the scheduler's board, at: ", kept.substr(line, 200)));
  }
  return absl::OkStatus();
}

const Job* JobMadeBy(const State& state, const RequestRecord& record) {
  const Job* job = state.FindJob(record.job_id);
  const bool same = job != nullptr && job->tenant == record.tenant && job->request_id == record.request_id;
  return same ? job : nullptr;
}

std::string Etag(const Job& job) { return absl::StrCat(job.uid, "-", job.last_sequence); }

std::string AttemptToken(const CoreOptions& options, const State& state, std::string_view job_id,
                         int64_t epoch, std::string_view worker_id, std::string_view incarnation) {
  constexpr char kSeparator = '\x1f';
  std::string text = state.timeline;
  for (const std::string_view part : {job_id, worker_id, incarnation}) {
    text += kSeparator;
    text.append(part);
  }
  absl::StrAppend(&text, "\x1f", epoch);
  return HmacSha256Hex(options.token_secret, text);
}

WorkerHealth HealthOf(const Worker& worker, const CoreOptions& options, int64_t now_us) {
  if (worker.lost) return WorkerHealth::kLost;
  const int64_t age_us = now_us - worker.renewed_us;
  if (age_us > options.lease_lost_us) return WorkerHealth::kLost;
  return age_us > options.lease_suspect_us ? WorkerHealth::kSuspect : WorkerHealth::kAlive;
}

std::set<std::string> ReferencedBlobs(const State& state) {
  std::set<std::string> digests;
  BlobReferences().Next(state, [&](const std::string& sha256) { digests.insert(sha256); }, SIZE_MAX);
  return digests;
}

}  // namespace nibble::core
