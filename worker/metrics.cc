#include "worker/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>
#include <sys/statvfs.h>

#include <exception>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "worker/nvml.h"

namespace nibble::worker {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily One(MetricType type, std::string name, std::string help, double value,
                 std::vector<ClientMetric::Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return MetricFamily{std::move(name), std::move(help), type, {std::move(metric)}};
}

MetricFamily Distribution(std::string name, std::string help, const DurationCounts& counts) {
  ClientMetric metric;
  uint64_t cumulative = 0;
  for (size_t i = 0; i <= DurationCounts::kBounds.size(); ++i) {
    cumulative += static_cast<uint64_t>(counts.bucket(i));
    const double bound = i < DurationCounts::kBounds.size()
                             ? DurationCounts::kBounds[i]
                             : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({cumulative, bound});
  }
  metric.histogram.sample_count = cumulative;
  metric.histogram.sample_sum = counts.sum_seconds();
  return MetricFamily{std::move(name), std::move(help), MetricType::Histogram, {std::move(metric)}};
}

void AddTraining(std::vector<MetricFamily>& families, const TrainCounts& train) {
  constexpr auto kCounter = MetricType::Counter;
  const auto value = [](const std::atomic<int64_t>& v) { return static_cast<double>(v.load()); };
  families.push_back(
      One(kCounter, "nibble_train_steps_total", "Optimizer steps.", value(train.steps)));
  families.push_back(One(kCounter, "nibble_train_steps_fused_total",
                         "Optimizer steps done in one turn with those of other jobs on the same base.",
                         value(train.fused_steps)));
  families.push_back(One(kCounter, "nibble_train_steps_skipped_total",
                         "Optimizer steps whose update was left out.", value(train.nonfinite_steps),
                         {{"reason", "nonfinite"}}));
  MetricFamily tokens = One(kCounter, "nibble_train_tokens_total", "Tokens processed.",
                            value(train.target_tokens), {{"kind", "target"}});
  tokens.metric.push_back(
      One(kCounter, "", "", value(train.context_tokens), {{"kind", "context"}}).metric[0]);
  families.push_back(std::move(tokens));
  MetricFamily phases{"nibble_train_phase_seconds_total",
                      "Time of optimizer steps on CPUs, by what it went into.", kCounter, {}};
  for (size_t i = 0; i < train.phase_us.size(); ++i) {
    phases.metric.push_back(One(kCounter, "", "", value(train.phase_us[i]) / 1e6,
                                {{"phase", std::string(spec::kStepPhaseNames[i])}})
                                .metric[0]);
  }
  families.push_back(std::move(phases));
  families.push_back(Distribution("nibble_train_step_duration_seconds",
                                  "Time of an optimizer step.", train.step_time));
  families.push_back(Distribution("nibble_checkpoint_duration_seconds",
                                  "Time from a checkpoint's start to its report.",
                                  train.checkpoint_time));
  families.push_back(One(
      kCounter, "nibble_checkpoint_failures_total",
      "Times that a checkpoint or adapter could not be written or uploaded; each is tried again.",
      value(train.checkpoint_failures)));
}

// Below this a checkpoint or a quantized base may find no room.
constexpr double kReservedBytes = 1 << 30;

void AddVolume(std::vector<MetricFamily>& families, const std::string& work_dir) {
  struct statvfs info;
  if (statvfs(work_dir.c_str(), &info) != 0) return;
  const double unit = static_cast<double>(info.f_frsize);
  const auto add = [&](const char* name, const char* help, double value) {
    families.push_back(One(MetricType::Gauge, name, help, value, {{"volume", "worker"}}));
  };
  add("nibble_storage_size_bytes", "Size of the volume.",
      static_cast<double>(info.f_blocks) * unit);
  add("nibble_storage_free_bytes", "Free bytes of the volume.",
      static_cast<double>(info.f_bavail) * unit);
  add("nibble_storage_reserved_bytes", "With less free than this a checkpoint may find no room.",
      kReservedBytes);
}

// What the driver does not say has no series.
void AddGpu(std::vector<MetricFamily>& families, const DeviceInfo& device, const GpuReading& reading) {
  const auto add = [&](const char* name, const char* help, std::optional<double> value) {
    if (!value) return;
    families.push_back(One(MetricType::Gauge, name, help, *value,
                           {{"device", device.id}, {"gpu_uuid", device.uuid}}));
  };
  const auto bytes = [](std::optional<int64_t> value) -> std::optional<double> {
    return value ? std::optional(static_cast<double>(*value)) : std::nullopt;
  };
  add("nibble_worker_gpu_memory_used_bytes", "Memory in use on the GPU, by whomever.",
      bytes(reading.memory_used_bytes));
  add("nibble_worker_gpu_memory_total_bytes", "Memory the GPU has.", bytes(reading.memory_total_bytes));
  add("nibble_worker_gpu_utilization_ratio", "Share of the time in which the GPU ran anything, 0 to 1.",
      reading.utilization);
  add("nibble_worker_gpu_temperature_celsius", "Temperature of the GPU.", reading.temperature_celsius);
  add("nibble_worker_gpu_power_watts", "Power the GPU draws.", reading.power_watts);
}

// Reads the loop's counts at every scrape: nothing to keep in step.
class Counts : public prometheus::Collectable {
 public:
  Counts(const WorkerIdentity& identity, std::string work_dir, const LoopCounts& counts)
      : identity_(identity), work_dir_(std::move(work_dir)), counts_(counts) {}
  std::vector<MetricFamily> Collect() const override {
    constexpr auto kGauge = MetricType::Gauge;
    constexpr auto kCounter = MetricType::Counter;
    const auto value = [](const std::atomic<int64_t>& v) { return static_cast<double>(v.load()); };
    std::vector<MetricFamily> families = {
        One(kGauge, "nibble_build_info", "1, labelled with what runs here.", 1,
            {{"component", "worker"}, {"version", identity_.version}}),
        One(kGauge, "nibble_worker_registered", "1 while the server knows this process.",
            counts_.registered ? 1 : 0),
        One(kGauge, "nibble_worker_attempts", "Attempts this worker holds.",
            value(counts_.attempts)),
        One(kGauge, "nibble_worker_engines", "Engine processes running.", value(counts_.engines)),
        One(kCounter, "nibble_worker_engines_started_total", "Engine processes started.",
            value(counts_.engines_started)),
        One(kCounter, "nibble_worker_engines_lost_total",
            "Engine processes that ended by themselves.", value(counts_.engines_lost)),
        One(kGauge, "nibble_worker_devices_withdrawn",
            "Devices that take no work because they do not answer.", value(counts_.withdrawn_devices)),
        One(kCounter, "nibble_worker_reports_total", "Reports sent to the server.",
            value(counts_.reports)),
        One(kCounter, "nibble_worker_reports_failed_total", "Reports the server did not take.",
            value(counts_.reports_failed)),
    };
    AddTraining(families, counts_.train);
    AddVolume(families, work_dir_);
    for (const DeviceInfo& device : identity_.devices) {
      families.push_back(
          One(kGauge, "nibble_worker_device_capacity_bytes", "Memory this worker offers.",
              static_cast<double>(device.profile.capacity_bytes), {{"device", device.id}}));
      if (device.profile.pinned_capacity_bytes > 0) {
        families.push_back(One(kGauge, "nibble_worker_device_pinned_capacity_bytes",
                               "Page-locked memory of the host this worker offers a GPU's jobs.",
                               static_cast<double>(device.profile.pinned_capacity_bytes),
                               {{"device", device.id}}));
      }
      if (!device.uuid.empty()) AddGpu(families, device, nvml_.Read(device.uuid));
    }
    return families;
  }

 private:
  const WorkerIdentity identity_;
  const std::string work_dir_;
  const LoopCounts& counts_;
  mutable Nvml nvml_;
};

class Server : public MetricsServer {
 public:
  Server(const std::string& address, const WorkerIdentity& identity, const std::string& work_dir,
         const LoopCounts& counts)
      : counts_(std::make_shared<Counts>(identity, work_dir, counts)), exposer_(address, 1) {
    exposer_.RegisterCollectable(counts_);
  }

 private:
  std::shared_ptr<Counts> counts_;
  prometheus::Exposer exposer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> ServeMetrics(const std::string& address,
                                                            const WorkerIdentity& identity,
                                                            const std::string& work_dir,
                                                            const LoopCounts& counts) {
  if (address.empty()) return std::unique_ptr<MetricsServer>();
  try {
    return std::unique_ptr<MetricsServer>(
        std::make_unique<Server>(address, identity, work_dir, counts));
  } catch (const std::exception& e) {
    return Error::Field(Reason::kSpecInvalid, "--http",
                        absl::StrCat("is ", address, ", where this process cannot listen (", e.what(),
                                     "); choose another port, or 0 for a free one"))
        .ToStatus();
  }
}

}  // namespace nibble::worker
