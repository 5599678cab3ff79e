#include "worker/core/agent.h"

#include <algorithm>

namespace nibble::worker {
namespace {

// So that a server that answers at once is not called in a tight loop.
constexpr int64_t kCallSpacingUs = 20'000;
constexpr size_t kMaxMetricsPerReport = 512;
constexpr int64_t kLongestSleepUs = 1'000'000;

// What goes up before it is reported.
std::string NameOf(const ReportBody& report) {
  const auto* checkpoint = std::get_if<CheckpointReport>(&report);
  return checkpoint == nullptr ? "its result"
                               : "the checkpoint of step " + std::to_string(checkpoint->step);
}

}  // namespace

std::vector<Action> Agent::Handle(const Input& input, int64_t now_us) {
  const int64_t slept_us = now_us - now_us_;
  now_us_ = now_us;
  actions_.clear();
  if (exited_) return {};
  if (started_ && options_.sleep_us > 0 && slept_us >= options_.sleep_us) PutOff(slept_us);
  std::visit([this](const auto& in) { On(in); }, input);
  if (started_ && !exited_) Reconcile();
  return std::move(actions_);
}

int64_t Agent::NextDueUs() const {
  int64_t due_us = now_us_ + kLongestSleepUs;
  const auto at = [&](int64_t us) { due_us = std::min(due_us, std::max(us, now_us_)); };
  if (sync_id_ == 0 && !register_in_flight_) at(call_not_before_us_);
  if (!distrusted_ && trust_until_us_ > 0) at(trust_until_us_);
  for (const auto& [key, local] : attempts_) {
    if (local.stage == Stage::kFetching && !local.fetching) at(local.fetch_not_before_us);
    if (!local.metrics.empty() && !local.sent)
      at(local.metrics_since_us + options_.metrics_interval_us);
    if (local.sent && !local.sent->waiting) at(local.sent->not_before_us);
    if (!local.uploads.empty() && local.uploads.front().id == 0)
      at(local.uploads.front().not_before_us);
  }
  for (const auto& [id, care] : cares_) {
    if (care.in_flight && care.fault.empty()) at(care.sent_us + options_.probe_timeout_us);
    if (!care.in_flight && !care.fault.empty() && !care.replaced) at(care.not_before_us);
  }
  if (!no_room_.empty()) {
    at(room_measured_us_ + options_.retry_disk_us);
    at(full_since_us_ + options_.room_us);
  }
  return due_us;
}

// ---- The server --------------------------------------------------------------------------------

void Agent::On(const Start&) { started_ = true; }
void Agent::On(const Tick&) {}
void Agent::On(const Drain&) { draining_ = true; }

void Agent::On(const RegisterReply& reply) {
  register_in_flight_ = false;
  if (reply.superseded) return End("another process has this worker id", true);
  if (!reply.ok) return RetryCall();
  registered_ = true;
  forgotten_ = false;
  call_backoff_us_ = call_not_before_us_ = 0;
  if (!timeline_.empty() && timeline_ != reply.timeline) {
    AbandonAll();
    revision_ = 0;
  }
  timeline_ = reply.timeline;
  generation_ = reply.generation;
  if (reply.lease_lost_us > 0) lease_lost_us_ = reply.lease_lost_us;
  Renew(register_sent_us_);
}

void Agent::On(const SynchronizeReply& reply) {
  if (reply.id != sync_id_) return;  // of a call that was given up
  sync_id_ = 0;
  switch (reply.code) {
    case SynchronizeReply::Code::kSuperseded:
      return End("another process has this worker id", true);
    case SynchronizeReply::Code::kRegisterAgain:
      // The server has forgotten this worker: what is here is nobody's, and its revisions begin anew.
      AbandonAll();
      revision_ = 0;
      registered_ = false;
      forgotten_ = true;
      return RetryCall();
    case SynchronizeReply::Code::kUnavailable:
      return RetryCall();
    case SynchronizeReply::Code::kOk:
      break;
  }
  call_backoff_us_ = 0;
  call_not_before_us_ = sync_sent_us_ + kCallSpacingUs;
  Renew(sync_sent_us_);
  AdoptDesired(reply);
  if (sync_draining_) drain_told_ = true;
}

void Agent::AdoptDesired(const SynchronizeReply& reply) {
  if (reply.timeline != timeline_) {
    // Tokens of another timeline are dead, and so is what was begun under them.
    AbandonAll();
    revision_ = 0;
  }
  timeline_ = reply.timeline;
  generation_ = reply.generation;
  if (reply.revision < revision_) return;
  revision_ = reply.revision;
  for (auto& [key, local] : attempts_) local.desired = false;
  std::set<AttemptKey> still_given_up;
  for (const Assignment& assignment : reply.assignments) {
    Continue(assignment);
    if (given_up_.contains(assignment.key)) {
      still_given_up.insert(assignment.key);
      continue;
    }
    const auto it = attempts_.find(assignment.key);
    if (it != attempts_.end()) {
      it->second.desired = true;
      it->second.assignment.want = assignment.want;
      Reprioritize(it->second, assignment.priority);
      continue;
    }
    // What is to be released or stopped and is not here has been let go already; absence says so.
    const bool wanted = assignment.want == Want::kRun || assignment.want == Want::kPause;
    if (!wanted || draining_) continue;
    Local& local = attempts_[assignment.key];
    local.assignment = assignment;
    local.local_key = assignment.key;
  }
  given_up_ = std::move(still_given_up);
  for (auto& [key, local] : attempts_) {
    if (local.desired) {
      Obey(local);
    } else {
      Abandon(local);
    }
  }
}

bool Agent::IsIntact(const Local& local) {
  return local.assignment.kind == Kind::kTrain && !local.abandoned &&
         (local.stage == Stage::kAttached || local.stage == Stage::kFinishing);
}

// The attempt it continues gets its key, if that is intact; else it begins as any other.
void Agent::Continue(const Assignment& assignment) {
  if (assignment.continues_epoch == 0 || attempts_.contains(assignment.key)) return;
  const auto it = attempts_.find({assignment.key.job_id, assignment.continues_epoch});
  if (it == attempts_.end() || !IsIntact(it->second)) return;
  auto node = attempts_.extract(it);
  node.key() = assignment.key;
  Local& local = attempts_.insert(std::move(node)).position->second;
  Reprioritize(local, assignment.priority);
  local.assignment = assignment;
  if (!local.sent) return;
  // What could not be said as the one before is said as this one; an answer to that no longer counts.
  local.sent->report.id = next_id_++;
  local.sent->report.key = assignment.key;
  local.sent->report.token = assignment.token;
  local.sent->waiting = false;
  local.sent->not_before_us = 0;
}

// Changed while it runs: its engine hears of it; one it is attached to later does with that.
void Agent::Reprioritize(Local& local, int32_t priority) {
  if (local.assignment.priority == priority) return;
  local.assignment.priority = priority;
  if (local.stage == Stage::kAttached) Do(SetPriority{local.engine, local.local_key, priority});
}

void Agent::Obey(Local& local) {
  if (local.abandoned) return;
  switch (local.assignment.want) {
    case Want::kRun:
      if (local.stage == Stage::kAttached && local.paused && !distrusted_) {
        local.paused = false;
        Do(ResumeAttempt{local.engine, local.local_key});
      }
      return;
    case Want::kPause:
      if (local.stage == Stage::kAttached && !local.paused) {
        local.paused = true;
        Do(PauseAttempt{local.engine, local.local_key});
      }
      return;
    case Want::kRelease:
      return Release(local);
    case Want::kStop:
      return Abandon(local);
  }
}

void Agent::Renew(int64_t sent_us) {
  // Anchored at the time of sending: the server's lease began later, so it ends later.
  const int64_t margin_us = std::min(options_.trust_margin_us, lease_lost_us_ / 8);
  trust_until_us_ = std::max(trust_until_us_, sent_us + lease_lost_us_ - margin_us);
  silence_until_us_ = trust_until_us_ + options_.silence_us;
  if (now_us_ < trust_until_us_) distrusted_ = false;
}

void Agent::CheckTrust() {
  if (trust_until_us_ == 0 || now_us_ < trust_until_us_) return;
  if (!distrusted_) {
    distrusted_ = true;
    for (auto& [key, local] : attempts_) {
      if (local.stage != Stage::kAttached || local.paused) continue;
      local.paused = true;
      Do(CheckpointAttempt{local.engine, local.local_key});
      Do(PauseAttempt{local.engine, local.local_key});
    }
  }
  if (now_us_ >= silence_until_us_) AbandonAll();
}

void Agent::RetryCall() {
  call_not_before_us_ = now_us_ + NextBackoff(call_backoff_us_, options_.retry_max_us);
}

void Agent::Register() {
  if (registered_ || register_in_flight_ || now_us_ < call_not_before_us_) return;
  // A server that does not know what holds bytes here would place other work on them.
  if (forgotten_ && !attempts_.empty()) return;
  register_in_flight_ = true;
  register_sent_us_ = now_us_;
  Do(DoRegister{timeline_, generation_});
}

void Agent::Synchronize() {
  if (!registered_) return;
  std::set<std::pair<AttemptKey, bool>> listed;
  for (const auto& [key, local] : attempts_) listed.insert({key, local.stage == Stage::kReleased});
  // An outstanding call is replaced when it has told something that is no longer so.
  const std::set<std::string> withdrawn = WithdrawnDevices();
  const bool news =
      listed != sync_listed_ || draining_ != sync_draining_ || withdrawn != sync_withdrawn_ ||
      no_room_ != sync_no_room_;
  if (sync_id_ != 0 ? !news : now_us_ < call_not_before_us_) return;
  sync_id_ = next_id_++;
  sync_sent_us_ = now_us_;
  sync_draining_ = draining_;
  sync_listed_ = std::move(listed);
  sync_withdrawn_ = withdrawn;
  sync_no_room_ = no_room_;
  Do(DoSynchronize{{sync_id_, revision_, Listing(), Devices(), draining_, no_room_}, generation_});
}

std::vector<RunningAttempt> Agent::Listing() const {
  std::vector<RunningAttempt> listing;
  for (const auto& [key, local] : attempts_) {
    const Phase phase = local.stage == Stage::kReleased ? Phase::kReleased : local.phase;
    const bool files = !local.transfer_trouble.empty();
    listing.push_back({key, local.assignment.device_id, phase, local.step, local.used_bytes, IsIntact(local),
                       files ? local.transfer_trouble : local.report_trouble});
  }
  return listing;
}

void Agent::End(std::string why, bool superseded) {
  exited_ = true;
  for (const auto& [id, engine] : engines_) Do(KillEngine{id});
  Do(Exit{std::move(why), superseded, !replaced_.empty()});
}

// ---- Attempts ----------------------------------------------------------------------------------

Agent::Local* Agent::Find(const AttemptKey& key) {
  const auto it = attempts_.find(key);
  return it == attempts_.end() ? nullptr : &it->second;
}

void Agent::Finish(Local& local) {
  local.stage = local.abandoned ? Stage::kReleased : Stage::kFinishing;
  local.phase = Phase::kUploading;
}

void Agent::Abandon(Local& local) {
  if (local.abandoned) return;
  local.abandoned = true;
  if (!local.uploads.empty() && local.uploads.front().id != 0)
    Do(StopUpload{local.uploads.front().id});
  local.uploads.clear();
  local.outbox.clear();
  local.metrics.clear();
  local.sent.reset();
  switch (local.stage) {
    case Stage::kFetching:
      if (local.fetching) Do(StopFetch{local.assignment.key});
      local.stage = Stage::kReleased;
      return;
    case Stage::kChecking:
      Do(StopCheck{local.assignment.key});
      local.stage = Stage::kReleased;
      return;
    case Stage::kAttached:
      return LetGo(local, false);
    case Stage::kDetaching:
    case Stage::kReleased:
      return;
    case Stage::kWaitingEngine:
    case Stage::kFinishing:
      local.stage = Stage::kReleased;
      return;
  }
}

void Agent::AbandonAll() {
  for (auto& [key, local] : attempts_) {
    local.desired = false;
    Abandon(local);
  }
}

void Agent::Release(Local& local) {
  switch (local.stage) {
    case Stage::kFetching:
      if (local.fetching) Do(StopFetch{local.assignment.key});
      break;
    case Stage::kWaitingEngine:
      break;
    case Stage::kChecking:
      Do(StopCheck{local.assignment.key});
      break;
    case Stage::kAttached:
      local.last_body = ReleasedReport{local.step};
      return LetGo(local, true);
    case Stage::kDetaching:
    case Stage::kFinishing:
    case Stage::kReleased:
      return;  // it goes already
  }
  local.last_body = ReleasedReport{local.assignment.checkpoint_step};
  Finish(local);
}

void Agent::Fail(Local& local, FailedReport report) {
  if (!local.abandoned) {
    if (!local.uploads.empty() && local.uploads.front().id != 0)
      Do(StopUpload{local.uploads.front().id});
    local.uploads.clear();
    local.last_body = std::move(report);
  }
  if (local.engine != 0 && local.stage == Stage::kAttached) return LetGo(local, false);
  if (local.engine != 0 && local.stage == Stage::kDetaching) return;  // it is being let go
  Finish(local);
}

void Agent::AdvanceFetch(Local& local) {
  if (local.stage != Stage::kFetching || local.fetching || now_us_ < local.fetch_not_before_us)
    return;
  local.fetching = true;
  local.phase = Phase::kFetching;
  Do(DoFetch{local.assignment});
}

void Agent::On(const Fetched& in) {
  Local* local = Find(in.key);
  if (local == nullptr || local->stage != Stage::kFetching) return;
  local->fetching = false;
  local->transfer_trouble.clear();
  local->files = in.files;
  NoteRoom();
  if (local->assignment.kind == Kind::kTrain) {
    local->stage = Stage::kWaitingEngine;
    local->phase = Phase::kLoadingBase;
    return;
  }
  local->stage = Stage::kChecking;
  local->phase = Phase::kTokenizing;
  Do(StartCheck{local->assignment, local->files});
}

void Agent::On(const FetchFailed& in) {
  Local* local = Find(in.key);
  if (local == nullptr || local->stage != Stage::kFetching) return;
  local->fetching = false;
  local->transfer_trouble = "its files do not come here, and are tried again: " + in.message;
  if (in.reason == "STORAGE_FULL") {
    NoteFull(in.message);
    // Once more, when caches have been dropped.
    if (local->fetch_found_no_room) return Fail(*local, {in.reason, in.message, true, false});
    local->fetch_found_no_room = true;
    local->phase = Phase::kPausedDisk;
    local->fetch_not_before_us = now_us_ + options_.retry_disk_us;
    return;
  }
  if (in.again && ++local->fetch_tries < options_.max_fetch_tries) {
    local->fetch_not_before_us =
        now_us_ + NextBackoff(local->fetch_backoff_us, options_.retry_disk_us);
    return;
  }
  Fail(*local, {in.reason, in.message, in.infrastructure, false});
}

void Agent::On(const CheckEnded& in) {
  Local* local = Find(in.key);
  if (local == nullptr || local->stage != Stage::kChecking) return;
  if (in.reason == "STORAGE_FULL") NoteFull(in.message);
  if (!in.ok) return Fail(*local, {in.reason, in.message, in.infrastructure, false});
  local->last_body = CheckReport{in.report_json, in.planned_steps};
  Finish(*local);
}

void Agent::EraseDone() {
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    const Local& local = it->second;
    if (local.stage != Stage::kReleased || (local.desired && !local.abandoned)) {
      ++it;
      continue;
    }
    // No report will follow, so absence must tell a server that still wants it.
    if (local.desired) given_up_.insert(it->first);
    Do(Forget{it->second.local_key});
    it = attempts_.erase(it);
  }
}

