// The nouns of the server: jobs, attempts, workers, and what they refer to. Plain values.
//
// Times named *_unix_us are wall clock, for people. Times named *_us without "unix" are of the
// monotonic clock, decide things, and are never stored: a restart sets them anew (ServerStarted).
// Bytes and times are integers. Fields marked "volatile" are not stored either.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/spec/memory_plan.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::core {

// Made at the edge and carried by every command.
struct Now {
  int64_t monotonic_us = 0;
  int64_t unix_us = 0;
  bool operator==(const Now&) const = default;
};

// Values are those of the proto and of the store; append-only.
enum class JobState {
  kUnspecified = 0,
  kQueued = 1,
  kStarting = 2,
  kRunning = 3,
  kPausing = 4,
  kPaused = 5,
  kCancelling = 6,
  kSucceeded = 7,
  kFailed = 8,
  kCancelled = 9,
};
inline constexpr size_t kJobStateCount = 10;
std::string_view JobStateName(JobState state);     // "QUEUED"
JobState JobStateFromName(std::string_view name);  // kUnspecified when unknown
inline bool IsTerminal(JobState s) {
  return s == JobState::kSucceeded || s == JobState::kFailed || s == JobState::kCancelled;
}

enum class AttemptState {
  kUnspecified = 0,
  kActive = 1,
  kDone = 2,
  kFailed = 3,
  kLost = 4,
  kCancelled = 5,
  kReleased = 6,
};
std::string_view AttemptStateName(AttemptState state);
AttemptState AttemptStateFromName(std::string_view name);

// TRAIN is what users create. CHECK reads the data with the tokenizer and reports counts; it is a
// job of its own (so it has attempts, fences and retries), hidden from users' lists.
enum class JobKind { kTrain = 1, kCheck = 2 };
std::string_view JobKindName(JobKind kind);

// What the worker should do about an attempt. RELEASE: checkpoint, report it, let go. STOP: let go.
enum class Want { kRun = 1, kPause = 2, kRelease = 3, kStop = 4 };

// Numbered as AttemptPhase of worker.proto.
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
std::string_view PhaseName(Phase phase);

// A file by name and content.
struct FileRef {
  std::string name;
  std::string sha256;
  int64_t size_bytes = 0;
  bool operator==(const FileRef&) const = default;
};

// A memory plan without its buffers. A vector: what the device gives, and beside it (host_apart) what the
// host does, page-locked and other.
struct PlanBytes {
  int64_t base_bytes = 0;
  int64_t persistent_bytes = 0;
  int64_t step_bytes = 0;
  int64_t fixed_bytes = 0;
  int64_t host_bytes = 0;
  int64_t pinned_bytes = 0;  // only with host_apart
  bool host_apart = false;   // host_bytes are not of the device's memory
  int64_t lower_bound_bytes = 0;
  std::string peak_phase;
  std::array<int64_t, spec::kCategoryCount> category_bytes{};
  std::string profile;  // ProfileKey of the device it was compiled for
  spec::PlanChoices choices;

  // Of what the device offers.
  int64_t TotalBytes() const {
    return fixed_bytes + base_bytes + persistent_bytes + step_bytes + (host_apart ? 0 : host_bytes);
  }
  bool operator==(const PlanBytes&) const = default;
};

struct Attempt {
  std::string job_id;
  int64_t epoch = 0;  // from 1, strictly increasing per job, never reused
  std::string worker_id;
  std::string incarnation;
  std::string device_id;
  AttemptState state = AttemptState::kActive;
  std::string reason;  // of base/error.h, or a word: "paused", "drained"
  std::string message;
  PlanBytes plan;     // what was admitted
  std::string group;  // GroupKey: the frozen base it shares
  bool run_alone = false;
  int64_t resume_epoch = 0;  // the checkpoint it starts from; 0 = from the beginning
  int64_t resume_step = 0;
  int64_t continues_epoch = 0;     // the lost attempt, as its worker knew it, whose memory it may go on in
  bool started = false;            // its first optimizer step was reported
  bool release_requested = false;  // drain or preemption: want RELEASE
  std::string release_reason;
  bool holds_bytes = true;  // until its worker no longer lists it
  int64_t start_unix_us = 0;
  int64_t end_unix_us = 0;

  int64_t start_us = 0;               // volatile; 0 after a restart
  int64_t assign_revision = 0;        // volatile; of the worker's desired set that first had it
  int64_t seen_us = 0;                // volatile; of the last head of its metrics that moved
  int64_t seen_step = 0;              // volatile
  Phase phase = Phase::kUnspecified;  // volatile; as the worker last said
  std::string trouble;                // volatile; likewise: what does not go through; "" = nothing
  bool operator==(const Attempt&) const = default;
};

