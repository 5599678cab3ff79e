// A worker's mind: desired set (the server's last answer) against running set (engines and attempts).
//
// Pure: Handle takes one input and `now`, and returns what the edge is to do (messages.h). No clock, I/O,
// threads, randomness. The edge performs the actions in order, asynchronously where they take time, and feeds
// every outcome back as an input. Not thread-safe: one thread drives it.
//
// What it keeps:
//  * An engine process has one base on one device; attempts attach to it. An idle engine stays for
//    `engine_idle_us`, and is gone before an engine of another group starts on its device.
//  * An attempt is listed from the moment the server asked for it until nothing of it is left here, its last
//    report was answered, and the server no longer asks for it.
//  * A checkpoint or result is reported only after its files were uploaded.
//  * Renewals are trusted until send time + lease_lost - trust_margin; then attempts are saved locally and
//    paused until the server answers.
//  * An attempt the server gave up for our silence, and gives back as a later one that continues it, goes on
//    where it is: engine and files go on knowing it by its first key.
//  * When an engine dies, the attempt whose turn it was is at fault; its neighbours say so.
//  * A device whose last engine died is probed before another starts there. One that does not answer is
//    withdrawn: the server hears why, attempts that were to run on it fail without being at fault, and it is
//    probed again and again until it answers.
//  * An engine with other numerics than were registered was put in place of the one before (an upgrade):
//    nothing starts any more, what runs goes on to its end in the engines it is in, and then the process ends
//    to be started again.
//  * What found a full disk here makes the worker say so until something was written again, room was made, or
//    `room_us` have passed: it gets no new work meanwhile. Files that cannot be fetched for want of room are
//    tried once more, then the attempt goes back.
//  * Limits on engines, drivers and silence count only time in which this ran; renewals go by the clock.
//  * Reports of an attempt go out one at a time, in order, again and again until answered.
//  * A restart of the worker starts with an empty agent under a new incarnation: engines end with the process
//    that started them (end of file), and the server gives the attempts away again.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "worker/core/messages.h"
#include "worker/core/types.h"

namespace nibble::worker {

struct AgentOptions {
  int64_t trust_margin_us = 15'000'000;  // at most an eighth of the lease: leases may be short
  int64_t engine_idle_us = 60'000'000;  // how long an engine without attempts keeps its base
  int64_t engine_start_timeout_us =
      1'800'000'000;                        // until `hello`; quantizing a large base takes long
  int64_t detach_timeout_us = 300'000'000;  // then the engine is killed
  // Likewise of one whose device has failed: it has nothing to save, and its neighbours wait for its end.
  int64_t failed_exit_us = 30'000'000;
  int64_t retry_min_us = 1'000'000;         // calls, reports, fetches, uploads: doubling
  int64_t retry_max_us = 5'000'000;         // of calls and reports
  int64_t retry_disk_us = 30'000'000;       // when the disk is full
  int64_t silence_us = 3'600'000'000;       // without trust for so long, devices are given back
  // Inputs so far apart (there is a Tick every second): the machine slept, or this process was stopped, and
  // so much is not held against engines and drivers, which did not run either. 0 = never.
  int64_t sleep_us = 15'000'000;
  int32_t max_fetch_tries = 5;
  int64_t metrics_interval_us = 1'000'000;  // steps are sent in batches this often
  size_t max_pending_metrics = 4'096;       // per attempt; beyond it the oldest are dropped
  std::set<std::string> probed_devices;     // by id: those a driver may lose, so GPUs
  // By device id: the numerics this worker has registered it with. An engine that has others is another
  // program than the one that was measured. A device that is missing takes any.
  std::map<std::string, std::string> numerics;
  int64_t probe_timeout_us = 180'000'000;   // then a device that says nothing is withdrawn
  int64_t probe_min_us = 30'000'000;        // between probes of a withdrawn device: doubling
  int64_t probe_max_us = 600'000'000;
  int64_t room_us = 300'000'000;       // a full disk is taken to have room again after this
  int64_t room_bytes = int64_t{64} << 20;  // or when so much more is free than then
};

class Agent {
 public:
  explicit Agent(AgentOptions options) : options_(options) {}

  std::vector<Action> Handle(const Input& input, int64_t now_us);
  // The latest time at which the next Tick should come.
  int64_t NextDueUs() const;

