// The agent's attempts outside of engines: fetching, checking data, failing, letting go.
#include <utility>

#include "worker/core/agent.h"

namespace nibble::worker {

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

}  // namespace nibble::worker
