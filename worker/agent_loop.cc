#include "worker/agent_loop.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "worker/base_files.h"
#include "worker/check.h"

namespace nibble::worker {
namespace {

constexpr size_t kInboxCapacity = 16'384;
constexpr size_t kBatch = 256;
constexpr int64_t kMaxWaitUs = 1'000'000;

std::string ReasonText(const absl::Status& status) {
  const Reason reason = StatusReason(status);
  return std::string(ReasonName(reason == Reason::kUnspecified ? Reason::kInternal : reason));
}

// An error that another try cannot mend.
bool IsHopeless(const absl::Status& status) {
  const Reason reason = StatusReason(status);
  return reason == Reason::kNameInvalid || reason == Reason::kInternal ||
         reason == Reason::kCheckpointInvalid || reason == Reason::kModelFileInvalid;
}

// Something found no room on this machine's disk.
bool IsFullDisk(const Input& input) {
  constexpr std::string_view kFull = "STORAGE_FULL";
  if (const auto* fetch = std::get_if<FetchFailed>(&input)) return fetch->reason == kFull;
  if (const auto* failed = std::get_if<EngineFailed>(&input)) return failed->reason == kFull;
  if (const auto* check = std::get_if<CheckEnded>(&input)) return check->reason == kFull;
  return std::holds_alternative<EngineNoRoom>(input);
}

template <typename Key, typename Map>
auto Register(Map& map, const Key& key) {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  map[key] = flag;
  return flag;
}

template <typename Key, typename Map>
void StopOne(Map& map, const Key& key) {
  const auto it = map.find(key);
  if (it == map.end()) return;
  it->second->store(true);
  map.erase(it);
}

}  // namespace

AgentLoop::AgentLoop(AgentLoopOptions options, ServerLink& link, const Clock& clock)
    : options_(std::move(options)),
      link_(link),
      clock_(clock),
      agent_(options_.agent),
      cache_(JoinPath(options_.work_dir, "cache"), options_.cache_max_bytes),
      files_(options_.work_dir, options_.shares_file_system, cache_, link),
      inbox_(kInboxCapacity) {}

AgentLoop::~AgentLoop() {
  for (auto* running : {&fetches_, &checks_}) {
    for (auto& [key, cancel] : *running) cancel->store(true);
  }
  for (auto& [id, cancel] : uploads_) cancel->store(true);
  probes_ended_->store(true);
  inbox_.Close();
  link_.Shutdown();
  engines_.clear();
}

absl::Status AgentLoop::Run() {
  // Who still has something to say, as a signal may, finds nobody who would make room for it.
  const absl::Cleanup deaf = [this] { inbox_.Close(); };
  for (const char* part : {"cache/base", "log", "lock"}) {
    RETURN_IF_ERROR(MakeDirs(JoinPath(options_.work_dir, part)));
  }
  RETURN_IF_ERROR(files_.Clean());
  RETURN_IF_ERROR(cache_.Open());
  ShrinkCaches(options_.cache_max_bytes);  // the bound may be lower than it was
  Handle(Start{});
  HandleOwn();
  while (!done_ && !stop_) {
    const int64_t wait_us =
        std::clamp<int64_t>(agent_.NextDueUs() - clock_.NowMonotonicUs(), 0, kMaxWaitUs);
    for (const Input& input : inbox_.Take(kBatch, wait_us)) {
      if (done_) break;
      Handle(input);
      HandleOwn();
    }
    if (!done_ && clock_.NowMonotonicUs() >= agent_.NextDueUs()) Handle(Tick{});
    HandleOwn();
    CutLogs();
  }
  return outcome_;
}

void AgentLoop::RequestDrain() { Deliver(Drain{}); }

void AgentLoop::Deliver(Input input) {
  while (!inbox_.Post(std::move(input))) {
    if (inbox_.closed()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

void AgentLoop::HandleOwn() {
  while (!own_.empty() && !done_) {
    const Input input = std::move(own_.front());
    own_.pop_front();
    Handle(input);
  }
}

void AgentLoop::Handle(const Input& input) {
  if (const auto* exited = std::get_if<EngineExited>(&input)) {
    engines_.erase(exited->engine);
    ShrinkCaches(options_.cache_max_bytes);  // its base is nobody's now
  }
  if (const auto* no_room = std::get_if<EngineNoRoom>(&input)) {
    LogWarning(
        "checkpoint.no_room",
        {{"attempt", no_room->key.ToString()}, {"step", no_room->step}, {"why", no_room->message}});
  }
  if (const auto* done = std::get_if<Uploaded>(&input)) uploads_.erase(done->id);
  if (const auto* failed = std::get_if<UploadFailed>(&input)) uploads_.erase(failed->id);
  if (IsFullDisk(input)) ShrinkCaches(0);
  counts_.train.Count(input, clock_.NowMonotonicUs());
  for (const Action& action : agent_.Handle(input, clock_.NowMonotonicUs())) {
    std::visit([this](const auto& a) { Do(a); }, action);
  }
  counts_.attempts = static_cast<int64_t>(agent_.attempts());
  counts_.engines = static_cast<int64_t>(agent_.engines());
  counts_.uploads = static_cast<int64_t>(uploads_.size());
  counts_.withdrawn_devices = static_cast<int64_t>(agent_.withdrawn_devices());
  counts_.registered = agent_.registered();
  if (counts_.has_room.exchange(agent_.has_room()) != agent_.has_room()) {
    if (agent_.has_room()) {
      LogInfo("disk.has_room");
    } else {
      LogWarning("disk.full", {{"dir", options_.work_dir}});
    }
  }
}

void AgentLoop::ShrinkCaches(int64_t max_bytes) {
  fetch_pool_.Post([this, max_bytes] {
    cache_.ShrinkTo(max_bytes);
    ShrinkBases(JoinPath(options_.work_dir, "cache/base"), max_bytes);
  });
}

void AgentLoop::Do(const DoRegister& a) {
  call_pool_.Post([this, a] { Deliver(link_.Register(a)); });
}

void AgentLoop::Do(const DoSynchronize& a) {
  link_.CancelSynchronizeBefore(a.request.id);
  DoSynchronize measured = a;
  MeasureDevices(measured.request.devices);
  synchronize_pool_.Post([this, measured] { Deliver(link_.Synchronize(measured)); });
}

void AgentLoop::Do(const DoReport& a) {
  call_pool_.Post([this, a] {
    ReportReply reply = link_.Report(a);
    ++counts_.reports;
    if (reply.code != ReportReply::Code::kOk) {
      ++counts_.reports_failed;
      LogWarning(
          reply.code == ReportReply::Code::kUnavailable ? "report.unanswered" : "report.refused",
          {{"attempt", a.report.key.ToString()}, {"why", reply.message}});
    }
    Deliver(std::move(reply));
  });
}

void AgentLoop::Do(const DoFetch& a) {
  const AttemptKey key = a.assignment.key;
  tokens_[key] = a.assignment.token;
  const Cancel cancel = Register(fetches_, key);
  LogInfo("attempt.fetch", {{"attempt", key.ToString()}});
  fetch_pool_.Post([this, assignment = a.assignment, cancel] {
    if (cancel->load()) return;  // over before its turn came: nothing may be pinned or made for it
    const auto files = files_.Fetch(assignment, [cancel] { return cancel->load(); });
    // It may have been forgotten while something was still pinned or made for it.
    if (cancel->load()) {
      files_.Forget(assignment.key, assignment.token);
      cache_.Shrink();
      return;
    }
    if (files.ok()) return Deliver(Fetched{assignment.key, *files});
    LogWarning("attempt.fetch_failed", {{"attempt", assignment.key.ToString()},
                                        {"why", std::string(files.status().message())}});
    Deliver(FetchFailed{assignment.key, ReasonText(files.status()),
                        std::string(files.status().message()), !IsHopeless(files.status()),
                        StatusReason(files.status()) != Reason::kModelFileInvalid});
  });
}

void AgentLoop::Do(const StopFetch& a) { StopOne(fetches_, a.key); }

std::string AgentLoop::DirOf(const AttemptKey& key) const {
  const auto it = tokens_.find(key);
  return files_.DirOf(key, it == tokens_.end() ? "" : it->second);
}

void AgentLoop::Do(const StartCheck& a) {
  const AttemptKey key = a.assignment.key;
  const Cancel cancel = Register(checks_, key);
  LogInfo("attempt.check", {{"attempt", key.ToString()}});
  check_pool_.Post([this, a, cancel, dir = DirOf(key)] {
    if (cancel->load()) return;
    const CheckEnded ended = RunCheck({options_.engine_binary, dir}, a.assignment, a.files,
                                      [cancel] { return cancel->load(); });
    if (!cancel->load()) Deliver(ended);
  });
}

void AgentLoop::Do(const StopCheck& a) { StopOne(checks_, a.key); }

void AgentLoop::Do(const MeasureRoom&) {
  const absl::StatusOr<int64_t> free_bytes = FreeDiskBytes(options_.work_dir);
  own_.push_back(RoomMeasured{free_bytes.value_or(0)});
}

void AgentLoop::Do(const DoUpload& a) {
  const Cancel cancel = Register(uploads_, a.id);
  upload_pool_.Post([this, a, cancel] {
    const auto files = files_.Upload(a.key, a.token, a.dir, [cancel] { return cancel->load(); });
    if (cancel->load()) return;
    if (files.ok()) return Deliver(Uploaded{a.id, *files});
    LogWarning("upload.failed",
               {{"attempt", a.key.ToString()}, {"why", std::string(files.status().message())}});
    Deliver(UploadFailed{a.id, ReasonText(files.status()), std::string(files.status().message())});
  });
}

void AgentLoop::Do(const StopUpload& a) { StopOne(uploads_, a.id); }

void AgentLoop::Do(const Forget& a) {
  StopOne(fetches_, a.key);
  StopOne(checks_, a.key);
  counts_.train.Forget(a.key);
  const auto it = tokens_.find(a.key);
  if (it == tokens_.end()) return;
  LogInfo("attempt.over", {{"attempt", a.key.ToString()}});
  files_.Forget(a.key, it->second);
  tokens_.erase(it);
  ShrinkCaches(options_.cache_max_bytes);  // what it had pinned may go
}

void AgentLoop::Do(const Exit& a) {
  done_ = true;
  LogInfo("worker.exit", {{"why", a.why}});
  if (a.superseded) outcome_ = Error(Reason::kStaleAttempt, a.why).ToStatus();
  if (a.begin_anew && !a.superseded) outcome_ = Error(Reason::kNumericsChanged, a.why).ToStatus();
}

}  // namespace nibble::worker
