// What goes up from the agent's attempts: files first, then the reports that name them, each until answered.
#include <algorithm>
#include <utility>

#include "worker/core/agent.h"

namespace nibble::worker {
namespace {

constexpr size_t kMaxMetricsPerReport = 512;

// What goes up before it is reported.
std::string NameOf(const ReportBody& report) {
  const auto* checkpoint = std::get_if<CheckpointReport>(&report);
  return checkpoint == nullptr ? "its result"
                               : "the checkpoint of step " + std::to_string(checkpoint->step);
}

}  // namespace

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

}  // namespace nibble::worker
