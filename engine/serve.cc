#include "engine/serve.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "engine/fused_turn.h"
#include "engine/preparer.h"
#include "engine/protocol.h"
#include "engine/serve_input.h"
#include "engine/serve_output.h"
#include "engine/turns.h"

namespace nibble::engine {
namespace {

constexpr size_t kRingLines = 1024;
constexpr size_t kMailboxCommands = 256;
constexpr int64_t kIdleUs = 1'000'000;
constexpr int64_t kHeldUs = 600'000'000;  // ServeOptions::waits_in_turn

class Server {
 public:
  Server(const ServeOptions& options, Mailbox<std::string>& lines, OutputRing& out)
      : options_(options),
        lines_(lines),
        out_(out),
        clock_(RealClock::Get()),
        tell_(out, clock_),
        // An empty line only wakes; in a full mailbox something else does.
        preparer_([&lines] { (void)lines.Post(std::string()); }, clock_) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(backend_, OpenBackend(options_.device.device, options_.device.threads));
    const spec::DeviceProfile profile = MeasureProfile(*backend_);
    tell_.Hello(profile, NumericsId(backend_->table()));
    while (!stopping_) {
      WakeHeldUp();
      TakePrepared();
      // What was put off is older than what waits outside, also what is put off by the commands here.
      if (put_off_.empty()) put_off_ = lines_.Take(64, turns_.Next().empty() ? IdleUs() : 0);
      for (const std::string& line : std::exchange(put_off_, {})) {
        if (!stopping_) Handle(line, profile);
      }
      if (!stopping_) TakeTurn();
    }
    out_.Flush();
    return FaultStatus(*backend_);
  }

 private:
  struct Attached {
    std::unique_ptr<Job> job;
    JobWork phase = JobWork::kNothing;  // last reported
    bool paused = false;                // by the worker
    int64_t held_until_us = 0;          // for want of room on the disk; 0 = not held
  };
  // An attempt whose data is being read.
  struct Preparing {
    Command command;
    bool paused = false;
    bool leaving = false;  // detached meanwhile
  };

  // A job that has nothing left to do but to write its adapter waits for room without turns.
  void HoldUp(const std::string& attempt, const NoRoom& no_room) {
    tell_.HasNoRoom(attempt, no_room);
    Attached& attached = jobs_.at(attempt);
    attached.phase = JobWork::kNothing;
    if (attached.job->NextWork() != JobWork::kFinish) return;
    attached.held_until_us = clock_.NowMonotonicUs() + options_.disk_retry_us;
    turns_.SetPaused(attempt, true);
    tell_.Phase(attempt, "PAUSED_DISK");
  }

  void WakeHeldUp() {
    for (auto& [attempt, attached] : jobs_) {
      if (attached.held_until_us == 0 || clock_.NowMonotonicUs() < attached.held_until_us) continue;
      attached.held_until_us = 0;
      turns_.SetPaused(attempt, attached.paused);
    }
  }

  int64_t IdleUs() const { return std::min(kIdleUs, options_.disk_retry_us); }

