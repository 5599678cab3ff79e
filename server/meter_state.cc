#include "server/meter_state.h"

#include <sys/statvfs.h>

#include <map>
#include <string>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "server/auth.h"
#include "server/blob_store.h"
#include "server/server_certificate.h"

namespace nibble::server {
namespace {

// Series of a worker that is lost stay so long.
constexpr int64_t kLostSeriesUs = int64_t{3600} * 1'000'000;

#ifdef NDEBUG
constexpr char kBuildType[] = "release";
#else
constexpr char kBuildType[] = "checked";
#endif

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

}  // namespace

void AddJob(Families& families, const core::Job& job, const ControlLoop::Outcome& outcome,
            int64_t last_progress_unix_us) {
  const std::string& id = job.id;
  const core::Attempt* attempt = job.Current();
  families.Add("nibble_job_info",
               {{"job_id", id}, {"display_name", job.display_name}, {"base_model", job.model_id},
                {"adapter", job.adapter_id}, {"queue", kMeterQueue}, {"user", job.tenant},
                {"worker", attempt ? attempt->worker_id : ""}},
               1);
  families.Add("nibble_job_state",
               {{"job_id", id}, {"state", std::string(core::JobStateName(job.state))}}, 1);
  const auto time = [&](std::string_view name, int64_t unix_us) {
    if (unix_us > 0) families.Add(name, {{"job_id", id}}, Seconds(unix_us));
  };
  time("nibble_job_created_timestamp_seconds", job.create_unix_us);
  time("nibble_job_started_timestamp_seconds", job.start_unix_us);
  time("nibble_job_last_progress_timestamp_seconds",
       last_progress_unix_us > 0 ? last_progress_unix_us : job.start_unix_us);
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

void AddQueue(Families& families, const ControlLoop::Outcome& outcome) {
  // The history may be long: only those that wait are looked at.
  int64_t oldest_unix_us = 0;
  for (const std::string& id : outcome.state.queued_jobs) {
    const core::Job& job = outcome.state.jobs.at(id);
    if (job.kind != core::JobKind::kTrain) continue;
    if (oldest_unix_us == 0 || job.queued_unix_us < oldest_unix_us) oldest_unix_us = job.queued_unix_us;
  }
  for (size_t i = 1; i < core::kJobStateCount; ++i) {
    families.Add("nibble_jobs", {{"state", std::string(core::JobStateName(static_cast<core::JobState>(i)))},
                                 {"queue", kMeterQueue}},
                 static_cast<double>(outcome.state.job_counts[i]));
  }
  if (oldest_unix_us > 0) {
    families.Add("nibble_queue_oldest_pending_timestamp_seconds", {{"queue", kMeterQueue}},
                 Seconds(oldest_unix_us));
  }
}

void AddWorkers(Families& families, const ControlLoop::Outcome& outcome) {
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

void AddServer(Families& families, const Meter::Sources& sources) {
  families.Add("nibble_build_info",
               {{"version", NIBBLE_VERSION}, {"compiler", "gcc-" __VERSION__}, {"build_type", kBuildType}},
               1);
  AddVolume(families, "artifacts", sources.data_dir);
  AddVolume(families, "state", sources.data_dir);
  families.Add("nibble_storage_reserved_bytes", {{"volume", "artifacts"}},
               static_cast<double>(sources.reserved_bytes));
  AddVolume(families, "models", sources.model_root);
  if (sources.certificate != nullptr) {
    families.Add("nibble_tls_certificate_expiry_timestamp_seconds", {},
                 Seconds(sources.certificate->Current()->end_unix_us));
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

}  // namespace nibble::server
