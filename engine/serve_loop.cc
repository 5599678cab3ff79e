#include "engine/serve_loop.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "base/status.h"
#include "engine/fused_turn.h"

namespace nibble::engine {
namespace {

constexpr int64_t kIdleUs = 1'000'000;

}  // namespace

ServeLoop::ServeLoop(const ServeOptions& options, Mailbox<std::string>& lines, OutputRing& out)
    : options_(options),
      lines_(lines),
      out_(out),
      clock_(*options.clock),
      tell_(out, clock_),
      // An empty line only wakes; in a full mailbox something else does.
      preparer_([&lines] { (void)lines.Post(std::string()); }, clock_) {}

absl::Status ServeLoop::Run() {
  ASSIGN_OR_RETURN(backend_, OpenBackend(options_.device.device, options_.device.threads));
  const spec::DeviceProfile profile = MeasureProfile(*backend_);
  tell_.Hello(profile, NumericsId(backend_->table()));
  const int64_t idle_us = std::min(kIdleUs, options_.disk_retry_us);
  while (!stopping_) {
    WakeHeldUp();
    TakePrepared();
    // What was put off is older than what waits outside, also what is put off by the commands here.
    if (put_off_.empty()) put_off_ = lines_.Take(64, turns_.Next().empty() ? idle_us : 0);
    for (const std::string& line : std::exchange(put_off_, {})) {
      if (!stopping_) Handle(line, profile);
    }
    if (!stopping_) TakeTurn();
  }
  out_.Flush();
  return FaultStatus(*backend_);
}

void ServeLoop::TakeTurn() {
  const std::vector<std::string> attempts = turns_.NextTogether();
  if (attempts.empty()) return;
  std::map<const Job*, std::string> attempt_of;
  std::vector<Job*> jobs;
  for (const std::string& attempt : attempts) {
    jobs.push_back(jobs_.at(attempt).job.get());
    attempt_of[jobs.back()] = attempt;
  }
  if (!options_.fuse) jobs.resize(1);
  jobs = FusedJobs(*device_, jobs);
  for (const Job* job : jobs) in_turn_.push_back(attempt_of[job]);
  heard_in_turn_ = false;
  if (jobs.size() == 1) {
    AdvanceJob(attempts.front(), jobs_.at(attempts.front()));
  } else {
    AdvanceFused(jobs, attempt_of);
  }
  in_turn_.clear();
}

void ServeLoop::AdvanceJob(const std::string& attempt, Attached& attached) {
  ReportPhase(attempt, attached);
  tell_.Turn(attempt);
  Job& job = *attached.job;
  const int64_t begin_us = clock_.NowMonotonicUs();
  absl::StatusOr<JobEvent> event = job.Advance();
  turns_.Charge(attempt, clock_.NowMonotonicUs() - begin_us);
  jobs_in_turn_ = 1;
  Report(attempt, job, event);
}

void ServeLoop::AdvanceFused(const std::vector<Job*>& jobs, std::map<const Job*, std::string>& attempt_of) {
  for (const Job* job : jobs) ReportPhase(attempt_of[job], jobs_.at(attempt_of[job]));
  tell_.Turn(attempt_of[jobs.front()]);
  jobs_in_turn_ = static_cast<int64_t>(jobs.size());
  tell_.Fused(jobs.size());
  const std::vector<FusedStep> steps = AdvanceTogether(*device_, jobs);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const std::string& attempt = attempt_of[jobs[i]];
    turns_.Charge(attempt, steps[i].time_us);
    Report(attempt, *jobs[i], steps[i].event);
  }
}

void ServeLoop::ReportPhase(const std::string& attempt, Attached& attached) {
  const JobWork work = attached.job->NextWork();
  if (work == attached.phase) return;
  attached.phase = work;
  tell_.Work(attempt, work);
}

void ServeLoop::Report(const std::string& attempt, const Job& job, const absl::StatusOr<JobEvent>& event) {
  if (!event.ok()) return Fail(attempt, event.status());
  if (const auto* step = std::get_if<StepDone>(&*event)) {
    tell_.Step(attempt, job, step->row, [&] { return UsedBytes(attempt); }, jobs_in_turn_);
  } else if (const auto* eval = std::get_if<EvalDone>(&*event)) {
    tell_.Eval(attempt, eval->row);
  } else if (const auto* checkpoint = std::get_if<CheckpointDone>(&*event)) {
    tell_.Checkpoint(attempt, *checkpoint);
  } else if (const auto* finish = std::get_if<FinishDone>(&*event)) {
    tell_.Finished(attempt, *finish);
    Remove(attempt);
  } else if (const auto* no_room = std::get_if<NoRoom>(&*event)) {
    HoldUp(attempt, *no_room);
  }
}

int64_t ServeLoop::UsedBytes(const std::string& attempt) const {
  int64_t bytes = ResidentBytes();
  if (!backend_->is_host()) {
    const Job& job = *jobs_.at(attempt).job;
    return backend_->fixed_bytes() + device_->base().bytes() + job.PersistentTouchedBytes() +
           job.plan().step_bytes;
  }
  for (const auto& [other, attached] : jobs_) {
    if (other != attempt) bytes -= attached.job->PersistentTouchedBytes();
  }
  const Region& step = device_->step();
  return bytes -
         (step.TouchedBytes() - step.TouchedBytes(jobs_.at(attempt).job->plan().step_bytes));
}

void ServeLoop::HoldUp(const std::string& attempt, const NoRoom& no_room) {
  tell_.HasNoRoom(attempt, no_room);
  Attached& attached = jobs_.at(attempt);
  attached.phase = JobWork::kNothing;
  if (attached.job->NextWork() != JobWork::kFinish) return;
  attached.held_until_us = clock_.NowMonotonicUs() + options_.disk_retry_us;
  turns_.SetPaused(attempt, true);
  tell_.Phase(attempt, "PAUSED_DISK");
}

void ServeLoop::WakeHeldUp() {
  for (auto& [attempt, attached] : jobs_) {
    if (attached.held_until_us == 0 || clock_.NowMonotonicUs() < attached.held_until_us) continue;
    attached.held_until_us = 0;
    turns_.SetPaused(attempt, attached.paused);
  }
}

void ServeLoop::Fail(const std::string& attempt, const absl::Status& status) {
  // A device that failed stays failed: the process ends, and with it the neighbours' turns here. They
  // are not named, so nothing is held against them.
  if (backend_->fault() == kernels::Fault::kDevice) stopping_ = true;
  Remove(attempt);
  tell_.Failed(attempt, status);
}

void ServeLoop::Remove(const std::string& attempt) {
  turns_.Remove(attempt);
  if (jobs_.erase(attempt) == 0) return;
  if (letting_go_) {
    device_->ShrinkStep(StepBytes());  // its front is in use
  } else {
    FitStep().IgnoreError();  // shrinking
  }
}

int64_t ServeLoop::StepBytes() const {
  int64_t bytes = 0;
  for (const auto& [unused, attached] : jobs_)
    bytes = std::max(bytes, attached.job->plan().step_bytes);
  return bytes;
}

}  // namespace nibble::engine
