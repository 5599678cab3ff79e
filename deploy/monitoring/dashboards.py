"""What the four dashboards show."""

from panels import (BLUE, GREEN, RED, YELLOW, Panel, annotation, dashboard, metric, quantile,
                    query_variable, rate)

# Live jobs have a job_id; these series vanish some minutes after a job has ended.
JOB = 'job_id=~"$job_id"'
DCGM_JOIN = ' * on (gpu_uuid) group_left (job_id) ' + metric("nibble_job_gpu_info", JOB)


def stat(title, description, unit, expression, steps=((None, GREEN),), width=4, legend="", **options):
    return Panel("stat", title, description, unit, [(expression, legend)], width, 4,
                 steps=list(steps), **options)


def lines(title, description, unit, *queries, width=8, **options):
    return Panel("timeseries", title, description, unit, list(queries), width, 8, **options)


def overview():
    live_job = 'job=~"$job", instance=~"$instance"'
    table = Panel(
        "table", "Live jobs",
        "Every job the server exports series for: who, where, how far, how well. A click on the job opens "
        "its own dashboard.", "none",
        [(metric("nibble_job_info"), ""),
         (f'100 * nibble_job_completed_steps{{{live_job}}} / (nibble_job_planned_steps{{{live_job}}} > 0)', ""),
         (metric("nibble_job_loss", 'split="train"'), ""),
         (f'sum by (job_id) ({rate("nibble_job_trained_tokens_total")})', ""),
         (f'{metric("nibble_job_estimated_end_timestamp_seconds")} * 1000', ""),
         (metric("nibble_job_state"), "")],
        width=24, height=9,
        transformations=[
            {"id": "joinByField", "options": {"byField": "job_id", "mode": "outer"}},
            {"id": "filterFieldsByName", "options": {"include": {"pattern":
                "^(job_id|display_name|base_model|worker|state|Value #[B-E])$"}}},
            {"id": "organize", "options": {"renameByName": {
                "Value #B": "Progress", "Value #C": "Loss", "Value #D": "Tokens/s", "Value #E": "Ends"}}}],
        overrides=[
            {"matcher": {"id": "byName", "options": "Progress"}, "properties": [
                {"id": "unit", "value": "percent"}, {"id": "max", "value": 100}, {"id": "min", "value": 0},
                {"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic"}}]},
            {"matcher": {"id": "byName", "options": "Ends"}, "properties": [
                {"id": "unit", "value": "dateTimeFromNow"}]},
            {"matcher": {"id": "byName", "options": "Loss"}, "properties": [
                {"id": "decimals", "value": 4}]},
            {"matcher": {"id": "byName", "options": "job_id"}, "properties": [
                {"id": "links", "value": [{"title": "Open the job", "targetBlank": False,
                 "url": "/d/nibble-job?var-job_id=${__value.raw}&${datasource:queryparam}"}]}]}])
    return dashboard(
        "nibble-overview", "Nibble / Overview",
        "The fleet at a glance: what runs, what waits, what ended and how.", [
            "Now",
            stat("Running", "Jobs that hold a device.", "short",
                 f'sum({metric("nibble_jobs", state("STARTING|RUNNING|PAUSING|CANCELLING"))})'),
            stat("Queued", "Jobs that wait for a device.", "short",
                 f'sum({metric("nibble_jobs", state("QUEUED"))})', ((None, GREEN), (50, YELLOW))),
            stat("Succeeded, 24 h", "Jobs that ended with an adapter in the last day.", "short",
                 f'sum(increase({metric("nibble_jobs_finished_total", outcome("SUCCEEDED"))}[1d]))',
                 decimals=0),
            stat("Failed, 24 h", "Jobs that failed in the last day.", "short",
                 f'sum(increase({metric("nibble_jobs_finished_total", outcome("FAILED"))}[1d])) or vector(0)',
                 ((None, GREEN), (1, YELLOW), (10, RED)), decimals=0),
            Panel("stat", "Workers", "Workers that train, and all that the server knows and has not lost.",
                  "short",
                  [(f'sum({metric("nibble_workers", state("BUSY"))})', "busy"),
                   (f'sum({metric("nibble_workers", state("IDLE|BUSY|DRAINING"))})', "all")], 4, 4,
                  steps=[(None, BLUE)]),
            stat("Tokens per second", "Tokens trained by all live jobs together.", "short",
                 f'sum({rate("nibble_job_trained_tokens_total")})', decimals=0),
            table,
            "Queue",
            lines("Jobs by state", "All jobs the server knows, by state; ended ones until they are deleted.",
                  "short", (f'sum by (state) ({metric("nibble_jobs")})', "{{state}}"), stack=True, min=0),
            lines("Queue wait", "Time from submission to the first start, for jobs started in the interval.",
                  "s", (quantile(0.5, "nibble_job_queue_wait_seconds", ()), "p50"),
                  (quantile(0.95, "nibble_job_queue_wait_seconds", ()), "p95"), min=0),
            lines("Oldest waiting job", "How long the job that waits longest has waited; no line when none "
                  "waits.", "s",
                  (f'time() - min({metric("nibble_queue_oldest_pending_timestamp_seconds")})', "oldest"),
                  min=0),
            "Ends",
            lines("Finished jobs", "Jobs that ended per interval, by outcome and reason.", "short",
                  (f'sum by (outcome, reason) (increase({metric("nibble_jobs_finished_total")}'
                   '[$__rate_interval]))', "{{outcome}} {{reason}}"), stack=True, min=0),
            Panel("heatmap", "Run time", "Distribution of run times of the jobs that ended.", "s",
                  [(f'sum by (le) (increase({metric("nibble_job_run_duration_seconds_bucket")}'
                    '[$__rate_interval]))', "{{le}}")], 8, 8),
            lines("Attempts", "Attempts started, by why: the first, a retry, a lost worker, a resume.",
                  "short", (f'sum by (reason) (increase({metric("nibble_job_attempts_total")}'
                            '[$__rate_interval]))', "{{reason}}"), stack=True, min=0),
        ])


