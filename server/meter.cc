#include "server/meter.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "base/file.h"
#include "base/log.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/auth.h"
#include "server/blob_store.h"
#include "server/control_loop.h"
#include "server/meter_families.h"
#include "server/version.h"

namespace nibble::server {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;

// There is one queue; the label is there for the day there are more.
const std::string kQueue = "default";
constexpr auto kScrapeTimeout = std::chrono::seconds(2);
// Series of a worker that is lost stay so long.
constexpr int64_t kSweepUs = int64_t{60} * 1'000'000;
constexpr int64_t kLostSeriesUs = int64_t{3600} * 1'000'000;

const Histogram::BucketBoundaries kCallBuckets = {0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60};
const Histogram::BucketBoundaries kFastBuckets = {0.0001, 0.0005, 0.0025, 0.01, 0.05, 0.25, 1, 5};
const Histogram::BucketBoundaries kWaitBuckets = {1, 3, 10, 30, 100, 300, 1000, 3600, 14'400, 43'200, 86'400};
const Histogram::BucketBoundaries kRunBuckets = {10,   30,     100,    300,    1000,
                                                 3600, 14'400, 43'200, 86'400, 259'200};

double Seconds(int64_t us) { return static_cast<double>(us) / 1e6; }

Family<Counter>& CounterFamily(prometheus::Registry& registry, std::string_view name) {
  const MetricRow& row = MetricOf(name);
  return prometheus::BuildCounter()
      .Name(std::string(row.name))
      .Help(std::string(row.help))
      .Register(registry);
}
Family<Histogram>& HistogramFamily(prometheus::Registry& registry, std::string_view name) {
  const MetricRow& row = MetricOf(name);
  return prometheus::BuildHistogram()
      .Name(std::string(row.name))
      .Help(std::string(row.help))
      .Register(registry);
}

std::string ServiceOf(std::string_view method) {
  const size_t slash = method.rfind('/');
  return slash == std::string_view::npos || slash == 0 ? "" : std::string(method.substr(1, slash - 1));
}
std::string NameOf(std::string_view method) { return BaseName(method); }

prometheus::Labels CallLabels(std::string_view type, std::string_view method) {
  return {{"grpc_type", std::string(type)},
          {"grpc_service", ServiceOf(method)},
          {"grpc_method", NameOf(method)}};
}

void AddVolume(Families& families, const char* volume, const std::string& path) {
  struct statvfs info;
  if (path.empty() || statvfs(path.c_str(), &info) != 0) return;
  const double unit = static_cast<double>(info.f_frsize);
  families.Add("nibble_storage_size_bytes", {{"volume", volume}}, static_cast<double>(info.f_blocks) * unit);
  families.Add("nibble_storage_free_bytes", {{"volume", volume}}, static_cast<double>(info.f_bavail) * unit);
}

double FileBytes(const std::string& path) {
  const auto size = FileSizeBytes(path);
  return size.ok() ? static_cast<double>(*size) : 0;
}

// Why an attempt that begins now does: what became of the one before it.
std::string AttemptReason(const core::Job& job) {
  const core::Attempt* before = nullptr;
  for (const auto& [epoch, attempt] : job.attempts) {
    if (epoch < job.epoch) before = &attempt;
  }
  if (!before) return "first";
  switch (before->state) {
    case core::AttemptState::kLost: return "worker_lost";
    case core::AttemptState::kReleased: return before->reason == "paused" ? "resumed" : "preempted";
    default: return "retry";
  }
}

}  // namespace

struct Meter::Impl {
  Impl(const MeterOptions& o, const Clock* c) : options(o), clock(c) {
    // What alerts count must be there from the start, or its first increase is missed.
    lease_expirations.Add({});
    series_dropped.Add({});
    submitted.Add({{"queue", kQueue}, {"api", "grpc"}});
    for (const char* outcome : {"SUCCEEDED", "CANCELLED"}) {
      finished.Add({{"queue", kQueue}, {"outcome", outcome}, {"reason", ""}});
    }
    for (const char* reason : {"first", "worker_lost", "preempted", "resumed", "retry"}) {
      attempts.Add({{"reason", reason}});
    }
    for (const char* result : {"good", "bad"}) datasets.Add({{"result", result}});
    for (const char* operation : {"append", "begin", "finish", "read"}) {
      artifact_failures.Add({{"operation", operation}, {"store", "fs"}});
      artifact_time.Add({{"operation", operation}, {"store", "fs"}}, kFastBuckets);
    }
    queue_wait.Add({{"queue", kQueue}}, kWaitBuckets);
    placement.Add({}, kFastBuckets);
    last_dispatch_unix_us = clock->NowUnixUs();
  }