struct Checkpoint {
  int64_t epoch = 0;
  int64_t step = 0;
  std::vector<FileRef> files;
  std::string manifest_sha256;
  int64_t size_bytes = 0;
  double loss = 0;
  int64_t create_unix_us = 0;
  bool operator==(const Checkpoint&) const = default;
};

// The head of a job's metrics. Volatile: stored only along with other changes of the job.
struct Progress {
  int64_t step = 0;
  int64_t planned_steps = 0;  // 0 until the data has been read
  double epoch = 0;           // of the data
  int64_t trained_tokens = 0;
  int64_t step_time_us = 0;  // of the last step
  double tokens_per_second = 0;
  std::optional<double> loss;
  std::optional<double> eval_loss;
  std::optional<double> gradient_norm;
  std::optional<double> learning_rate;
  int64_t used_bytes = 0;  // high water
  bool operator==(const Progress&) const = default;
};

// What a step was seen to take.
struct Learned {
  int64_t step_us = 0;     // of an optimizer step, alone on a device; 0 = nothing was seen
  int32_t load_milli = 0;  // share of the device's time it keeps busy then, in thousandths
  int32_t jobs = 0;        // it is the mean of so many, the last four for the most part
  int64_t speed_mflops = 0;  // SpeedOf the device; 0 = not known
  bool operator==(const Learned&) const = default;
};

struct Job {
  std::string id;
  std::string uid;
  std::string tenant;
  JobKind kind = JobKind::kTrain;
  int64_t number = 0;  // order of creation
  std::string display_name;
  std::map<std::string, std::string> labels;
  int32_t priority = 0;
  JobState state = JobState::kQueued;
  std::string user_spec;  // as given, serialized by the edge; opaque here
  spec::TrainSpec spec;   // effective
  // How much is recomputed was left to the server: spec says what costs the job no place, and an attempt that
  // has a device to itself may do with less (Planner::PlanAlone).
  bool recompute_left = false;
  std::string model_id;
  std::string dataset_id;
  std::string eval_dataset_id;  // "" = split
  std::string check_key;        // of the CHECK result this job's data has
  std::string request_id;
  std::string body_sha256;

  int64_t epoch = 0;                    // of the latest attempt
  std::map<int64_t, Attempt> attempts;  // by epoch
  std::vector<Checkpoint> checkpoints;  // newest last
  int32_t infra_retries = 0;
  int32_t faults = 0;  // engine deaths during its own turn
  std::set<std::string> poisoned_workers;
  bool run_alone = false;
  bool resume_requested = false;  // while PAUSING: go back to QUEUED once released
  std::string numerics_id;        // fixed by the first attempt's plan report
  std::string numerics_class;     // NumericsClass of that device
  PlanBytes plan;                 // of the latest attempt; zero before
  std::string report_json;        // data report: of CHECK or of the engine's plan
  std::string adapter_id;
  std::string stop_reason;
  std::string error_reason;  // of base/error.h, when FAILED
  std::string error_message;
  int64_t last_sequence = 0;  // of its events
  Progress progress;

  int64_t create_unix_us = 0;
  int64_t queued_unix_us = 0;  // it waits since, but for the time it ran
  int64_t waited_us = 0;       // before it was last placed
  int64_t start_unix_us = 0;
  int64_t end_unix_us = 0;
  int64_t update_unix_us = 0;

  std::string plan_key;            // volatile; what its plans are remembered under
  int64_t queued_us = 0;           // volatile; age in the queue
  int64_t not_before_us = 0;       // volatile; backoff
  int64_t cancel_deadline_us = 0;  // volatile; CANCELLING becomes CANCELLED
  Learned measured;                // volatile; of its own steps

  // The attempt that may write, or nullptr.
  const Attempt* Current() const {
    const auto it = attempts.find(epoch);
    return it != attempts.end() && it->second.state == AttemptState::kActive ? &it->second
                                                                             : nullptr;
  }
  bool operator==(const Job&) const = default;
};

struct Device {
  std::string id;  // "cpu0"
  std::string backend;
  std::string body;
  std::string description;
  std::string uuid;  // of a GPU
  int64_t capacity_bytes = 0;
  spec::DeviceProfile profile;
  std::string profile_json;  // as the engine reported it
  std::string fault;         // why its worker has withdrawn it: no work is placed on it; "" = it is well

  int64_t used_bytes = 0;                // volatile; measured
  std::set<std::string> resident_bases;  // volatile; digests
  bool operator==(const Device&) const = default;
};