def state(names):
    return f'state=~"{names}"'


def outcome(name):
    return f'outcome="{name}"'


def job():
    def one(name, *labels):
        return metric(name, JOB, *labels)

    fraction = f'{one("nibble_job_completed_steps")} / ({one("nibble_job_planned_steps")} > 0)'
    gpu = "Read from NVIDIA's DCGM exporter, joined by GPU UUID; empty for a job on a CPU."
    annotations = [
        annotation("State", BLUE, f'{one("nibble_job_state")} unless {one("nibble_job_state")} offset 1m',
                   "{{state}}")]
    return dashboard(
        "nibble-job", "Nibble / Job", "One live job: how far, how well, how much memory.", [
            "Progress",
            stat("State", "The state the job is in; nothing once its series have gone.", "none",
                 one("nibble_job_state"), legend="{{state}}", width=5),
            Panel("gauge", "Progress", "Optimizer steps done of those planned.", "percentunit",
                  [(fraction, "{{job_id}}")], 5, 4, min=0, max=1, steps=[(None, BLUE)]),
            stat("Ends", "When the job is expected to be done.", "dateTimeFromNow",
                 f'{one("nibble_job_estimated_end_timestamp_seconds")} * 1000', width=5),
            stat("Step", "Optimizer steps done.", "short", one("nibble_job_completed_steps"), width=4),
            stat("Since last progress", "Time since the last finished step.", "s",
                 f'time() - {one("nibble_job_last_progress_timestamp_seconds")}',
                 ((None, GREEN), (120, YELLOW), (900, RED)), width=5),
            "Learning",
            lines("Loss", "Mean loss per target token: of the last step, its five-minute mean, and of the "
                  "held-out rows.", "none",
                  (one("nibble_job_loss", 'split="train"'), "{{job_id}} train"),
                  (f'avg_over_time({one("nibble_job_loss", split("train"))}[5m])', "{{job_id}} train, 5 min"),
                  (one("nibble_job_loss", split("eval")), "{{job_id}} held out"), width=12, decimals=3),
            lines("Gradient norm", "Norm of the whole adapter's gradient before clipping.", "none",
                  (one("nibble_job_gradient_norm"), "{{job_id}}"), width=6, log=True),
            lines("Learning rate", "Of the last step, after warm-up and schedule.", "sci",
                  (one("nibble_job_learning_rate"), "{{job_id}}"), width=6, min=0),
            "Pace and memory",
            lines("Tokens per second", "Tokens trained, padding excluded.", "short",
                  (f'{rate("nibble_job_trained_tokens_total", JOB)}', "{{job_id}}"), min=0),
            lines("Step time", "Time of one optimizer step, from the rate of finished steps.", "s",
                  (f'1 / (deriv({one("nibble_job_completed_steps")}[$__rate_interval]) > 0)', "{{job_id}}"),
                  min=0),
            lines("Memory", "Bytes the job was admitted with, and bytes measured in use.", "bytes",
                  (one("nibble_job_memory_bytes"), "{{job_id}} {{kind}}"), min=0),
            "GPU",
            lines("GPU utilisation", "Share of time in which the device did anything. " + gpu, "percent",
                  ("avg by (job_id) (DCGM_FI_DEV_GPU_UTIL" + DCGM_JOIN + ")", "{{job_id}}"),
                  width=6, min=0, max=100),
            lines("Tensor cores active", "Share of cycles in which the tensor pipes were busy. " + gpu,
                  "percentunit", ("avg by (job_id) (DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" + DCGM_JOIN + ")",
                                  "{{job_id}}"), width=6, min=0, max=1),
            lines("GPU memory", "Device memory in use. " + gpu, "decmbytes",
                  ("sum by (job_id) (DCGM_FI_DEV_FB_USED" + DCGM_JOIN + ")", "{{job_id}}"), width=6, min=0),
            lines("GPU power", "Power drawn. " + gpu, "watt",
                  ("sum by (job_id) (DCGM_FI_DEV_POWER_USAGE" + DCGM_JOIN + ")", "{{job_id}}"),
                  width=6, min=0),
        ],
        variables=[query_variable(
            "job_id", "Job", 'label_values(nibble_job_info{job=~"$job", instance=~"$instance"}, job_id)')],
        annotations=annotations)


