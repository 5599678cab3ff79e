// What the worker's commands do, whenever they come.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/serve_loop.h"

namespace nibble::engine {
namespace {

constexpr int64_t kHeldUs = 600'000'000;  // ServeOptions::waits_in_turn

}  // namespace

void ServeLoop::Handle(const std::string& line, const spec::DeviceProfile& profile) {
  if (line.empty()) return;
  std::string attempt;
  absl::StatusOr<Command> command = ParseCommand(line, attempt);
  if (!command.ok()) return tell_.BadCommand(attempt, command.status());
  switch (command->type) {
    case CommandType::kShutdown:
      stopping_ = true;
      return;
    case CommandType::kAttach: {
      if (device_ == nullptr && !OpenDevice(attempt, profile)) return;
      return Attach(*std::move(command));
    }
    case CommandType::kPause:
      return SetPaused(attempt, true);
    case CommandType::kResume:
      return SetPaused(attempt, false);
    case CommandType::kPriority:
      if (const auto it = preparing_.find(attempt); it != preparing_.end())
        it->second.command.priority = command->priority;
      return turns_.SetWeight(attempt, TurnWeight(command->priority));
    case CommandType::kCheckpoint:
      return WriteCheckpoint(attempt);
    case CommandType::kDetach:
      return Detach(attempt, command->checkpoint);
  }
}

void ServeLoop::SetPaused(const std::string& attempt, bool paused) {
  if (const auto it = preparing_.find(attempt); it != preparing_.end()) {
    it->second.paused = paused;  // it is read to its end, and has no turn then
    if (paused) tell_.Paused(attempt, 0);
    return;
  }
  const auto it = jobs_.find(attempt);
  if (it == jobs_.end()) return;
  it->second.paused = paused;
  turns_.SetPaused(attempt, paused || it->second.held_until_us > 0);
  if (paused) tell_.Paused(attempt, it->second.job->step());
}

void ServeLoop::WriteCheckpoint(const std::string& attempt) {
  const auto it = jobs_.find(attempt);
  if (it == jobs_.end() || !it->second.job->WorthSaving()) return;
  it->second.job->RequestCheckpoint();
  AdvanceJob(attempt, it->second);
}

void ServeLoop::Detach(const std::string& attempt, bool checkpoint) {
  if (const auto it = preparing_.find(attempt); it != preparing_.end()) {
    it->second.leaving = true;
    return preparer_.Cancel(attempt);
  }
  if (checkpoint) WriteCheckpoint(attempt);
  const auto it = jobs_.find(attempt);  // a failed checkpoint has removed it
  if (it == jobs_.end()) return;
  // Letting go without what was asked for would lose the steps unsaid.
  const absl::Status owed = it->second.job->no_room();
  if (checkpoint && !owed.ok()) return Fail(attempt, owed);
  const int64_t step = it->second.job->step();
  Remove(attempt);
  tell_.Detached(attempt, step);
}

bool ServeLoop::OpenDevice(const std::string& attempt, const spec::DeviceProfile& profile) {
  tell_.Phase(attempt, "LOADING_BASE");
  const int64_t begin_us = clock_.NowMonotonicUs();
  DeviceOptions options = options_.device;
  bool leaving = false;
  options.base.stop = [&] { return HearWhileOpening(attempt, leaving); };
  absl::StatusOr<std::unique_ptr<Device>> opened = Device::Open(options, *backend_, profile);
  if (!opened.ok() && !leaving && !absl::IsCancelled(opened.status())) Fail(attempt, opened.status());
  if (leaving) tell_.Detached(attempt, 0);
  if (!opened.ok()) return false;
  device_ = *std::move(opened);
  tell_.Base(device_->base(), static_cast<double>(clock_.NowMonotonicUs() - begin_us) * 1e-6);
  return !leaving;
}

bool ServeLoop::HearWhileOpening(const std::string& attempt, bool& leaving) {
  const bool wait = options_.waits_in_turn && options_.waits_in_turn({attempt}, -1);
  for (std::string& line : lines_.Take(64, wait ? kHeldUs : 0)) {
    std::string other;
    const absl::StatusOr<Command> command = ParseCommand(line, other);
    const bool detach = command.ok() && command->type == CommandType::kDetach;
    if (detach && other == attempt) {
      leaving = true;
      continue;
    }
    opening_stopped_ = opening_stopped_ || (command.ok() && command->type == CommandType::kShutdown);
    put_off_.push_back(std::move(line));
  }
  // What came meanwhile may be others' attaches: for them it goes on.
  return opening_stopped_ || (leaving && put_off_.empty());
}

void ServeLoop::Attach(Command command) {
  const std::string attempt = command.attempt;
  if (jobs_.contains(attempt) || preparing_.contains(attempt)) return;  // a repeated line changes nothing
  tell_.Phase(attempt, "TOKENIZING");
  JobInput input = command.job;
  input.disk_retry_us = options_.disk_retry_us;
  const absl::Status begun =
      preparer_.Add(attempt, [this, input = std::move(input)](const std::function<bool()>& stop) {
        return Job::Open(*device_, input, clock_, stop);
      });
  if (!begun.ok()) return Fail(attempt, begun);
  preparing_[attempt] = {.command = std::move(command)};
}

void ServeLoop::TakePrepared() {
  while (std::optional<Preparer::Prepared> one = preparer_.Take()) ready_.push_back(*std::move(one));
  for (auto it = ready_.begin(); it != ready_.end();) {
    const auto preparing = preparing_.find(it->attempt);
    if (!preparing->second.leaving && !in_turn_.empty()) {
      ++it;
      continue;
    }
    Preparer::Prepared prepared = std::move(*it);
    it = ready_.erase(it);
    const Preparing what = std::move(preparing->second);
    preparing_.erase(preparing);
    if (what.leaving) {
      prepared.job = absl::CancelledError("detached");  // gone before it is said to be
      tell_.Detached(prepared.attempt, 0);
      continue;
    }
    absl::Status joined = prepared.job.status();
    if (joined.ok()) joined = Join(what, *std::move(prepared.job));
    if (!joined.ok()) Fail(prepared.attempt, joined);
  }
}

absl::Status ServeLoop::Join(const Preparing& what, std::unique_ptr<Job> job) {
  const std::string& attempt = what.command.attempt;
  tell_.Turn(attempt);
  RETURN_IF_ERROR(CheckPlan(what.command, job->plan()));
  RETURN_IF_ERROR(job->Start());
  job->set_stop([this] { return LookUp(); });
  Attached& attached = jobs_[attempt];
  attached.job = std::move(job);
  attached.paused = what.paused;
  const absl::Status fitted = FitStep();
  if (!fitted.ok()) {
    jobs_.erase(attempt);
    FitStep().IgnoreError();  // as it was; a neighbour that cannot run will say so in its turn
    return fitted;
  }
  turns_.Add(attempt, TurnWeight(what.command.priority));
  turns_.SetPaused(attempt, what.paused);
  tell_.Attached(attempt, *attached.job);
  return absl::OkStatus();
}

absl::Status ServeLoop::CheckPlan(const Command& command, const spec::MemoryPlan& plan) const {
  const auto exceeds = [&](const char* what, int64_t needed, int64_t planned) {
    return Error(Reason::kPlanExceeded,
                 absl::StrCat("the job needs ", needed, " ", what,
                              " bytes here, but was placed with ", planned))
        .With("needed", std::to_string(needed))
        .With("planned", std::to_string(planned))
        .ToStatus();
  };
  const int64_t base = device_->base().bytes();
  if (base > command.planned_base_bytes) return exceeds("base", base, command.planned_base_bytes);
  if (plan.persistent_bytes > command.planned_persistent_bytes) {
    return exceeds("persistent", plan.persistent_bytes, command.planned_persistent_bytes);
  }
  if (plan.step_bytes > command.planned_step_bytes) {
    return exceeds("step", plan.step_bytes, command.planned_step_bytes);
  }
  return absl::OkStatus();
}

bool ServeLoop::LookUp() {
  if (put_off_.size() >= kMailboxCommands) return false;
  const bool wait = !heard_in_turn_ && options_.waits_in_turn &&
                    options_.waits_in_turn(in_turn_, jobs_.at(in_turn_.front()).job->step());
  if (lines_.size() == 0 && !wait) return false;
  bool give_up = false;
  do {
    std::vector<std::string> lines = lines_.Take(64, wait ? kHeldUs : 0);
    if (lines.empty()) break;
    for (std::string& line : lines) give_up = HearInTurn(std::move(line)) || give_up;
    TakePrepared();
  } while (wait && !heard_in_turn_);
  return give_up;
}

bool ServeLoop::HearInTurn(std::string line) {
  std::string attempt;
  absl::StatusOr<Command> command = ParseCommand(line, attempt);
  const auto is = [&](CommandType type) { return command.ok() && command->type == type; };
  const bool first = std::none_of(put_off_.begin(), put_off_.end(), [&](const std::string& other) {
    return other.find(absl::StrCat("\"", attempt, "\"")) != std::string::npos;
  });
  if (is(CommandType::kAttach) && first) {
    Attach(*std::move(command));
    tell_.Turn(in_turn_.front());  // whose the phase is not
    return false;
  }
  heard_in_turn_ = true;
  if (line.empty()) return false;
  const bool detach = is(CommandType::kDetach);
  const bool has_turn = std::count(in_turn_.begin(), in_turn_.end(), attempt) > 0;
  if (detach && first && preparing_.contains(attempt)) {
    Detach(attempt, command->checkpoint);
    return false;
  }
  // A device still works on what was queued.
  if (detach && !has_turn && first && backend_->is_host()) {
    LetGoInTurn(attempt, command->checkpoint);
    return false;
  }
  const bool give_up = is(CommandType::kShutdown) || (detach && has_turn);
  if (give_up) LogInfo("turn.given_up", {{"attempt", in_turn_.front()}});
  put_off_.push_back(std::move(line));
  return give_up;
}

void ServeLoop::LetGoInTurn(const std::string& attempt, bool checkpoint) {
  const int64_t jobs_in_turn = jobs_in_turn_;
  letting_go_ = true;
  Detach(attempt, checkpoint);
  letting_go_ = false;
  jobs_in_turn_ = jobs_in_turn;
  // The phase that was told last is to be that of who has the turn.
  for (const std::string& other : in_turn_) {
    jobs_.at(other).phase = JobWork::kNothing;
    ReportPhase(other, jobs_.at(other));
  }
  tell_.Turn(in_turn_.front());
}

}  // namespace nibble::engine
