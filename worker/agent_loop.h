// The body around the agent: one thread that feeds it and does what it says.
//
// Replies, engine lines and outcomes of fetches and uploads come through one mailbox; each is
// handed to the agent with the time, and the actions that come back are carried out: calls and
// transfers on small pools, engines as child processes. Nothing here decides anything. Run from one
// thread; RequestDrain and Wake from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mailbox.h"
#include "worker/attempt_files.h"
#include "worker/blob_cache.h"
#include "worker/core/agent.h"
#include "worker/engine_process.h"
#include "worker/server_link.h"
#include "worker/task_pool.h"
#include "worker/train_counts.h"

namespace nibble::worker {

struct AgentLoopOptions {
  AgentOptions agent;
  std::string work_dir;  // attempts/, cache/, log/, lock/ are made in it
  std::string engine_binary;
  std::map<std::string, std::string> devices = {{"cpu0", "cpu"}};  // id -> what the engine calls it
  int threads = 1;
  int64_t cache_max_bytes = int64_t{64}
                            << 30;  // of what was fetched; of quantized bases as much again
  bool shares_file_system = false;
  int64_t max_log_bytes = int64_t{16} << 20;  // of an engine's log, and as much of what was before it
  int64_t log_look_us = 60'000'000;           // how often that is looked at
};

// Counted for /metrics; read from any thread.
struct LoopCounts {
  std::atomic<int64_t> engines_started{0};
  std::atomic<int64_t> engines_lost{0};  // ended without being told to
  std::atomic<int64_t> reports{0};
  std::atomic<int64_t> reports_failed{0};
  TrainCounts train;
  std::atomic<int64_t> attempts{0};
  std::atomic<int64_t> engines{0};
  std::atomic<int64_t> uploads{0};  // under way
  std::atomic<int64_t> withdrawn_devices{0};
  std::atomic<bool> registered{false};
  std::atomic<bool> has_room{true};
};

class AgentLoop {
 public:
  AgentLoop(AgentLoopOptions options, ServerLink& link, const Clock& clock = RealClock::Get());
  ~AgentLoop();

  // Cleans what an earlier process left, then works until the agent says Exit. OK after a drain;
  // STALE_ATTEMPT when another process has taken this worker's id, NUMERICS_CHANGED when the engine was
  // replaced and the process is to be started again.
  absl::Status Run();
  void RequestDrain();
  // Ends Run whatever the agent holds: what was not uploaded is lost, the jobs go on from their
  // last checkpoint elsewhere.
  void RequestStop() { stop_ = true; }
  const LoopCounts& counts() const { return counts_; }

 private:
  static constexpr int kTransfers = 32;
  using Cancel = std::shared_ptr<std::atomic<bool>>;
  struct Engine {
    std::unique_ptr<EngineProcess> process;
    std::string device_id;
  };

  void Deliver(Input input);  // into the mailbox, waiting for room: nothing is ever dropped
  void Handle(const Input& input);
  void HandleOwn();
  void Do(const DoRegister& a);
  void Do(const DoSynchronize& a);
  void Do(const DoReport& a);
  void Do(const DoFetch& a);
  void Do(const StopFetch& a);
  void Do(const StartEngine& a);
  void Do(const Attach& a);
  void Do(const PauseAttempt& a);
  void Do(const ResumeAttempt& a);
  void Do(const SetPriority& a);
  void Do(const CheckpointAttempt& a);
  void Do(const Detach& a);
  void Do(const ShutdownEngine& a);
  void Do(const KillEngine& a);
  void Do(const StartCheck& a);
  void Do(const StopCheck& a);
  void Do(const DoProbe& a);
  void Do(const MeasureRoom& a);
  void Do(const DoUpload& a);
  void Do(const StopUpload& a);
  void Do(const Forget& a);
  void Do(const Exit& a);

  void Send(int64_t engine, const std::string& line);
  void OnEngineExit(int64_t engine, const ProcessExit& exit, const std::string& log_file,
                    const std::string& nonsense);
  // What nobody uses goes, down to this; to 0 when the disk is full.
  void ShrinkCaches(int64_t max_bytes);
  void MeasureDevices(std::vector<DeviceStatus>& devices) const;
  std::string DirOf(const AttemptKey& key) const;
  std::string LogFileOf(const std::string& device_id) const;
  void CutLogs();

  const AgentLoopOptions options_;
  ServerLink& link_;
  const Clock& clock_;
  Agent agent_;
  BlobCache cache_;
  AttemptFiles files_;
  LoopCounts counts_;
  Mailbox<Input> inbox_;
  // Outcomes of actions that were done on the loop's thread: it must not wait for room in its own mailbox.
  std::deque<Input> own_;
  std::map<int64_t, Engine> engines_;
  std::map<AttemptKey, std::string> tokens_;  // of attempts that have a directory
  std::map<AttemptKey, Cancel> fetches_;
  std::map<AttemptKey, Cancel> checks_;
  std::map<int64_t, Cancel> uploads_;
  int64_t next_log_look_us_ = 0;
  bool done_ = false;
  std::atomic<bool> stop_{false};
  const Cancel probes_ended_ = std::make_shared<std::atomic<bool>>(false);
  absl::Status outcome_;
  // Last: their threads use everything above.
  TaskPool synchronize_pool_{1};
  TaskPool call_pool_{2};
  // Transfers side by side, so that one of a small job does not wait for those of large models.
  TaskPool fetch_pool_{kTransfers};
  TaskPool upload_pool_{kTransfers};
  TaskPool check_pool_{1};
  TaskPool probe_pool_{1};
};

}  // namespace nibble::worker