  void Collect(Families& families);
  void CollectState(Families& families, const ControlLoop::Outcome& outcome);
  void CollectJobs(Families& families, const ControlLoop::Outcome& outcome);
  void CollectJob(Families& families, const core::Job& job, const ControlLoop::Outcome& outcome);
  void CollectWorkers(Families& families, const ControlLoop::Outcome& outcome);
  void SweepEnded(const core::State& state, int64_t now_us);
  void OnRecord(const core::EventRecord& record, const core::State& state);

  const MeterOptions options;
  const Clock* clock;
  prometheus::Registry registry;
  Family<Counter>& submitted = CounterFamily(registry, "nibble_jobs_submitted_total");
  Family<Counter>& finished = CounterFamily(registry, "nibble_jobs_finished_total");
  Family<Counter>& attempts = CounterFamily(registry, "nibble_job_attempts_total");
  Family<Counter>& lease_expirations = CounterFamily(registry, "nibble_worker_lease_expirations_total");
  Family<Counter>& datasets = CounterFamily(registry, "nibble_datasets_validated_total");
  Family<Counter>& artifact_failures = CounterFamily(registry, "nibble_artifact_failures_total");
  Family<Counter>& database_failures = CounterFamily(registry, "nibble_db_failures_total");
  Family<Counter>& series_dropped = CounterFamily(registry, "nibble_job_series_dropped_total");
  Family<Counter>& calls_started = CounterFamily(registry, "grpc_server_started_total");
  Family<Counter>& calls_handled = CounterFamily(registry, "grpc_server_handled_total");
  Family<Counter>& received = CounterFamily(registry, "grpc_server_msg_received_total");
  Family<Counter>& sent = CounterFamily(registry, "grpc_server_msg_sent_total");
  Family<Histogram>& queue_wait = HistogramFamily(registry, "nibble_job_queue_wait_seconds");
  Family<Histogram>& run_duration = HistogramFamily(registry, "nibble_job_run_duration_seconds");
  Family<Histogram>& placement = HistogramFamily(registry, "nibble_scheduler_cycle_duration_seconds");
  Family<Histogram>& artifact_time = HistogramFamily(registry, "nibble_artifact_operation_duration_seconds");
  Family<Histogram>& database_time = HistogramFamily(registry, "nibble_db_operation_duration_seconds");
  Family<Histogram>& call_time = HistogramFamily(registry, "grpc_server_handling_seconds");