  // For /metrics and tests.
  size_t attempts() const { return attempts_.size(); }
  size_t engines() const { return engines_.size(); }
  size_t withdrawn_devices() const { return WithdrawnDevices().size(); }
  bool registered() const { return registered_; }
  bool has_room() const { return no_room_.empty(); }
  int64_t revision() const { return revision_; }  // of the desired set adopted last
  bool trusted(int64_t now_us) const { return now_us < trust_until_us_; }

 private:
  // kFinishing: nothing is in an engine any more; uploads and last reports are. kReleased: nothing
  // is left.
  enum class Stage {
    kFetching,
    kWaitingEngine,
    kAttached,
    kChecking,
    kDetaching,
    kFinishing,
    kReleased
  };
  struct PendingUpload {
    int64_t id = 0;  // 0 = not in flight
    std::string dir;
    ReportBody report;  // its files are filled in when they are up
    int64_t not_before_us = 0;
    int64_t backoff_us = 0;
  };
  struct SentReport {
    Report report;
    bool last = false;     // the attempt is over once it is answered
    bool waiting = false;  // for its answer
    int64_t not_before_us = 0;
    int64_t backoff_us = 0;
  };
  struct Local {
    Assignment assignment;
    AttemptKey local_key;  // by which engine and files know it: that of its first epoch here
    Stage stage = Stage::kFetching;
    Phase phase = Phase::kFetching;
    bool desired = true;     // in the server's newest set
    bool abandoned = false;  // nothing more is reported
    bool paused = false;
    int64_t engine = 0;  // 0 = none
    LocalFiles files;
    int64_t step = 0;
    int64_t used_bytes = 0;
    bool fetching = false;
    int32_t fetch_tries = 0;
    bool fetch_found_no_room = false;
    int64_t fetch_not_before_us = 0;
    int64_t fetch_backoff_us = 0;
    int64_t detach_deadline_us = 0;
    std::optional<ReportBody> last_body;  // sent when it is kFinishing and all uploads are done
    bool last_queued = false;
    std::deque<StepMetric> metrics;  // not yet sent
    int64_t metrics_since_us = 0;
    std::deque<PendingUpload> uploads;  // the first may be in flight
    std::deque<ReportBody> outbox;      // not yet sent
    std::optional<SentReport> sent;     // one at a time, again and again until answered
    std::string transfer_trouble;       // why its files do not come here or go up; "" = they do
    std::string report_trouble;         // why its reports are not taken; "" = they are
  };
  struct Engine {
    EngineGroup group;
    bool ready = false;
    bool stopping = false;
    bool killed = false;
    bool device_failed = false;  // it said so, and ends by itself
    int64_t start_us = 0;
    int64_t stop_us = 0;
    int64_t idle_since_us = 0;  // 0 = in use
    int64_t base_bytes = 0;
    std::optional<AttemptKey> turn;
    bool tells_turns = false;  // else `turn` is a guess
    std::vector<AttemptKey> order;  // attached, in order of attachment
  };

  // What is known of a device that an engine has died on.
  struct Care {
    bool due = false;        // to be probed
    bool in_flight = false;  // being probed
    int64_t sent_us = 0;
    int64_t not_before_us = 0;
    int64_t backoff_us = 0;
    std::string fault;  // "" = not withdrawn
    bool replaced = false;  // so is its engine: no probe changes that
    // Engines that died before they said hello: the device's fault, or their own.
    std::vector<std::pair<EngineGroup, FailedReport>> failed_starts;
  };

  void On(const Start&);
  void On(const Tick&);
  void On(const Drain&);
  void On(const RegisterReply&);
  void On(const SynchronizeReply&);
  void On(const ReportReply&);
  void On(const Fetched&);
  void On(const FetchFailed&);
  void On(const Uploaded&);
  void On(const UploadFailed&);
  void On(const CheckEnded&);
  void On(const ProbeEnded&);
  void On(const RoomMeasured&);
  void On(const EngineHello&);
  void On(const EngineExited&);
  void On(const EngineBase&);
  void On(const EngineTurn&);
  void On(const EnginePhase&);
  void On(const EnginePlan&);
  void On(const EngineStep&);
  void On(const EngineEval&);
  void On(const EngineCheckpoint&);
  void On(const EngineNoRoom&);  // the phase says what has to wait
  void On(const EngineFinished&);
  void On(const EngineDetached&);
  void On(const EngineFailed&);