def split(name):
    return f'split="{name}"'


def workers():
    from_driver = "Read by workers from NVIDIA's management library; empty where there is none."
    return dashboard(
        "nibble-workers", "Nibble / Workers",
        "The machines: who is there, what their time goes into, what goes wrong on them.", [
            "Fleet",
            lines("Workers by state", "All workers the server knows.", "short",
                  (f'sum by (state, backend) ({metric("nibble_workers")})', "{{state}} {{backend}}"),
                  stack=True, min=0),
            lines("Since last heartbeat", "Time since each worker last renewed its lease.", "s",
                  (f'time() - {metric("nibble_worker_last_heartbeat_timestamp_seconds")}', "{{worker}}"),
                  min=0),
            lines("Leases lost", "Workers that did not renew in time; their jobs were queued again.", "short",
                  (f'increase({metric("nibble_worker_lease_expirations_total")}[$__rate_interval])',
                   "{{instance}}"), min=0),
            "Training",
            lines("Tokens by kind", "Tokens with a loss, and tokens that are only read.", "short",
                  (f'sum by (kind) ({rate("nibble_train_tokens_total")})', "{{kind}}"), stack=True, min=0),
            lines("Step time", "Time of one optimizer step over all jobs.", "s",
                  (quantile(0.5, "nibble_train_step_duration_seconds", ()), "p50"),
                  (quantile(0.95, "nibble_train_step_duration_seconds", ()), "p95"), min=0),
            lines("Where steps spend their time", "Share of the time of optimizer steps on CPUs, by kind of work.",
                  "percentunit",
                  (f'sum by (phase) ({rate("nibble_train_phase_seconds_total")}) / ignoring (phase) group_left () '
                   f'sum({rate("nibble_train_phase_seconds_total")})', "{{phase}}"), stack=True, min=0),
            lines("Steps", "Optimizer steps finished per second, all jobs of a worker together.", "ops",
                  (rate("nibble_train_steps_total"), "{{instance}}"), min=0),
            "Trouble",
            lines("Skipped steps", "Steps whose loss or gradient was not finite; they change nothing.",
                  "short", (f'sum by (reason) (increase({metric("nibble_train_steps_skipped_total")}'
                            '[$__rate_interval]))', "{{reason}}"), min=0),
            lines("Checkpoint time", "Time from asking for a checkpoint to its being durable.", "s",
                  (quantile(0.5, "nibble_checkpoint_duration_seconds", ()), "p50"),
                  (quantile(0.95, "nibble_checkpoint_duration_seconds", ()), "p95"), min=0),
            lines("Failed checkpoints", "Checkpoints that could not be written or uploaded.", "short",
                  (f'sum(increase({metric("nibble_checkpoint_failures_total")}[$__rate_interval]))',
                   "failed"), min=0),
            lines("Engines lost", "Engine processes that ended by themselves; their jobs were queued again.",
                  "short", (f'increase({metric("nibble_worker_engines_lost_total")}[$__rate_interval])',
                            "{{instance}}"), min=0),
            lines("Withdrawn devices, full disks", "Devices that take no work because they do not answer; "
                  "workers that take none because their disks are full.", "short",
                  (metric("nibble_worker_devices_withdrawn"), "{{instance}}: devices"),
                  (metric("nibble_worker_disk_full"), "{{worker}}: disk full"), min=0),
            lines("Refused reports", "Reports of workers that the server did not take.", "short",
                  (f'increase({metric("nibble_worker_reports_failed_total")}[$__rate_interval])',
                   "{{instance}}"), min=0),
            lines("Engines and attempts", "Engine processes running, and attempts workers hold.", "short",
                  (metric("nibble_worker_engines"), "{{instance}} engines"),
                  (metric("nibble_worker_attempts"), "{{instance}} attempts"), min=0),
            "Memory",
            lines("Device memory", "What devices offer, what is planned for their jobs with each base "
                  "counted once, and what is measured in use.", "bytes",
                  (metric("nibble_device_capacity_bytes"), "{{worker}} {{device}} offered"),
                  (metric("nibble_device_reserved_bytes"), "{{worker}} {{device}} planned"),
                  (metric("nibble_device_used_bytes"), "{{worker}} {{device}} used"), width=24, min=0),
            "GPUs",
            lines("GPU memory", "Memory of GPUs, and what is in use of it, by whomever. " + from_driver, "bytes",
                  (metric("nibble_worker_gpu_memory_total_bytes"), "{{instance}} {{device}} has"),
                  (metric("nibble_worker_gpu_memory_used_bytes"), "{{instance}} {{device}} used"), width=6,
                  min=0),
            lines("GPU utilisation", "Share of the time in which a GPU ran anything. " + from_driver,
                  "percentunit", (metric("nibble_worker_gpu_utilization_ratio"), "{{instance}} {{device}}"),
                  width=6, min=0, max=1),
            lines("GPU temperature", "Temperature. " + from_driver, "celsius",
                  (metric("nibble_worker_gpu_temperature_celsius"), "{{instance}} {{device}}"), width=6),
            lines("GPU power", "Power drawn. " + from_driver, "watt",
                  (metric("nibble_worker_gpu_power_watts"), "{{instance}} {{device}}"), width=6, min=0),
        ])