// ---- Uploads and reports -----------------------------------------------------------------------

int64_t Agent::NextBackoff(int64_t& backoff_us, int64_t max_us) const {
  backoff_us = backoff_us == 0 ? options_.retry_min_us : std::min(backoff_us * 2, max_us);
  return backoff_us;
}

void Agent::AdvanceUploads(Local& local) {
  if (local.uploads.empty()) return;
  PendingUpload& upload = local.uploads.front();
  if (upload.id != 0 || now_us_ < upload.not_before_us) return;
  upload.id = next_id_++;
  if (local.stage == Stage::kFinishing) local.phase = Phase::kUploading;
  Do(DoUpload{upload.id, local.assignment.key, local.assignment.token, upload.dir});
}

void Agent::On(const Uploaded& in) {
  for (auto& [key, local] : attempts_) {
    if (local.uploads.empty() || local.uploads.front().id != in.id) continue;
    ReportBody body = std::move(local.uploads.front().report);
    local.uploads.pop_front();
    local.transfer_trouble.clear();
    if (auto* finished = std::get_if<FinishedReport>(&body)) {
      finished->files = in.files;
      local.last_body = std::move(body);
    } else if (auto* checkpoint = std::get_if<CheckpointReport>(&body)) {
      checkpoint->files = in.files;
      local.outbox.push_back(std::move(body));
    }
    return;
  }
}

