// What the agent hears, and what it has done: plain values.
//
// Every outcome of an action comes back as an input. `engine` is a number that the agent gave the process;
// messages of one that has exited are dropped.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "worker/core/types.h"

namespace nibble::worker {

// ---- Inputs ---------------------------------------------------------------------------------------------

struct Start {};  // once, first
struct Tick {};   // at least as often as NextDueUs says
struct Drain {};  // SIGTERM: let everything go, then exit
struct RegisterReply {
  bool ok = false;          // else: tried again later
  bool superseded = false;  // another process has this worker id
  std::string timeline;
  int64_t generation = 0;
  int64_t lease_lost_us = 0;
};
struct SynchronizeReply {
  int64_t id = 0;
  enum class Code { kOk, kUnavailable, kRegisterAgain, kSuperseded } code = Code::kOk;
  std::string timeline;
  int64_t generation = 0;
  int64_t revision = 0;
  std::vector<Assignment> assignments;
};
struct ReportReply {
  int64_t id = 0;
  // kStale: STALE_ATTEMPT. kRefused: any other answer that would be the same next time.
  enum class Code { kOk, kUnavailable, kStale, kRefused } code = Code::kOk;
  std::string message;
};
struct Fetched {
  AttemptKey key;
  LocalFiles files;
};
struct FetchFailed {
  AttemptKey key;
  std::string reason;  // of base/error.h
  std::string message;
  bool again = true;  // worth another try
  bool infrastructure = true;
};
struct Uploaded {
  int64_t id = 0;
  std::vector<FileRef> files;
};
struct UploadFailed {
  int64_t id = 0;
  std::string reason;
  std::string message;
};
// The validate process of a CHECK ended.
struct CheckEnded {
  AttemptKey key;
  bool ok = false;
  std::string report_json;
  int64_t planned_steps = 0;
  std::string reason;  // when not ok
  std::string message;
  bool infrastructure = false;
};

// The device was opened and measured, or could not be.
struct ProbeEnded {
  std::string device_id;
  bool ok = false;
  std::string message;  // when not ok
};

// What is free on the disk.
struct RoomMeasured {
  int64_t free_bytes = 0;
};

struct EngineHello {
  int64_t engine = 0;
  std::string numerics_id;
};
// The process has been reaped: nothing of it is on the device any more.
struct EngineExited {
  int64_t engine = 0;
  std::string message;
  bool out_of_memory = false;
};
struct EngineBase {
  int64_t engine = 0;
  int64_t bytes = 0;
};
// A turn of that attempt begins; so do those that follow, until another is named. Engines may leave it out.
struct EngineTurn {
  int64_t engine = 0;
  AttemptKey key;
};
struct EnginePhase {
  int64_t engine = 0;
  AttemptKey key;
  Phase phase = Phase::kUnspecified;
};
struct EnginePlan {
  int64_t engine = 0;
  AttemptKey key;
  int64_t planned_steps = 0;
  std::string plan_json;  // plan and data report, for the server
  std::string numerics_id;
};
struct EngineStep {
  int64_t engine = 0;
  AttemptKey key;
  StepMetric metric;
};
struct EngineEval {
  int64_t engine = 0;
  AttemptKey key;
  int64_t step = 0;
  double loss = 0;
  int64_t time_us = 0;
};
struct EngineCheckpoint {
  int64_t engine = 0;
  AttemptKey key;
  int64_t step = 0;
  std::string dir;
  std::string manifest_sha256;
  double loss = 0;
};
// The attempt is over and its regions are free; likewise after `failed` and `detached`.
struct EngineFinished {
  int64_t engine = 0;
  AttemptKey key;
  int64_t step = 0;
  std::string dir;
  std::string stop_reason;
};
// A checkpoint or the adapter found a full disk; the engine tries again by itself.
struct EngineNoRoom {
  int64_t engine = 0;
  AttemptKey key;
  int64_t step = 0;
  std::string message;
};
struct EngineDetached {
  int64_t engine = 0;
  AttemptKey key;
  int64_t step = 0;
};
struct EngineFailed {
  int64_t engine = 0;
  AttemptKey key;
  std::string reason;
  std::string message;
  bool infrastructure = false;
  bool all_checkpoints = false;
};

using Input = std::variant<Start, Tick, Drain, RegisterReply, SynchronizeReply, ReportReply,
                           Fetched, FetchFailed, Uploaded, UploadFailed, CheckEnded, ProbeEnded, RoomMeasured,
                           EngineHello, EngineExited, EngineBase, EngineTurn, EnginePhase,
                           EnginePlan, EngineStep, EngineEval, EngineCheckpoint, EngineNoRoom,
                           EngineFinished, EngineDetached, EngineFailed>;

// ---- Actions --------------------------------------------------------------------------------------------

struct DoRegister {
  std::string timeline_seen;
  int64_t generation_seen = 0;
};
// Abandons an outstanding call.
struct DoSynchronize {
  SynchronizeRequest request;
  int64_t generation_seen = 0;
};
struct DoReport {
  Report report;
  int64_t generation_seen = 0;
};
// Model, data and checkpoint onto this machine; ends with Fetched or FetchFailed.
struct DoFetch {
  Assignment assignment;
};
struct StopFetch {
  AttemptKey key;
};
struct StartEngine {
  int64_t engine = 0;
  EngineGroup group;
  std::string model_dir;
};
// As soon as the engine has said hello.
struct Attach {
  int64_t engine = 0;
  Assignment assignment;
  LocalFiles files;
};
struct PauseAttempt {
  int64_t engine = 0;
  AttemptKey key;
};
struct ResumeAttempt {
  int64_t engine = 0;
  AttemptKey key;
};
// Its share of turns from now on.
struct SetPriority {
  int64_t engine = 0;
  AttemptKey key;
  int32_t priority = 0;
};
struct CheckpointAttempt {
  int64_t engine = 0;
  AttemptKey key;
};
struct Detach {
  int64_t engine = 0;
  AttemptKey key;
  bool checkpoint = false;
};
struct ShutdownEngine {
  int64_t engine = 0;
};  // a step under way is given up
struct KillEngine {
  int64_t engine = 0;
};  // now
struct StartCheck {
  Assignment assignment;
  LocalFiles files;
};
struct StopCheck {
  AttemptKey key;
};
// Whether the device can be opened; ends with ProbeEnded.
struct DoProbe {
  std::string device_id;
};
// Ends with RoomMeasured.
struct MeasureRoom {};
// All files of the directory, as blobs; ends with Uploaded or UploadFailed unless stopped.
struct DoUpload {
  int64_t id = 0;
  AttemptKey key;
  std::string token;
  std::string dir;
};
struct StopUpload {
  int64_t id = 0;
};
// The attempt is over here: its directory may be removed.
struct Forget {
  AttemptKey key;
};
struct Exit {
  std::string why;
  bool superseded = false;
  bool begin_anew = false;  // whoever started this process is to start it again
};

using Action =
    std::variant<DoRegister, DoSynchronize, DoReport, DoFetch, StopFetch, StartEngine, Attach,
                 PauseAttempt, ResumeAttempt, SetPriority, CheckpointAttempt, Detach, ShutdownEngine,
                 KillEngine, StartCheck, StopCheck, DoProbe, MeasureRoom, DoUpload, StopUpload, Forget, Exit>;

}  // namespace nibble::worker