def server():
    handled = rate("grpc_server_handled_total")
    return dashboard(
        "nibble-server", "Nibble / Server",
        "The server process: its API, its database, its disks.", [
            "API",
            lines("Calls", "Finished calls per second, by method.", "reqps",
                  (f"sum by (grpc_method) ({handled})", "{{grpc_method}}"), min=0),
            lines("Errors", "Calls per second that ended otherwise than OK, by code.", "reqps",
                  ('sum by (grpc_code) (' + rate("grpc_server_handled_total", 'grpc_code!="OK"') + ')',
                   "{{grpc_code}}"), min=0),
            lines("Watchers and uploads", "Open watch streams, and uploads that are not finished.", "short",
                  (metric("nibble_watchers"), "watchers"), (metric("nibble_uploads"), "uploads"), min=0),
            lines("Call time, p50", "Median time of a call, by method.", "s",
                  (quantile(0.5, "grpc_server_handling_seconds", ("grpc_method",)), "{{grpc_method}}"),
                  width=12, min=0),
            lines("Call time, p99", "99th percentile of the time of a call, by method.", "s",
                  (quantile(0.99, "grpc_server_handling_seconds", ("grpc_method",)), "{{grpc_method}}"),
                  width=12, min=0),
            "Scheduler and database",
            lines("Scheduler cycle", "Time of one decision of the scheduler.", "s",
                  (quantile(0.5, "nibble_scheduler_cycle_duration_seconds", ()), "p50"),
                  (quantile(0.99, "nibble_scheduler_cycle_duration_seconds", ()), "p99"), min=0),
            lines("Database operations", "99th percentile by operation.", "s",
                  (quantile(0.99, "nibble_db_operation_duration_seconds", ("operation",)),
                   "{{operation}}"), min=0),
            lines("Database size", "The database file and its write-ahead log.", "bytes",
                  (metric("nibble_db_size_bytes"), "database"), (metric("nibble_db_wal_bytes"), "log"),
                  min=0),
            "Storage",
            lines("Free space", "Free bytes of each volume.", "bytes",
                  (metric("nibble_storage_free_bytes"), "{{volume}}"), min=0),
            lines("Blobs", "Bytes of finished blobs: uploads, checkpoints, adapters.", "bytes",
                  (metric("nibble_blob_bytes"), "{{instance}}"), min=0),
            lines("Blob operations", "95th percentile of the time of storing and reading blobs.", "s",
                  (quantile(0.95, "nibble_artifact_operation_duration_seconds", ("operation",)),
                   "{{operation}}"), min=0),
            lines("Blob failures", "Operations on blobs that failed.", "short",
                  (f'sum by (operation) (increase({metric("nibble_artifact_failures_total")}'
                   '[$__rate_interval]))', "{{operation}}"), min=0),
            "Process",
            lines("CPU", "Processor seconds per second.", "percentunit",
                  (rate("process_cpu_seconds_total"), "{{job}} {{instance}}"), width=6, min=0),
            lines("Memory", "Resident memory of the processes.", "bytes",
                  (metric("process_resident_memory_bytes"), "{{job}} {{instance}}"), width=6, min=0),
            lines("Open files", "File descriptors in use.", "short",
                  (metric("process_open_fds"), "{{job}} {{instance}}"), width=6, min=0),
            lines("Log lines", "Warnings and errors logged per second.", "short",
                  ('sum by (level) (' + rate("nibble_log_messages_total", 'level=~"warning|error"') + ')',
                   "{{level}}"), width=6, min=0),
            "Exposition",
            lines("Collection time", "Time the server took to collect its metrics.", "s",
                  (metric("nibble_metrics_collection_duration_seconds"), "{{instance}}"), width=12, min=0),
            lines("Dropped job series", "Live jobs left out of the metrics because there were too many.",
                  "short", (f'increase({metric("nibble_job_series_dropped_total")}[$__rate_interval])',
                            "{{instance}}"), width=12, min=0),
        ])


def all_dashboards():
    return [overview(), job(), workers(), server()]