void Agent::On(const UploadFailed& in) {
  for (auto& [key, local] : attempts_) {
    if (local.uploads.empty() || local.uploads.front().id != in.id) continue;
    PendingUpload& upload = local.uploads.front();
    upload.id = 0;
    local.transfer_trouble = NameOf(upload.report) + " does not go up, and is tried again: " + in.message;
    // A newer checkpoint makes this one needless.
    if (local.uploads.size() > 1 && std::holds_alternative<CheckpointReport>(upload.report)) {
      local.uploads.pop_front();
      return;
    }
    upload.not_before_us = now_us_ + NextBackoff(upload.backoff_us, options_.retry_disk_us);
    if (in.reason == "STORAGE_FULL" && local.stage == Stage::kFinishing)
      local.phase = Phase::kPausedDisk;
    return;
  }
}

void Agent::AdvanceReports(Local& local) {
  if (local.abandoned) return;
  if (local.stage == Stage::kFinishing && local.uploads.empty() && local.last_body &&
      !local.last_queued) {
    local.outbox.push_back(std::move(*local.last_body));
    local.last_queued = true;
  }
  if (!local.sent) {
    const bool due =
        !local.metrics.empty() && now_us_ >= local.metrics_since_us + options_.metrics_interval_us;
    if (local.outbox.empty() && !due) return;
    SentReport sent;
    sent.report.id = next_id_++;
    sent.report.key = local.assignment.key;
    sent.report.token = local.assignment.token;
    const size_t count = std::min(local.metrics.size(), kMaxMetricsPerReport);
    const auto end = local.metrics.begin() + static_cast<int64_t>(count);
    sent.report.metrics.assign(local.metrics.begin(), end);
    local.metrics.erase(local.metrics.begin(), end);
    local.metrics_since_us = now_us_;
    // Steps before what they led to: a body goes with the last of them.
    if (local.metrics.empty() && !local.outbox.empty()) {
      sent.report.body = std::move(local.outbox.front());
      local.outbox.pop_front();
      sent.last = local.last_queued && local.outbox.empty();
    }
    local.sent = std::move(sent);
  }
  if (local.sent->waiting || now_us_ < local.sent->not_before_us) return;
  local.sent->waiting = true;
  Do(DoReport{local.sent->report, generation_});
}

