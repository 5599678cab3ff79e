// Every metric Nibble exports, by server and worker: the one list that code, rules, dashboards and docs
// are checked against.
//
// Names follow the Prometheus conventions: base units, _total for counters, _timestamp_seconds for points
// in time. Labels come from closed sets; never a display name (but in nibble_job_info), a path or a text.
#pragma once

#include <string_view>

namespace nibble::server {

enum class MetricType { kCounter, kGauge, kHistogram };

struct MetricRow {
  std::string_view name;
  MetricType type;
  std::string_view labels;
  std::string_view help;
};

inline constexpr MetricRow kMetricTable[] = {
    // Server and queue.
    {"nibble_build_info", MetricType::kGauge, "version,compiler,build_type",
     "1; what is running, as labels."},
    {"nibble_jobs", MetricType::kGauge, "state,queue", "Jobs by state."},
    {"nibble_jobs_submitted_total", MetricType::kCounter, "queue,api", "Jobs accepted."},
    {"nibble_jobs_finished_total", MetricType::kCounter, "queue,outcome,reason",
     "Jobs that reached a terminal state; reason is that of a failure, else empty."},
    {"nibble_job_attempts_total", MetricType::kCounter, "reason",
     "Attempts begun: first, resumed, preempted, worker_lost or retry."},
    {"nibble_job_queue_wait_seconds", MetricType::kHistogram, "queue",
     "Time from creation to a job's first attempt."},
    {"nibble_job_run_duration_seconds", MetricType::kHistogram, "queue,outcome",
     "Time from a job's first attempt to its end."},
    {"nibble_queue_oldest_pending_timestamp_seconds", MetricType::kGauge, "queue",
     "When the longest waiting job was queued; absent while nothing waits."},
    {"nibble_scheduler_last_dispatch_timestamp_seconds", MetricType::kGauge, "",
     "When an attempt was last given to a worker; the server's start before the first."},
    {"nibble_scheduler_cycle_duration_seconds", MetricType::kHistogram, "", "Time of one placement pass."},
    {"nibble_workers", MetricType::kGauge, "state,backend", "Workers by state."},
    {"nibble_worker_info", MetricType::kGauge, "worker,backend,device_name,launcher",
     "1 per device of a worker."},
    {"nibble_worker_last_heartbeat_timestamp_seconds", MetricType::kGauge, "worker",
     "When a worker last renewed its lease."},
    {"nibble_worker_disk_full", MetricType::kGauge, "worker",
     "1 while a worker takes no new work because its disk is full."},
    {"nibble_worker_lease_expirations_total", MetricType::kCounter, "", "Leases that ran out."},
    {"nibble_device_capacity_bytes", MetricType::kGauge, "worker,device", "Bytes a device offers."},
    {"nibble_device_reserved_bytes", MetricType::kGauge, "worker,device",
     "Bytes planned for the attempts on a device, each base counted once."},
    {"nibble_device_used_bytes", MetricType::kGauge, "worker,device", "Bytes measured on a device."},
    {"nibble_datasets_validated_total", MetricType::kCounter, "result", "Data sets checked when created."},
    {"nibble_storage_size_bytes", MetricType::kGauge, "volume", "Size of the volume."},
    {"nibble_storage_free_bytes", MetricType::kGauge, "volume", "Free bytes of the volume."},
    {"nibble_storage_reserved_bytes", MetricType::kGauge, "volume",
     "With less free than this, uploads are refused, or a worker may find no room for a "
     "checkpoint."},
    {"nibble_blob_bytes", MetricType::kGauge, "", "Bytes in finished blobs."},
    {"nibble_uploads", MetricType::kGauge, "", "Unfinished uploads."},
    {"nibble_artifact_operation_duration_seconds", MetricType::kHistogram, "operation,store",
     "Time of an operation of the blob store."},
    {"nibble_artifact_failures_total", MetricType::kCounter, "operation,store",
     "Operations of the blob store that failed for another reason than the caller's."},
    {"nibble_db_operation_duration_seconds", MetricType::kHistogram, "operation",
     "Time of a database operation."},
    {"nibble_db_failures_total", MetricType::kCounter, "operation",
     "Database operations that failed; what was asked for did not happen."},
    {"nibble_db_size_bytes", MetricType::kGauge, "", "Size of the database files."},
    {"nibble_db_wal_bytes", MetricType::kGauge, "", "Size of the write-ahead logs."},
    {"nibble_tls_certificate_expiry_timestamp_seconds", MetricType::kGauge, "",
     "When the server's certificate ends; absent without TLS."},
    {"nibble_watchers", MetricType::kGauge, "", "Open watch subscriptions."},
    {"nibble_auth_refusals_total", MetricType::kCounter, "", "Calls refused for want of a role or token."},
    {"nibble_job_series_dropped_total", MetricType::kCounter, "",
     "Live jobs that got no series because there are more than metrics.max_job_series."},
    {"nibble_metrics_collection_duration_seconds", MetricType::kGauge, "",
     "How long the last collection took."},
    {"nibble_log_messages_total", MetricType::kCounter, "level", "Log lines written."},

    // gRPC, under the names existing dashboards know.
    {"grpc_server_started_total", MetricType::kCounter, "grpc_type,grpc_service,grpc_method",
     "Calls started."},
    {"grpc_server_handled_total", MetricType::kCounter, "grpc_type,grpc_service,grpc_method,grpc_code",
     "Calls finished."},
    {"grpc_server_msg_received_total", MetricType::kCounter, "grpc_type,grpc_service,grpc_method",
     "Messages received."},
    {"grpc_server_msg_sent_total", MetricType::kCounter, "grpc_type,grpc_service,grpc_method",
     "Messages sent."},
    {"grpc_server_handling_seconds", MetricType::kHistogram, "grpc_type,grpc_service,grpc_method",
     "Time from start to finish of a call."},

    // The process.
    {"process_cpu_seconds_total", MetricType::kCounter, "", "CPU time spent."},
    {"process_resident_memory_bytes", MetricType::kGauge, "", "Resident memory."},
    {"process_virtual_memory_bytes", MetricType::kGauge, "", "Virtual memory."},
    {"process_open_fds", MetricType::kGauge, "", "Open file descriptors."},
    {"process_max_fds", MetricType::kGauge, "", "Limit of open file descriptors."},
    {"process_start_time_seconds", MetricType::kGauge, "", "When the process started."},
    {"process_threads", MetricType::kGauge, "", "Threads."},

    // One job, as long as it lives and a while after (metrics.job_linger); label job_id.
    {"nibble_job_info", MetricType::kGauge, "job_id,display_name,base_model,adapter,queue,user,worker",
     "1; the job's names, as labels."},
    {"nibble_job_state", MetricType::kGauge, "job_id,state", "1 for the state the job is in."},
    {"nibble_job_created_timestamp_seconds", MetricType::kGauge, "job_id", "When the job was created."},
    {"nibble_job_started_timestamp_seconds", MetricType::kGauge, "job_id", "When its first attempt began."},
    {"nibble_job_last_progress_timestamp_seconds", MetricType::kGauge, "job_id",
     "When a step of it was last reported."},
    {"nibble_job_estimated_end_timestamp_seconds", MetricType::kGauge, "job_id",
     "When it is expected to end."},
    {"nibble_job_completed_steps", MetricType::kGauge, "job_id", "Optimizer steps done."},
    {"nibble_job_planned_steps", MetricType::kGauge, "job_id", "Optimizer steps in all."},
    {"nibble_job_loss", MetricType::kGauge, "job_id,split", "Last finite loss; split is train or eval."},
    {"nibble_job_learning_rate", MetricType::kGauge, "job_id", "Learning rate of the last step."},
    {"nibble_job_gradient_norm", MetricType::kGauge, "job_id", "Gradient norm of the last step."},
    {"nibble_job_trained_tokens_total", MetricType::kCounter, "job_id",
     "Tokens processed; those of steps repeated after an interruption count again."},
    {"nibble_job_memory_bytes", MetricType::kGauge, "job_id,kind",
     "Bytes planned for the job, and the high water used."},
    {"nibble_job_gpu_info", MetricType::kGauge, "job_id,gpu_uuid,worker", "1; the GPU the job is on."},

    // Workers.
    {"nibble_train_steps_total", MetricType::kCounter, "", "Optimizer steps."},
    {"nibble_train_steps_skipped_total", MetricType::kCounter, "reason",
     "Optimizer steps whose update was left out."},
    {"nibble_train_steps_fused_total", MetricType::kCounter, "",
     "Optimizer steps made together with other jobs' on one base."},
    {"nibble_train_tokens_total", MetricType::kCounter, "kind", "Tokens processed."},
    {"nibble_train_phase_seconds_total", MetricType::kCounter, "phase",
     "Time of optimizer steps on CPUs, by what it went into."},
    {"nibble_train_step_duration_seconds", MetricType::kHistogram, "", "Time of an optimizer step."},
    {"nibble_checkpoint_duration_seconds", MetricType::kHistogram, "",
     "Time from a checkpoint's start to its report."},
    {"nibble_checkpoint_failures_total", MetricType::kCounter, "",
     "Times that a checkpoint or adapter could not be written or uploaded; each is tried again."},
    {"nibble_worker_registered", MetricType::kGauge, "", "1 while the server knows this process."},
    {"nibble_worker_attempts", MetricType::kGauge, "", "Attempts this worker holds."},
    {"nibble_worker_engines", MetricType::kGauge, "", "Engine processes running."},
    {"nibble_worker_engines_started_total", MetricType::kCounter, "", "Engine processes started."},
    {"nibble_worker_engines_lost_total", MetricType::kCounter, "",
     "Engine processes that ended by themselves."},
    {"nibble_worker_devices_withdrawn", MetricType::kGauge, "",
     "Devices that take no work because they do not answer."},
    {"nibble_worker_reports_total", MetricType::kCounter, "", "Reports sent to the server."},
    {"nibble_worker_reports_failed_total", MetricType::kCounter, "", "Reports the server did not take."},
    {"nibble_worker_device_capacity_bytes", MetricType::kGauge, "device", "Memory this worker offers."},
    {"nibble_worker_device_pinned_capacity_bytes", MetricType::kGauge, "device",
     "Page-locked memory of the host this worker offers a GPU's jobs."},
    {"nibble_worker_gpu_memory_used_bytes", MetricType::kGauge, "device,gpu_uuid",
     "Memory in use on the GPU, by whomever."},
    {"nibble_worker_gpu_memory_total_bytes", MetricType::kGauge, "device,gpu_uuid", "Memory the GPU has."},
    {"nibble_worker_gpu_utilization_ratio", MetricType::kGauge, "device,gpu_uuid",
     "Share of the time in which the GPU ran anything, 0 to 1."},
    {"nibble_worker_gpu_temperature_celsius", MetricType::kGauge, "device,gpu_uuid",
     "Temperature of the GPU."},
    {"nibble_worker_gpu_power_watts", MetricType::kGauge, "device,gpu_uuid", "Power the GPU draws."},
};

// At compile time: names a table does not have do not compile.
constexpr const MetricRow& MetricOf(std::string_view name) {
  for (const MetricRow& row : kMetricTable) {
    if (row.name == name) return row;
  }
  throw "no such metric in kMetricTable";
}

}  // namespace nibble::server