  std::mutex mutex;  // guards what follows
  Sources sources;
  int64_t last_dispatch_unix_us = 0;
  double collection_seconds = 0;
  std::map<std::string, int64_t> last_progress_unix_us;  // by job
  std::map<std::string, int64_t> ended_us;               // jobs that linger -> monotonic end
  int64_t swept_us = 0;                                  // when those were last looked through
  std::set<std::string> dropped;                         // live jobs without series
};

Meter::Meter(const MeterOptions& options, const Clock* clock)
    : impl_(std::make_unique<Impl>(options, clock)) {}
Meter::~Meter() = default;

void Meter::SetSources(Sources sources) {
  std::lock_guard lock(impl_->mutex);
  impl_->sources = std::move(sources);
}

void Meter::Impl::OnRecord(const core::EventRecord& record, const core::State& state) {
  if (record.type == "worker.lost") lease_expirations.Add({}).Increment();
  const core::Job* job = record.job_id.empty() ? nullptr : state.FindJob(record.job_id);
  if (!job || job->kind != core::JobKind::kTrain) return;
  if (record.type == "job.queued") {
    submitted.Add({{"queue", kQueue}, {"api", "grpc"}}).Increment();
  } else if (record.type == "attempt.assigned") {
    attempts.Add({{"reason", AttemptReason(*job)}}).Increment();
    last_dispatch_unix_us = record.unix_us;
    if (job->epoch == 1) {
      queue_wait.Add({{"queue", kQueue}}, kWaitBuckets)
          .Observe(Seconds(record.unix_us - job->create_unix_us));
    }
  } else if (record.type == "job.succeeded" || record.type == "job.failed" ||
             record.type == "job.cancelled") {
    const std::string outcome(core::JobStateName(record.state));
    finished.Add({{"queue", kQueue}, {"outcome", outcome}, {"reason", job->error_reason}}).Increment();
    if (job->start_unix_us > 0) {
      run_duration.Add({{"queue", kQueue}, {"outcome", outcome}}, kRunBuckets)
          .Observe(Seconds(record.unix_us - job->start_unix_us));
    }
    ended_us[job->id] = clock->NowMonotonicUs();
  }
}

void Meter::OnCommit(const std::vector<core::EventRecord>& records, const core::State& state) {
  std::lock_guard lock(impl_->mutex);
  for (const core::EventRecord& record : records) impl_->OnRecord(record, state);
  // Where nobody scrapes, too.
  const int64_t now_us = impl_->clock->NowMonotonicUs();
  const int64_t sweep_us = std::max(kSweepUs, impl_->options.job_linger_us);
  if (now_us - impl_->swept_us > sweep_us) impl_->SweepEnded(state, now_us);
}

void Meter::OnProgress(const std::string& job_id) {
  std::lock_guard lock(impl_->mutex);
  impl_->last_progress_unix_us[job_id] = impl_->clock->NowUnixUs();
}

void Meter::OnPlacementPass(int64_t duration_us) {
  impl_->placement.Add({}, kFastBuckets).Observe(Seconds(duration_us));
}

void Meter::OnDatabase(std::string_view operation, int64_t duration_us, bool failed) {
  auto& failures = impl_->database_failures.Add({{"operation", std::string(operation)}});
  if (failed) failures.Increment();
  impl_->database_time.Add({{"operation", std::string(operation)}}, kFastBuckets)
      .Observe(Seconds(duration_us));
}

void Meter::OnArtifact(std::string_view operation, int64_t duration_us, bool failed) {
  const prometheus::Labels labels = {{"operation", std::string(operation)}, {"store", "fs"}};
  impl_->artifact_time.Add(labels, kFastBuckets).Observe(Seconds(duration_us));
  if (failed) impl_->artifact_failures.Add(labels).Increment();
}

void Meter::OnDatasetChecked(bool good) {
  impl_->datasets.Add({{"result", good ? "good" : "bad"}}).Increment();
}

void Meter::OnCallStarted(std::string_view type, std::string_view method) {
  impl_->calls_started.Add(CallLabels(type, method)).Increment();
}

void Meter::OnCallHandled(std::string_view type, std::string_view method, std::string_view code,
                          int64_t duration_us) {
  prometheus::Labels labels = CallLabels(type, method);
  impl_->call_time.Add(labels, kCallBuckets).Observe(Seconds(duration_us));
  labels["grpc_code"] = std::string(code);
  impl_->calls_handled.Add(labels).Increment();
}

void Meter::OnMessage(std::string_view type, std::string_view method, bool received) {
  (received ? impl_->received : impl_->sent).Add(CallLabels(type, method)).Increment();
}

void Meter::Impl::CollectJob(Families& families, const core::Job& job, const ControlLoop::Outcome& outcome) {
  const std::string& id = job.id;
  const core::Attempt* attempt = job.Current();
  families.Add("nibble_job_info",
               {{"job_id", id}, {"display_name", job.display_name}, {"base_model", job.model_id},
                {"adapter", job.adapter_id}, {"queue", kQueue}, {"user", job.tenant},
                {"worker", attempt ? attempt->worker_id : ""}},
               1);
  families.Add("nibble_job_state",
               {{"job_id", id}, {"state", std::string(core::JobStateName(job.state))}}, 1);
  const auto time = [&](std::string_view name, int64_t unix_us) {
    if (unix_us > 0) families.Add(name, {{"job_id", id}}, Seconds(unix_us));
  };
  time("nibble_job_created_timestamp_seconds", job.create_unix_us);
  time("nibble_job_started_timestamp_seconds", job.start_unix_us);
  const auto progress_time = last_progress_unix_us.find(id);
  time("nibble_job_last_progress_timestamp_seconds",
       progress_time == last_progress_unix_us.end() ? job.start_unix_us : progress_time->second);
  time("nibble_job_estimated_end_timestamp_seconds", core::EstimatedEndUnixUs(job, outcome.now.unix_us));
  const core::Progress& progress = job.progress;
  families.Add("nibble_job_completed_steps", {{"job_id", id}}, static_cast<double>(progress.step));
  if (progress.planned_steps > 0) {
    families.Add("nibble_job_planned_steps", {{"job_id", id}}, static_cast<double>(progress.planned_steps));
  }
  if (progress.loss) families.Add("nibble_job_loss", {{"job_id", id}, {"split", "train"}}, *progress.loss);
  if (progress.eval_loss)
    families.Add("nibble_job_loss", {{"job_id", id}, {"split", "eval"}}, *progress.eval_loss);
  if (progress.learning_rate)
    families.Add("nibble_job_learning_rate", {{"job_id", id}}, *progress.learning_rate);
  if (progress.gradient_norm)
    families.Add("nibble_job_gradient_norm", {{"job_id", id}}, *progress.gradient_norm);
  families.Add("nibble_job_trained_tokens_total", {{"job_id", id}},
               static_cast<double>(progress.trained_tokens));
  const int64_t planned_bytes = job.plan.TotalBytes();
  if (planned_bytes > 0) {
    families.Add("nibble_job_memory_bytes", {{"job_id", id}, {"kind", "planned"}},
                 static_cast<double>(planned_bytes));
  }
  if (progress.used_bytes > 0) {
    families.Add("nibble_job_memory_bytes", {{"job_id", id}, {"kind", "used"}},
                 static_cast<double>(progress.used_bytes));
  }
  const core::Worker* worker = attempt ? outcome.state.FindWorker(attempt->worker_id) : nullptr;
  if (!worker) return;
  const auto device = worker->devices.find(attempt->device_id);
  if (device == worker->devices.end() || device->second.backend != "cuda") return;
  const std::string& uuid = device->second.uuid;
  families.Add("nibble_job_gpu_info", {{"job_id", id},
                                       {"gpu_uuid", uuid.empty() ? attempt->device_id : uuid},
                                       {"worker", worker->id}},
               1);
}

// Jobs that have lingered, or are gone.
void Meter::Impl::SweepEnded(const core::State& state, int64_t now_us) {
  std::erase_if(ended_us, [&](const auto& item) {
    if (item.second + options.job_linger_us > now_us && state.FindJob(item.first)) return false;
    last_progress_unix_us.erase(item.first);
    return true;
  });
  swept_us = now_us;
}

void Meter::Impl::CollectJobs(Families& families, const ControlLoop::Outcome& outcome) {
  const int64_t now_us = clock->NowMonotonicUs();
  SweepEnded(outcome.state, now_us);
  std::map<int64_t, const core::Job*> shown;  // oldest first
  for (const std::string& id : outcome.state.live_jobs) {
    const core::Job* job = outcome.state.FindJob(id);
    if (job && job->kind == core::JobKind::kTrain) shown[job->number] = job;
  }
  for (const auto& [id, end_us] : ended_us) {
    const core::Job* job = outcome.state.FindJob(id);
    shown[job->number] = job;
  }
  std::set<std::string> without;
  int32_t count = 0;
  for (const auto& [number, job] : shown) {
    if (++count <= options.max_job_series) {
      CollectJob(families, *job, outcome);
    } else {
      without.insert(job->id);
      if (!dropped.contains(job->id)) series_dropped.Add({}).Increment();
    }
  }
  dropped = std::move(without);
}

void Meter::Impl::CollectWorkers(Families& families, const ControlLoop::Outcome& outcome) {
  static constexpr const char* kStates[] = {"IDLE", "BUSY", "DRAINING", "SUSPECT", "LOST"};
  std::map<std::pair<std::string, std::string>, int64_t> counts;
  for (const char* state : kStates) counts[{state, "cpu"}] = 0;
  for (const auto& [id, worker] : outcome.state.workers) {
    const int32_t number =
        core::WorkerStateNumber(outcome.state, worker, outcome.core.options, outcome.now.monotonic_us);
    const std::string state = number >= 1 && number <= 5 ? kStates[number - 1] : "LOST";
    ++counts[{state, worker.devices.empty() ? "cpu" : worker.devices.begin()->second.backend}];
    // Machines that came for a day leave no series behind.
    if (worker.lost && outcome.now.monotonic_us - worker.renewed_us > kLostSeriesUs) continue;
    if (worker.last_seen_unix_us > 0) {
      families.Add("nibble_worker_last_heartbeat_timestamp_seconds", {{"worker", id}},
                   Seconds(worker.last_seen_unix_us));
    }
    families.Add("nibble_worker_disk_full", {{"worker", id}}, worker.no_room.empty() ? 0 : 1);
    for (const auto& [device_id, device] : worker.devices) {
      families.Add("nibble_worker_info",
                   {{"worker", id}, {"backend", device.backend}, {"device_name", device.description},
                    {"launcher", "process"}},
                   1);
      families.Add("nibble_device_capacity_bytes", {{"worker", id}, {"device", device_id}},
                   static_cast<double>(device.capacity_bytes));
      families.Add("nibble_device_reserved_bytes", {{"worker", id}, {"device", device_id}},
                   static_cast<double>(core::LoadOf(outcome.state, worker, device_id).TotalBytes()));
      families.Add("nibble_device_used_bytes", {{"worker", id}, {"device", device_id}},
                   static_cast<double>(device.used_bytes));
    }
  }
  for (const auto& [key, count] : counts) {
    families.Add("nibble_workers", {{"state", key.first}, {"backend", key.second}},
                 static_cast<double>(count));
  }
}

void Meter::Impl::CollectState(Families& families, const ControlLoop::Outcome& outcome) {
  std::map<core::JobState, int64_t> counts;
  for (int i = 1; i <= static_cast<int>(core::JobState::kCancelled); ++i)
    counts[static_cast<core::JobState>(i)] = 0;
  int64_t oldest_unix_us = 0;
  for (const auto& [id, job] : outcome.state.jobs) {
    if (job.kind != core::JobKind::kTrain) continue;
    ++counts[job.state];
    if (job.state != core::JobState::kQueued) continue;
    if (oldest_unix_us == 0 || job.queued_unix_us < oldest_unix_us) oldest_unix_us = job.queued_unix_us;
  }
  for (const auto& [state, count] : counts) {
    families.Add("nibble_jobs", {{"state", std::string(core::JobStateName(state))}, {"queue", kQueue}},
                 static_cast<double>(count));
  }
  if (oldest_unix_us > 0) {
    families.Add("nibble_queue_oldest_pending_timestamp_seconds", {{"queue", kQueue}},
                 Seconds(oldest_unix_us));
  }
  CollectJobs(families, outcome);
  CollectWorkers(families, outcome);
}

namespace {

// Reads files and volumes, so it may block.
void CollectServer(Families& families, const Meter::Sources& sources) {
  families.Add("nibble_build_info",
               {{"version", kVersion}, {"compiler", "gcc-" __VERSION__}, {"build_type", kBuildType}}, 1);
  AddVolume(families, "artifacts", sources.data_dir);
  AddVolume(families, "state", sources.data_dir);
  families.Add("nibble_storage_reserved_bytes", {{"volume", "artifacts"}},
               static_cast<double>(sources.reserved_bytes));
  AddVolume(families, "models", sources.model_root);
  if (sources.certificate_end_unix_us > 0) {
    families.Add("nibble_tls_certificate_expiry_timestamp_seconds", {},
                 Seconds(sources.certificate_end_unix_us));
  }
  if (!sources.data_dir.empty()) {
    double size = 0, wal = 0;
    for (const char* name : {"state.db", "metrics.db"}) {
      const std::string path = JoinPath(sources.data_dir, name);
      size += FileBytes(path);
      wal += FileBytes(path + "-wal");
    }
    families.Add("nibble_db_size_bytes", {}, size);
    families.Add("nibble_db_wal_bytes", {}, wal);
  }
  if (sources.blobs) {
    families.Add("nibble_blob_bytes", {}, static_cast<double>(sources.blobs->TotalBytes()));
    families.Add("nibble_uploads", {}, static_cast<double>(sources.blobs->OpenUploads()));
  }
  if (sources.hub) families.Add("nibble_watchers", {}, static_cast<double>(sources.hub->subscribers()));
  if (sources.authorizer) {
    families.Add("nibble_auth_refusals_total", {}, static_cast<double>(sources.authorizer->refusals()));
  }
  static constexpr std::pair<LogLevel, const char*> kLevels[] = {
      {LogLevel::kInfo, "info"}, {LogLevel::kWarning, "warning"}, {LogLevel::kError, "error"}};
  for (const auto& [level, name] : kLevels) {
    families.Add("nibble_log_messages_total", {{"level", name}}, static_cast<double>(LogCount(level)));
  }
  AddProcess(families);
}

}  // namespace

std::string Meter::Scrape() {
  const auto begin = std::chrono::steady_clock::now();
  ControlLoop* loop = nullptr;
  {
    std::lock_guard lock(impl_->mutex);
    loop = impl_->sources.loop;
  }
  // Shared: the loop may answer after we gave up waiting.
  auto collected = std::make_shared<std::promise<std::vector<prometheus::MetricFamily>>>();
  auto future = collected->get_future();
  const bool asked = loop && loop->Read([impl = impl_.get(), collected](const ControlLoop::Outcome& outcome) {
    Families families;
    {
      std::lock_guard lock(impl->mutex);
      impl->CollectState(families, outcome);
    }
    collected->set_value(families.Take());
  });
  std::vector<prometheus::MetricFamily> all;
  if (asked && future.wait_for(kScrapeTimeout) == std::future_status::ready) all = future.get();
  std::vector<prometheus::MetricFamily> fed = impl_->registry.Collect();
  std::move(fed.begin(), fed.end(), std::back_inserter(all));
  // Without the lock, which the loop's thread takes with every commit: a volume may be on a network and hang.
  Families families;
  Sources sources;
  double last_dispatch_seconds = 0, collection_seconds = 0;
  {
    std::lock_guard lock(impl_->mutex);
    sources = impl_->sources;
    last_dispatch_seconds = Seconds(impl_->last_dispatch_unix_us);
    collection_seconds = impl_->collection_seconds;
  }
  families.Add("nibble_scheduler_last_dispatch_timestamp_seconds", {}, last_dispatch_seconds);
  families.Add("nibble_metrics_collection_duration_seconds", {}, collection_seconds);
  CollectServer(families, sources);
  std::vector<prometheus::MetricFamily> server = families.Take();
  std::move(server.begin(), server.end(), std::back_inserter(all));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, all);
  std::lock_guard lock(impl_->mutex);
  impl_->collection_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out.str();
}

}  // namespace nibble::server