// What an attempt with that plan trains by: the job's spec, and what was chosen for the device.
inline spec::TrainSpec SpecWith(const Job& job, const PlanBytes& plan) {
  spec::TrainSpec spec = job.spec;
  if (!job.recompute_left || plan.choices.recompute == spec::Recompute::kAuto) return spec;
  spec::Recomputation{plan.choices.recompute, plan.choices.keep_blocks}.SetIn(spec);
  return spec;
}

enum class WorkerHealth { kAlive, kSuspect, kLost };

struct Worker {
  std::string id;
  std::string incarnation;
  std::vector<std::string> past_incarnations;  // newest last
  std::string version;
  std::map<std::string, Device> devices;
  bool shares_file_system = false;
  bool draining = false;  // asked for by an operator
  bool lost = false;      // its lease ran out and it has not come back
  int64_t lost_unix_us = 0;  // since then; 0 = it is not
  std::string no_room;    // its disk is full, in words: no new work; "" = there is room
  int64_t register_unix_us = 0;

  bool self_draining = false;  // volatile; the worker wants to go
  bool heard = false;          // volatile; it has called since the server started
  int64_t renewed_us = 0;      // volatile; when its lease was last renewed
  int64_t last_seen_unix_us = 0;    // stored along with other changes: a renewal alone is no reason to write
  int64_t stored_seen_unix_us = 0;  // volatile; what of that is in its row, or will be by the next commit
  int64_t revision = 0;        // volatile; of its desired set; generation << 32 at least
  int64_t known_revision = 0;  // volatile; the newest it said it has
  bool operator==(const Worker&) const = default;
};

struct Dataset {
  std::string id;
  std::string tenant;
  std::string display_name;
  std::string sha256;
  int64_t size_bytes = 0;
  int64_t rows = 0;
  std::string format;
  std::string path;  // when it lies under the model root; else a blob
  int64_t create_unix_us = 0;
  std::vector<std::string> formats;  // that all rows have the keys of; empty = nobody has looked
  bool operator==(const Dataset&) const = default;
};

struct Model {
  std::string id;
  std::string tenant;
  std::string display_name;
  std::vector<FileRef> files;
  std::string root_path;  // when registered by path
  std::string digest;     // over the manifest; a base's identity
  std::string tokenizer_digest;
  std::string config_json;
  spec::ModelConfig config;  // config_json, parsed
  int64_t create_unix_us = 0;
  bool operator==(const Model&) const = default;
};

struct Adapter {
  std::string id;  // the job's id
  std::string tenant;
  std::string job_id;
  std::string model_id;
  std::string base_digest;
  std::vector<FileRef> files;
  int64_t step = 0;
  int64_t create_unix_us = 0;
  bool operator==(const Adapter&) const = default;
};

// Bytes that are durable under their digest. `pin_until_us` is volatile and renewed at start.
struct Blob {
  std::string sha256;
  int64_t size_bytes = 0;
  int64_t pin_until_us = 0;
  std::set<std::string> projects;  // that have sent them, so that naming the digest is enough from then on
  bool operator==(const Blob&) const = default;
};

// What a create with this request_id made.
struct RequestRecord {
  std::string tenant;
  std::string request_id;
  std::string job_id;
  std::string body_sha256;
  int64_t create_unix_us = 0;
  bool operator==(const RequestRecord&) const = default;
};

// Who writes, for which attempt. See Decide: every report carries one.
struct Fence {
  std::string job_id;
  int64_t epoch = 0;
  std::string worker_id;
  std::string incarnation;
  std::string token;
};

// Its linear layers' millions of operations a second, to the nearest of steps a fifth apart, so that the same
// hardware measured twice is one speed; 0 = not known.
int64_t SpeedOf(const spec::DeviceProfile& profile);
// Devices with equal keys share compiled plans.
std::string ProfileKey(const spec::DeviceProfile& profile);
// Devices with equal classes give bit-equal results.
std::string NumericsClass(const spec::DeviceProfile& profile);
// Key of a CHECK result: everything token and step counts depend on.
std::string CheckKey(const Dataset& dataset, const Dataset* eval_dataset, const Model& model,
                     const spec::TrainSpec& spec);
// Key of a job's plans: the base and all fields of the spec a plan could depend on.
std::string PlanKey(const Model& model, const spec::TrainSpec& spec);
// What a frozen base is shared by: its digest, quantization and double quantization.
std::string GroupKey(const Model& model, const spec::TrainSpec& spec);
// "1.50 GiB"; exact bytes stand beside it where it matters.
std::string HumanBytes(int64_t bytes);

}  // namespace nibble::core