void Agent::On(const ReportReply& in) {
  const auto it = std::find_if(attempts_.begin(), attempts_.end(), [&](const auto& entry) {
    return entry.second.sent && entry.second.sent->report.id == in.id;
  });
  if (it == attempts_.end()) return;
  Local& local = it->second;
  SentReport& sent = *local.sent;
  switch (in.code) {
    case ReportReply::Code::kStale:
      // A server that has not heard of us for so long may still give it back: its next set decides.
      if (trusted(now_us_)) return Abandon(local);
      [[fallthrough]];
    case ReportReply::Code::kUnavailable:
      sent.waiting = false;
      local.report_trouble = "its reports are not taken, and are sent again: " + in.message;
      sent.not_before_us = now_us_ + NextBackoff(sent.backoff_us, options_.retry_max_us);
      return;
    case ReportReply::Code::kOk:
      local.report_trouble.clear();
      if (sent.last) local.stage = Stage::kReleased;
      local.sent.reset();
      return;
    case ReportReply::Code::kRefused:
      break;
  }
  const ReportBody body = std::move(sent.report.body);
  local.sent.reset();
  if (std::holds_alternative<std::monostate>(body)) return;
  if (std::holds_alternative<CheckpointReport>(body)) {
    // Until the next one has gone up.
    local.transfer_trouble = NameOf(body) + " was refused, and is lost: " + in.message;
    return;
  }
  if (std::holds_alternative<FailedReport>(body) || std::holds_alternative<ReleasedReport>(body)) {
    return Abandon(local);
  }
  local.last_queued = false;
  local.outbox.clear();
  const bool plan = std::holds_alternative<PlanReport>(body);
  Fail(local, {plan ? "NUMERICS_CHANGED" : "INTERNAL", "the server refused a report: " + in.message,
               !plan, false});
}

// ---- The turn ----------------------------------------------------------------------------------

void Agent::Reconcile() {
  CheckTrust();
  CheckTimeouts();
  AdvanceProbes();
  WatchRoom();
  FailWithdrawn();
  for (auto& [key, local] : attempts_) AdvanceFetch(local);
  AdvanceEngines();
  for (auto& [key, local] : attempts_) {
    AdvanceUploads(local);
    AdvanceReports(local);
  }
  EraseDone();
  LeaveWhenReplaced();
  if (draining_ && drain_told_ && attempts_.empty() && engines_.empty())
    return End(replaced_.empty() ? "drained" : replaced_, false);
  Register();
  Synchronize();
}

}  // namespace nibble::worker
