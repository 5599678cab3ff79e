#include "worker/core/agent.h"

#include <algorithm>
#include <utility>

namespace nibble::worker {
namespace {

constexpr int64_t kLongestSleepUs = 1'000'000;

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

void Agent::On(const Start&) { started_ = true; }
void Agent::On(const Tick&) {}
void Agent::On(const Drain&) { draining_ = true; }

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

void Agent::End(std::string why, bool superseded) {
  exited_ = true;
  for (const auto& [id, engine] : engines_) Do(KillEngine{id});
  Do(Exit{std::move(why), superseded, !replaced_.empty()});
}

int64_t Agent::NextBackoff(int64_t& backoff_us, int64_t max_us) const {
  backoff_us = backoff_us == 0 ? options_.retry_min_us : std::min(backoff_us * 2, max_us);
  return backoff_us;
}

}  // namespace nibble::worker
