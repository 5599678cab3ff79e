// The agent and the server: registering, the desired set, and for how long a renewal is trusted.
#include <algorithm>
#include <utility>

#include "worker/core/agent.h"

namespace nibble::worker {
namespace {

// So that a server that answers at once is not called in a tight loop.
constexpr int64_t kCallSpacingUs = 20'000;

}  // namespace

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
  std::set<std::tuple<AttemptKey, bool, bool>> listed;
  for (const auto& [key, local] : attempts_) {
    const bool troubled = !local.transfer_trouble.empty() || !local.report_trouble.empty();
    listed.insert({key, local.stage == Stage::kReleased, troubled});
  }
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

}  // namespace nibble::worker
