#include "server/meter.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "base/file.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/control_loop.h"
#include "server/meter_families.h"
#include "server/meter_state.h"

namespace nibble::server {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;

constexpr auto kScrapeTimeout = std::chrono::seconds(2);
// Between two looks for jobs that have lingered, where nobody scrapes.
constexpr int64_t kSweepUs = int64_t{60} * 1'000'000;

const Histogram::BucketBoundaries kCallBuckets = {0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60};
const Histogram::BucketBoundaries kFastBuckets = {0.0001, 0.0005, 0.0025, 0.01, 0.05, 0.25, 1, 5};
const Histogram::BucketBoundaries kWaitBuckets = {1, 3, 10, 30, 100, 300, 1000, 3600, 14'400, 43'200, 86'400};
const Histogram::BucketBoundaries kRunBuckets = {10,   30,     100,    300,    1000,
                                                 3600, 14'400, 43'200, 86'400, 259'200};

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
    submitted.Add({{"queue", kMeterQueue}, {"api", "grpc"}});
    for (const char* outcome : {"SUCCEEDED", "CANCELLED"}) {
      finished.Add({{"queue", kMeterQueue}, {"outcome", outcome}, {"reason", ""}});
    }
    for (const char* reason : {"first", "worker_lost", "preempted", "resumed", "retry"}) {
      attempts.Add({{"reason", reason}});
    }
    for (const char* result : {"good", "bad"}) datasets.Add({{"result", result}});
    for (const char* operation : {"append", "begin", "finish", "read"}) {
      artifact_failures.Add({{"operation", operation}, {"store", "fs"}});
      artifact_time.Add({{"operation", operation}, {"store", "fs"}}, kFastBuckets);
    }
    queue_wait.Add({{"queue", kMeterQueue}}, kWaitBuckets);
    placement.Add({}, kFastBuckets);
    last_dispatch_unix_us = clock->NowUnixUs();
  }

  void CollectJobs(Families& families, const ControlLoop::Outcome& outcome);
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
    submitted.Add({{"queue", kMeterQueue}, {"api", "grpc"}}).Increment();
  } else if (record.type == "attempt.assigned") {
    attempts.Add({{"reason", AttemptReason(*job)}}).Increment();
    last_dispatch_unix_us = record.unix_us;
    if (job->epoch == 1) {
      queue_wait.Add({{"queue", kMeterQueue}}, kWaitBuckets)
          .Observe(Seconds(record.unix_us - job->create_unix_us));
    }
  } else if (record.type == "job.succeeded" || record.type == "job.failed" ||
             record.type == "job.cancelled") {
    const std::string outcome(core::JobStateName(record.state));
    finished.Add({{"queue", kMeterQueue}, {"outcome", outcome}, {"reason", job->error_reason}}).Increment();
    if (job->start_unix_us > 0) {
      run_duration.Add({{"queue", kMeterQueue}, {"outcome", outcome}}, kRunBuckets)
          .Observe(Seconds(record.unix_us - job->start_unix_us));
    }
    ended_us[job->id] = clock->NowMonotonicUs();
  }
}

void Meter::OnCommit(const std::vector<core::EventRecord>& records, const core::State& state) {
  std::lock_guard lock(impl_->mutex);
  for (const core::EventRecord& record : records) impl_->OnRecord(record, state);
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
  std::map<int64_t, const core::Job*> live;  // oldest first
  for (const std::string& id : outcome.state.live_jobs) {
    const core::Job* job = outcome.state.FindJob(id);
    if (job && job->kind == core::JobKind::kTrain) live[job->number] = job;
  }
  // What has ended takes no live job's place; the last to end first.
  std::map<std::pair<int64_t, int64_t>, const core::Job*, std::greater<>> ended;
  for (const auto& [id, end_us] : ended_us) {
    const core::Job* job = outcome.state.FindJob(id);
    if (core::IsTerminal(job->state)) ended[{end_us, job->number}] = job;  // else another with its id
  }
  int32_t places = options.max_job_series;
  const auto show = [&](const core::Job& job) {
    const auto progress = last_progress_unix_us.find(job.id);
    AddJob(families, job, outcome, progress == last_progress_unix_us.end() ? 0 : progress->second);
    --places;
  };
  std::set<std::string> without;
  for (const auto& [number, job] : live) {
    if (places > 0) {
      show(*job);
    } else {
      without.insert(job->id);
      if (!dropped.contains(job->id)) series_dropped.Add({}).Increment();
    }
  }
  for (const auto& [end, job] : ended) {
    if (places <= 0) break;
    show(*job);
  }
  dropped = std::move(without);
}

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
    AddQueue(families, outcome);
    {
      std::lock_guard lock(impl->mutex);
      impl->CollectJobs(families, outcome);
    }
    AddWorkers(families, outcome);
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
  AddServer(families, sources);
  std::vector<prometheus::MetricFamily> server = families.Take();
  std::move(server.begin(), server.end(), std::back_inserter(all));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, all);
  std::lock_guard lock(impl_->mutex);
  impl_->collection_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out.str();
}

}  // namespace nibble::server
