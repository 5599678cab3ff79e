#include "engine/serve.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "engine/fused_turn.h"
#include "engine/output_ring.h"
#include "engine/protocol.h"
#include "engine/turns.h"

namespace nibble::engine {
namespace {

constexpr size_t kRingLines = 1024;
constexpr size_t kMailboxCommands = 256;
constexpr int64_t kIdleUs = 1'000'000;
constexpr int64_t kHeldUs = 600'000'000;  // ServeOptions::waits_in_turn

// One engine per device, also across workers that die and start again.
absl::Status TakeLock(const std::string& path, int wait_ms) {
  if (path.empty()) return absl::OkStatus();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  constexpr int kPollMs = 50;
  for (int waited_ms = 0;; waited_ms += kPollMs) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();  // held until the process ends
    if (waited_ms >= wait_ms) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs));
  }
  close(fd);
  return Error(Reason::kResourceInUse, absl::StrCat("another engine holds ", path));
}

// Reads lines and posts them; ends the process at end of file.
class LineReader {
 public:
  LineReader(int fd, Mailbox<std::string>& lines) : fd_(fd), lines_(lines) {}

  void Run(const std::atomic<bool>& stop) {
    std::string pending;
    char buffer[16 << 10];
    while (!stop) {
      const ssize_t size = read(fd_, buffer, sizeof buffer);
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) {
        if (stop) return;
        LogInfo("engine.worker_gone");
        std::_Exit(0);
      }
      pending.append(buffer, static_cast<size_t>(size));
      size_t begin = 0;
      for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
        Deliver(pending.substr(begin, end - begin));
      }
      pending.erase(0, begin);
      if (pending.size() > kMaxLineBytes) {
        LogError("engine.line_too_long", {{"bytes", static_cast<int64_t>(pending.size())}});
        std::_Exit(1);
      }
    }
  }

 private:
  void Deliver(std::string line) {
    // A full mailbox means a worker that talks faster than turns end: it has to wait.
    while (!lines_.Post(std::move(line)) && !lines_.closed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  const int fd_;
  Mailbox<std::string>& lines_;
};

class Server {
 public:
  Server(const ServeOptions& options, Mailbox<std::string>& lines, OutputRing& out)
      : options_(options), lines_(lines), out_(out), clock_(RealClock::Get()) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(backend_, OpenBackend(options_.device.device, options_.device.threads));
    const spec::DeviceProfile profile = MeasureProfile(*backend_);
    out_.Push(HelloLine(profile, NumericsId(backend_->table())));
    while (!stopping_) {
      WakeHeldUp();
      const bool waits = turns_.Next().empty() && put_off_.empty();
      for (const std::string& line : std::exchange(put_off_, {})) {
        if (!stopping_) Handle(line, profile);
      }
      for (const std::string& line : lines_.Take(64, waits ? IdleUs() : 0)) {
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

  // A job that has nothing left to do but to write its adapter waits for room without turns.
  void HoldUp(const std::string& attempt, const NoRoom& no_room) {
    LogWarning("job.no_room", {{"attempt", attempt},
                               {"step", no_room.step},
                               {"why", std::string(no_room.why.message())}});
    out_.Push(NoRoomLine(attempt, no_room));
    Attached& attached = jobs_.at(attempt);
    attached.phase = JobWork::kNothing;
    if (attached.job->NextWork() != JobWork::kFinish) return;
    attached.held_until_us = clock_.NowMonotonicUs() + options_.disk_retry_us;
    turns_.SetPaused(attempt, true);
    TellPhase(attempt, "PAUSED_DISK");
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
    std::string attempt;
    absl::StatusOr<Command> command = ParseCommand(line, attempt);
    if (!command.ok()) {
      LogError("engine.bad_command", {{"error", std::string(command.status().message())}});
      if (!attempt.empty()) out_.Push(FailedLine(attempt, command.status()));
      return;
    }
    switch (command->type) {
      case CommandType::kShutdown:
        stopping_ = true;
        return;
      case CommandType::kAttach: {
        const absl::Status attached = Attach(*command, profile);
        if (!attached.ok()) Fail(attempt, attached);
        return;
      }
      case CommandType::kPause:
        return SetPaused(attempt, true);
      case CommandType::kResume:
        return SetPaused(attempt, false);
      case CommandType::kPriority:
        return turns_.SetWeight(attempt, TurnWeight(command->priority));
      case CommandType::kCheckpoint:
        return WriteCheckpoint(attempt);
      case CommandType::kDetach:
        return Detach(attempt, command->checkpoint);
    }
  }

  absl::Status OpenDevice(const spec::DeviceProfile& profile) {
    if (device_ != nullptr) return absl::OkStatus();
    const int64_t begin_us = clock_.NowMonotonicUs();
    ASSIGN_OR_RETURN(device_, Device::Open(options_.device, *backend_, profile));
    const double seconds = static_cast<double>(clock_.NowMonotonicUs() - begin_us) * 1e-6;
    LogInfo("base.mapped", {{"digest", device_->base().digest()},
                            {"bytes", device_->base().bytes()},
                            {"cached", device_->base().cached()},
                            {"tiles", device_->base().tiles()},
                            {"seconds", seconds}});
    out_.Push(BaseLine(device_->base(), seconds));
    return absl::OkStatus();
  }

  absl::Status Attach(const Command& command, const spec::DeviceProfile& profile) {
    const std::string& attempt = command.attempt;
    if (jobs_.contains(attempt)) return absl::OkStatus();  // a repeated line changes nothing
    if (device_ == nullptr) TellPhase(attempt, "LOADING_BASE");
    RETURN_IF_ERROR(OpenDevice(profile));
    TellPhase(attempt, "TOKENIZING");
    JobInput input = command.job;
    input.disk_retry_us = options_.disk_retry_us;
    ASSIGN_OR_RETURN(std::unique_ptr<Job> job, Job::Open(*device_, std::move(input), clock_));
    RETURN_IF_ERROR(CheckPlan(command, job->plan()));
    RETURN_IF_ERROR(job->Start());
    job->set_stop([this] { return LookUp(); });
    Attached& attached = jobs_[attempt];
    attached.job = std::move(job);
    const absl::Status fitted = FitStep();
    if (!fitted.ok()) {
      jobs_.erase(attempt);
      FitStep().IgnoreError();  // as it was; a neighbour that cannot run will say so in its turn
      return fitted;
    }
    turns_.Add(attempt, TurnWeight(command.priority));
    LogInfo("job.attached", {{"attempt", attempt},
                             {"step", attached.job->step()},
                             {"planned_steps", attached.job->total_steps()}});
    out_.Push(PlanLine(attempt, *attached.job));
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
    LogError("job.failed", {{"attempt", attempt}, {"error", std::string(status.message())}});
    // A device that failed stays failed: the process ends, and with it the neighbours' turns here. They
    // are not named, so nothing is held against them.
    if (backend_->fault() == kernels::Fault::kDevice) stopping_ = true;
    Remove(attempt);
    out_.Push(FailedLine(attempt, status));
  }

  void SetPaused(const std::string& attempt, bool paused) {
    const auto it = jobs_.find(attempt);
    if (it == jobs_.end()) return;
    it->second.paused = paused;
    turns_.SetPaused(attempt, paused || it->second.held_until_us > 0);
    if (paused) out_.Push(StateLine("paused", attempt, it->second.job->step()));
  }

  // Between turns is a step boundary.
  void WriteCheckpoint(const std::string& attempt) {
    const auto it = jobs_.find(attempt);
    if (it == jobs_.end() || !it->second.job->WorthSaving()) return;
    it->second.job->RequestCheckpoint();
    AdvanceJob(attempt, it->second);
  }

  void Detach(const std::string& attempt, bool checkpoint) {
    if (checkpoint) WriteCheckpoint(attempt);
    const auto it = jobs_.find(attempt);  // a failed checkpoint has removed it
    if (it == jobs_.end()) return;
    // Letting go without what was asked for would lose the steps unsaid.
    const absl::Status owed = it->second.job->no_room();
    if (checkpoint && !owed.ok()) return Fail(attempt, owed);
    const int64_t step = it->second.job->step();
    Remove(attempt);
    LogInfo("job.detached", {{"attempt", attempt}, {"step", step}});
    out_.Push(StateLine("detached", attempt, step));
  }

  // In the middle of a turn. Lets neighbours go that are to; true: the turn is to be given up.
  bool LookUp() {
    if (put_off_.size() >= kMailboxCommands) return false;
    const bool wait = !heard_in_turn_ && options_.waits_in_turn &&
                      options_.waits_in_turn(in_turn_, jobs_.at(in_turn_.front()).job->step());
    if (lines_.size() == 0 && !wait) return false;
    heard_in_turn_ = true;
    bool give_up = false;
    for (std::string& line : lines_.Take(64, wait ? kHeldUs : 0)) {
      std::string attempt;
      const absl::StatusOr<Command> command = ParseCommand(line, attempt);
      const bool detach = command.ok() && command->type == CommandType::kDetach;
      const bool shutdown = command.ok() && command->type == CommandType::kShutdown;
      const bool has_turn = std::count(in_turn_.begin(), in_turn_.end(), attempt) > 0;
      const bool first = std::none_of(put_off_.begin(), put_off_.end(), [&](const std::string& other) {
        return other.find(absl::StrCat("\"", attempt, "\"")) != std::string::npos;
      });
      // A device still works on what was queued.
      if (detach && !has_turn && first && backend_->is_host()) {
        LetGoInTurn(attempt, command->checkpoint);
        continue;
      }
      if (!give_up && (shutdown || (detach && has_turn)))
        LogInfo("turn.given_up", {{"attempt", in_turn_.front()}});
      give_up = give_up || shutdown || (detach && has_turn);
      put_off_.push_back(std::move(line));
    }
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
    TellTurn(in_turn_.front());
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
    TellTurn(attempt_of[jobs.front()]);
    CountFused(jobs.size());
    const std::vector<FusedStep> steps = AdvanceTogether(*device_, jobs);
    for (size_t i = 0; i < jobs.size(); ++i) {
      const std::string& attempt = attempt_of[jobs[i]];
      turns_.Charge(attempt, steps[i].time_us);
      Report(attempt, *jobs[i], steps[i].event);
    }
  }

  // Says once that turns are fused; how often is in the metrics of steps.
  void CountFused(size_t jobs) {
    jobs_in_turn_ = static_cast<int64_t>(jobs);
    if (!fused_) LogInfo("turns.fused", {{"jobs", jobs_in_turn_}});
    fused_ = true;
  }

  void ReportPhase(const std::string& attempt, Attached& attached) {
    const JobWork work = attached.job->NextWork();
    if (work == attached.phase) return;
    attached.phase = work;
    if (work == JobWork::kStep) TellPhase(attempt, "TRAINING");
    if (work == JobWork::kEvaluate) TellPhase(attempt, "EVALUATING");
    if (work == JobWork::kCheckpoint) TellPhase(attempt, "CHECKPOINTING");
  }

  // A worker takes a phase for a turn of that attempt.
  void TellPhase(const std::string& attempt, std::string_view phase) {
    out_.Push(PhaseLine(attempt, phase));
    told_turn_ = attempt;
  }
  // Who is at fault if this process dies now. A line of its own the first time in any case: from then on the
  // worker knows that it need not guess.
  void TellTurn(const std::string& attempt) {
    if (tells_turns_ && told_turn_ == attempt) return;
    tells_turns_ = true;
    told_turn_ = attempt;
    out_.Push(TurnLine(attempt), /*may_be_lost=*/true);
  }

  void AdvanceJob(const std::string& attempt, Attached& attached) {
    ReportPhase(attempt, attached);
    TellTurn(attempt);
    Job& job = *attached.job;
    const int64_t begin_us = clock_.NowMonotonicUs();
    absl::StatusOr<JobEvent> event = job.Advance();
    turns_.Charge(attempt, clock_.NowMonotonicUs() - begin_us);
    jobs_in_turn_ = 1;
    Report(attempt, job, event);
  }

  void Report(const std::string& attempt, const Job& job, const absl::StatusOr<JobEvent>& event) {
    if (!event.ok()) return Fail(attempt, event.status());
    const int64_t now_us = clock_.NowUnixUs();
    if (const auto* step = std::get_if<StepDone>(&*event)) {
      const int64_t every = job.spec().logging_steps;
      if (step->row.step % every == 0 || step->row.step == 1 ||
          step->row.step == job.total_steps()) {
        out_.Push(StepLine(attempt, step->row, now_us, UsedBytes(attempt), jobs_in_turn_),
                  /*may_be_lost=*/true);
      }
    } else if (const auto* eval = std::get_if<EvalDone>(&*event)) {
      out_.Push(EvalLine(attempt, eval->row, now_us));
    } else if (const auto* checkpoint = std::get_if<CheckpointDone>(&*event)) {
      LogInfo("checkpoint.saved", {{"attempt", attempt}, {"step", checkpoint->step}});
      out_.Push(CheckpointLine(attempt, *checkpoint));
    } else if (const auto* finish = std::get_if<FinishDone>(&*event)) {
      LogInfo("job.finished", {{"attempt", attempt}, {"step", finish->step}});
      out_.Push(FinishedLine(attempt, *finish));
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
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Device> device_;
  std::map<std::string, Attached> jobs_;
  TurnQueue turns_;
  std::vector<std::string> in_turn_;  // whose turn is under way
  std::vector<std::string> put_off_;  // commands that came in a turn and wait for its end
  std::string told_turn_;             // who has it, as far as the worker was told
  bool tells_turns_ = false;          // it was told so
  bool heard_in_turn_ = false;        // a command came in the turn under way
  bool letting_go_ = false;           // a neighbour, in a turn
  int64_t jobs_in_turn_ = 1;
  bool fused_ = false;  // a turn was
  bool stopping_ = false;
};

}  // namespace

absl::Status Serve(const ServeOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  RETURN_IF_ERROR(TakeLock(options.lock_path, options.lock_wait_ms));
  Mailbox<std::string> lines(kMailboxCommands);
  OutputRing out(options.fd, kRingLines);
  std::atomic<bool> stop = false;
  std::thread reader([&] { LineReader(options.fd, lines).Run(stop); });
  const absl::Status status = Server(options, lines, out).Run();
  if (!status.ok()) LogError("engine.stopped", {{"error", std::string(status.message())}});
  stop = true;
  lines.Close();
  shutdown(options.fd, SHUT_RD);  // wakes the reader
  reader.join();
  return status;
}

}  // namespace nibble::engine
