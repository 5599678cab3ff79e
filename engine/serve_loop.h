// One engine at work: what its worker's lines ask of it, and the turns in between.
//
// One thread runs it, and is the only one that touches the jobs. serve_loop.cc has the turns,
// serve_commands.cc what commands do: between turns, inside one, and while the base is made (serve.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "engine/device.h"
#include "engine/job.h"
#include "engine/output_ring.h"
#include "engine/preparer.h"
#include "engine/protocol.h"
#include "engine/serve.h"
#include "engine/serve_output.h"
#include "engine/turns.h"

namespace nibble::engine {

class ServeLoop {
 public:
  static constexpr size_t kMailboxCommands = 256;

  // All must outlive it. `lines` are the worker's, each a command.
  ServeLoop(const ServeOptions& options, Mailbox<std::string>& lines, OutputRing& out);
  // Until a shutdown, or until the device failed.
  absl::Status Run();

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

  // ---- Turns. ----
  void TakeTurn();
  void AdvanceJob(const std::string& attempt, Attached& attached);
  void AdvanceFused(const std::vector<Job*>& jobs, std::map<const Job*, std::string>& attempt_of);
  void ReportPhase(const std::string& attempt, Attached& attached);
  void Report(const std::string& attempt, const Job& job, const absl::StatusOr<JobEvent>& event);
  // What the process holds, less what only the neighbours need.
  int64_t UsedBytes(const std::string& attempt) const;
  // A job that has nothing left to do but to write its adapter waits for room without turns.
  void HoldUp(const std::string& attempt, const NoRoom& no_room);
  void WakeHeldUp();
  void Fail(const std::string& attempt, const absl::Status& status);
  void Remove(const std::string& attempt);
  // The step region is as large as the neediest attached job's, no larger.
  absl::Status FitStep() { return device_->ResizeStep(StepBytes()); }
  int64_t StepBytes() const;

  // ---- Commands. ----
  void Handle(const std::string& line, const spec::DeviceProfile& profile);
  // False: the attempt it is opened for has failed or was let go.
  bool OpenDevice(const std::string& attempt, const spec::DeviceProfile& profile);
  // Commands wait for the base, but for those to let go. True: nobody wants it any more.
  bool HearWhileOpening(const std::string& attempt, bool& leaving);
  // Its data is read beside the turns of the others; nothing of theirs is touched.
  void Attach(Command command);
  // Between turns those join whose data has been read; who was detached meanwhile goes at any time.
  void TakePrepared();
  absl::Status Join(const Preparing& what, std::unique_ptr<Job> job);
  absl::Status CheckPlan(const Command& command, const spec::MemoryPlan& plan) const;
  void SetPaused(const std::string& attempt, bool paused);
  // Between turns is a step boundary.
  void WriteCheckpoint(const std::string& attempt);
  void Detach(const std::string& attempt, bool checkpoint);
  // In the middle of a turn. Lets neighbours come and go that are to; true: the turn is to be given up.
  bool LookUp();
  bool HearInTurn(std::string line);
  void LetGoInTurn(const std::string& attempt, bool checkpoint);

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

}  // namespace nibble::engine
