// The nouns of a worker's agent. Plain values; numbers as in worker.proto.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "engine/spec/step_phases.h"
#include "engine/spec/train_spec.h"

namespace nibble::worker {

struct AttemptKey {
  std::string job_id;
  int64_t epoch = 0;
  auto operator<=>(const AttemptKey&) const = default;
  std::string ToString() const { return job_id + "/" + std::to_string(epoch); }
};

struct FileRef {
  std::string name;
  std::string sha256;
  int64_t size_bytes = 0;
  bool operator==(const FileRef&) const = default;
};

enum class Kind { kTrain = 1, kCheck = 2 };
// RELEASE: checkpoint, report it, let go. STOP: let go without.
enum class Want { kRun = 1, kPause = 2, kRelease = 3, kStop = 4 };
enum class Phase {
  kUnspecified = 0,
  kFetching = 1,
  kLoadingBase = 2,
  kTokenizing = 3,
  kTraining = 4,
  kEvaluating = 5,
  kCheckpointing = 6,
  kUploading = 7,
  kPausedDisk = 8,
  kReleased = 9,
};

// As the server sent it.
struct Assignment {
  AttemptKey key;
  std::string token;
  std::string device_id;
  Kind kind = Kind::kTrain;
  Want want = Want::kRun;
  spec::TrainSpec spec;  // parsed by the edge
  std::string spec_json;
  std::string base_digest;
  std::vector<FileRef> base_files;
  std::string base_path;
  std::optional<FileRef> dataset;
  std::string dataset_path;
  std::optional<FileRef> eval_dataset;
  std::string eval_dataset_path;
  std::vector<FileRef> checkpoint_files;
  int64_t checkpoint_step = 0;
  int64_t planned_persistent_bytes = 0;
  int64_t planned_step_bytes = 0;
  int64_t planned_base_bytes = 0;
  std::string numerics_id;
  bool run_alone = false;
  std::string display_name;
  int32_t priority = 0;  // the share of turns beside its neighbours
  std::string base_display_name;
  int64_t continues_epoch = 0;  // that attempt, if intact here, goes on as this one
};

// Where fetched things lie on this machine.
struct LocalFiles {
  std::string model_dir;
  std::string dataset_path;
  std::string eval_dataset_path;  // "" = none
  std::string resume_dir;         // "" = from the start
};

// What an engine process is for: jobs with the same group share it.
struct EngineGroup {
  std::string device_id;
  std::string base_digest;
  spec::QuantKind quant = spec::QuantKind::kNF4;
  bool double_quant = true;
  auto operator<=>(const EngineGroup&) const = default;
};

struct StepMetric {
  int64_t step = 0;
  double loss = 0;
  double gradient_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  int64_t step_time_us = 0;
  int64_t time_us = 0;
  std::optional<double> eval_loss;
  int64_t used_bytes = 0;
  double epoch_fraction = 0;
  spec::StepPhaseTimes phase_us{};
  int64_t jobs = 1;  // that did a step in the same turn
};

// ---- What is told to the server about an attempt
// --------------------------------------------------

struct PlanReport {
  int64_t planned_steps = 0;
  std::string plan_json;
  std::string numerics_id;
};
struct CheckpointReport {
  int64_t step = 0;
  std::vector<FileRef> files;  // uploaded before
  std::string manifest_sha256;
  double loss = 0;
};
struct FinishedReport {
  std::vector<FileRef> files;
  int64_t step = 0;
  std::string stop_reason;
};
struct FailedReport {
  std::string reason;  // of base/error.h
  std::string message;
  bool infrastructure = false;
  bool neighbour_fault = false;
  bool all_checkpoints = false;  // of a CHECKPOINT_INVALID: no other of the job would do
};
struct CheckReport {
  std::string report_json;
  int64_t planned_steps = 0;
};
struct ReleasedReport {
  int64_t step = 0;
};
// monostate: metrics only.
using ReportBody = std::variant<std::monostate, PlanReport, CheckpointReport, FinishedReport,
                                FailedReport, CheckReport, ReleasedReport>;

struct Report {
  int64_t id = 0;
  AttemptKey key;
  std::string token;
  std::vector<StepMetric> metrics;
  ReportBody body;
};

struct RunningAttempt {
  AttemptKey key;
  std::string device_id;
  Phase phase = Phase::kUnspecified;
  int64_t step = 0;
  int64_t used_bytes = 0;
  bool intact = false;  // what it trained is here and could go on
  std::string trouble;  // what does not go through and keeps it, in words; "" = nothing
};
struct DeviceStatus {
  std::string device_id;
  int64_t used_bytes = 0;
  std::set<std::string> resident_bases;
  std::string fault;  // why it is withdrawn; "" = it is well
};
struct SynchronizeRequest {
  int64_t id = 0;  // local; comes back with the answer
  int64_t known_revision = 0;
  std::vector<RunningAttempt> attempts;
  std::vector<DeviceStatus> devices;
  bool draining = false;
  std::string no_room;  // the disk is full, in words: no new work; "" = there is room
};

}  // namespace nibble::worker