  void Handle(const std::string& line, const spec::DeviceProfile& profile) {
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

  // False: the attempt it is opened for has failed or was let go.
  bool OpenDevice(const std::string& attempt, const spec::DeviceProfile& profile) {
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

  // Commands wait for the base, but for those to let go. True: nobody wants it any more.
  bool HearWhileOpening(const std::string& attempt, bool& leaving) {
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

  // Its data is read beside the turns of the others; nothing of theirs is touched.
  void Attach(Command command) {
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

  // Between turns those join whose data has been read; who was detached meanwhile goes at any time.
  void TakePrepared() {
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

  absl::Status Join(const Preparing& what, std::unique_ptr<Job> job) {
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

  absl::Status CheckPlan(const Command& command, const spec::MemoryPlan& plan) const {
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

  // The step region is as large as the neediest attached job's, no larger.
  absl::Status FitStep() { return device_->ResizeStep(StepBytes()); }
  int64_t StepBytes() const {
    int64_t bytes = 0;
    for (const auto& [unused, attached] : jobs_)
      bytes = std::max(bytes, attached.job->plan().step_bytes);
    return bytes;
  }

  void Remove(const std::string& attempt) {
    turns_.Remove(attempt);
    if (jobs_.erase(attempt) == 0) return;
    if (letting_go_) {
      device_->ShrinkStep(StepBytes());  // its front is in use
    } else {
      FitStep().IgnoreError();  // shrinking
    }
  }

  void Fail(const std::string& attempt, const absl::Status& status) {
    // A device that failed stays failed: the process ends, and with it the neighbours' turns here. They
    // are not named, so nothing is held against them.
    if (backend_->fault() == kernels::Fault::kDevice) stopping_ = true;
    Remove(attempt);
    tell_.Failed(attempt, status);
  }

  void SetPaused(const std::string& attempt, bool paused) {
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

  // Between turns is a step boundary.
  void WriteCheckpoint(const std::string& attempt) {
    const auto it = jobs_.find(attempt);
    if (it == jobs_.end() || !it->second.job->WorthSaving()) return;
    it->second.job->RequestCheckpoint();
    AdvanceJob(attempt, it->second);
  }

  void Detach(const std::string& attempt, bool checkpoint) {
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

  // In the middle of a turn. Lets neighbours come and go that are to; true: the turn is to be given up.
  bool LookUp() {
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

  bool HearInTurn(std::string line) {
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

  void LetGoInTurn(const std::string& attempt, bool checkpoint) {
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

  void TakeTurn() {
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

  void AdvanceFused(const std::vector<Job*>& jobs, std::map<const Job*, std::string>& attempt_of) {
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

  void ReportPhase(const std::string& attempt, Attached& attached) {
    const JobWork work = attached.job->NextWork();
    if (work == attached.phase) return;
    attached.phase = work;
    tell_.Work(attempt, work);
  }

  void AdvanceJob(const std::string& attempt, Attached& attached) {
    ReportPhase(attempt, attached);
    tell_.Turn(attempt);
    Job& job = *attached.job;
    const int64_t begin_us = clock_.NowMonotonicUs();
    absl::StatusOr<JobEvent> event = job.Advance();
    turns_.Charge(attempt, clock_.NowMonotonicUs() - begin_us);
    jobs_in_turn_ = 1;
    Report(attempt, job, event);
  }

  void Report(const std::string& attempt, const Job& job, const absl::StatusOr<JobEvent>& event) {
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

  // What the process holds, less what only the neighbours need.
  int64_t UsedBytes(const std::string& attempt) const {
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

  const ServeOptions& options_;
  Mailbox<std::string>& lines_;
  OutputRing& out_;
  const Clock& clock_;
  ServeOutput tell_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Device> device_;
  std::map<std::string, Attached> jobs_;
  std::map<std::string, Preparing> preparing_;
  std::vector<Preparer::Prepared> ready_;  // for the end of the turn
  TurnQueue turns_;
  std::vector<std::string> in_turn_;  // whose turn is under way
  std::vector<std::string> put_off_;  // commands to be obeyed next, such as came in a turn, at its end
  bool heard_in_turn_ = false;        // a command came in the turn under way
  bool letting_go_ = false;           // a neighbour, in a turn
  bool opening_stopped_ = false;      // the base is wanted no more: a shutdown has come
  int64_t jobs_in_turn_ = 1;
  bool stopping_ = false;
  Preparer preparer_;  // last: its threads use what is above
};

}  // namespace

absl::Status Serve(const ServeOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  RETURN_IF_ERROR(TakeDeviceLock(options.lock_path, options.lock_wait_ms));
  Mailbox<std::string> lines(kMailboxCommands);
  OutputRing out(options.fd, kRingLines);
  std::atomic<bool> stop = false;
  std::thread reader([&] { ReadLines(options.fd, lines, stop); });
  const absl::Status status = Server(options, lines, out).Run();
  if (!status.ok()) LogError("engine.stopped", {{"error", std::string(status.message())}});
  stop = true;
  lines.Close();
  shutdown(options.fd, SHUT_RD);  // wakes the reader
  reader.join();
  return status;
}

}  // namespace nibble::engine