  void Reconcile();  // what follows from everything known now
  void AdoptDesired(const SynchronizeReply& reply);
  void Continue(const Assignment& assignment);
  void Reprioritize(Local& local, int32_t priority);
  static bool IsIntact(const Local& local);
  void Obey(Local& local);
  void LetGo(Local& local, bool checkpoint);
  void Abandon(Local& local);
  void AbandonAll();
  void Release(Local& local);
  void Fail(Local& local, FailedReport report);
  void Finish(Local& local);
  void LeaveEngine(Local& local);
  void AdvanceFetch(Local& local);
  void AdvanceUploads(Local& local);
  void AdvanceReports(Local& local);
  void AdvanceEngines();
  void AdvanceProbes();
  void FailWaiting(const EngineGroup& group, const FailedReport& report);
  void FailWithdrawn();
  void NoteReplaced(const std::string& numerics_id, const std::string& registered);
  void LeaveWhenReplaced();
  void NoteFull(const std::string& why);
  void NoteRoom() { no_room_.clear(); }  // something was written
  void WatchRoom();
  std::set<std::string> WithdrawnDevices() const;
  void AttachOrStart(Local& local);
  void StopEngine(int64_t id, Engine& engine);
  void PutOff(int64_t slept_us);
  void CheckTimeouts();
  void CheckTrust();
  void Renew(int64_t sent_us);
  void EraseDone();
  void Register();
  void Synchronize();
  void RetryCall();
  void End(std::string why, bool superseded);
  bool IsWanted(const EngineGroup& group) const;
  std::vector<RunningAttempt> Listing() const;
  std::vector<DeviceStatus> Devices() const;
  Local* Find(const AttemptKey& key);
  // The attempt when it is in that engine, by its local key; late messages of others are dropped.
  Local* InEngine(const AttemptKey& key, int64_t engine);
  std::optional<AttemptKey> FaultyOf(const Engine& engine) const;
  int64_t NextBackoff(int64_t& backoff_us, int64_t max_us) const;
  template <typename A>
  void Do(A action) {
    actions_.push_back(Action(std::move(action)));
  }

  AgentOptions options_;
  int64_t now_us_ = 0;
  std::vector<Action> actions_;
  std::map<AttemptKey, Local> attempts_;
  std::map<int64_t, Engine> engines_;
  std::map<std::string, Care> cares_;  // by device
  std::string no_room_;                // what found the disk full said; "" = there is room
  int64_t full_since_us_ = 0;
  int64_t least_free_bytes_ = 0;       // since then; -1 = not measured yet
  int64_t room_measured_us_ = 0;       // when that was last asked for
  int64_t next_id_ = 1;  // engines, reports, uploads, calls

  bool started_ = false;
  bool registered_ = false;
  bool register_in_flight_ = false;
  bool forgotten_ = false;  // by the server, and not registered again yet
  std::set<AttemptKey> given_up_;  // abandoned here and not begun again, until the server knows
  std::string replaced_;  // what took the engine's place, in words; "" = it is the same
  bool draining_ = false;
  bool drain_told_ = false;  // the server has answered a call that said so
  bool exited_ = false;
  std::string timeline_;
  int64_t generation_ = 0;
  int64_t revision_ = 0;  // of the desired set adopted last
  int64_t lease_lost_us_ = 120'000'000;
  int64_t register_sent_us_ = 0;
  int64_t trust_until_us_ = 0;
  int64_t silence_until_us_ = 0;
  bool distrusted_ = false;  // attempts were paused for want of an answer
  int64_t sync_id_ = 0;      // outstanding; 0 = none
  int64_t sync_sent_us_ = 0;
  bool sync_draining_ = false;                         // what the outstanding call said
  std::set<std::tuple<AttemptKey, bool, bool>> sync_listed_;  // and whether released, and in trouble
  std::set<std::string> sync_withdrawn_;
  std::string sync_no_room_;
  int64_t call_not_before_us_ = 0;
  int64_t call_backoff_us_ = 0;
};

}  // namespace nibble::worker
