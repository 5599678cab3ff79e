// Drives server/core as the control loop does, and plays its workers: one per device.
#include <chrono>
#include <cmath>
#include <map>
#include <queue>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "server/core/apply.h"
#include "server/core/decide.h"
#include "tests/fleet/policy.h"

namespace nibble::fleet {
namespace {

constexpr const char* kDevice = "gpu0";
constexpr double kMflopPerS = 1e8;  // of a device of speed 1
const std::string& Sha() {
  static const auto* sha = new std::string(64, 'a');
  return *sha;
}

// Knobs a scenario may turn; each is a member of CoreOptions of the same name.
struct Knob {
  const char* name;
  void (*set)(core::CoreOptions&, int64_t);
};
#define NIBBLE_KNOB(member)                                                                       \
  Knob {                                                                                          \
#member, [](core::CoreOptions & options,                                                      \
                int64_t value) { options.member = static_cast<decltype(options.member)>(value); } \
  }
constexpr Knob kKnobs[] = {
    NIBBLE_KNOB(max_bases_per_device), NIBBLE_KNOB(max_attempts_per_device),
    NIBBLE_KNOB(aging_milli),          NIBBLE_KNOB(wait_factor),
    NIBBLE_KNOB(wait_floor_us),        NIBBLE_KNOB(share_window_us),
    NIBBLE_KNOB(max_load_milli),       NIBBLE_KNOB(default_load_milli),
    NIBBLE_KNOB(overload_weight),      NIBBLE_KNOB(fragment_weight),
    NIBBLE_KNOB(cold_base_weight),     NIBBLE_KNOB(slow_weight),
    NIBBLE_KNOB(rest_milli),           NIBBLE_KNOB(max_reservations),
    NIBBLE_KNOB(max_passed_over),      NIBBLE_KNOB(min_run_us),
    NIBBLE_KNOB(preempt_work_ratio),   NIBBLE_KNOB(preempt_priority_delta),
    NIBBLE_KNOB(brief_work_us),        NIBBLE_KNOB(brief_milli),
    NIBBLE_KNOB(preempt_for_share),    NIBBLE_KNOB(preempt_patience_us),
};
#undef NIBBLE_KNOB

// The real plan compiler, asked once per recipe in the life of the process: runs begin with an
// empty planner, and many runs are short.
core::SpecFunctions RememberingFunctions(const Scenario& scenario) {
  core::SpecFunctions functions = core::RealSpecFunctions();
  functions.plan = [compile = functions.plan, &scenario](
                       const spec::ModelConfig& model, const spec::TrainSpec& train,
                       const spec::DeviceProfile& profile) -> absl::StatusOr<spec::MemoryPlan> {
    for (const Recipe& recipe : scenario.recipes) {
      if (recipe.stated_bytes == 0) break;  // none is, or all are
      if (!(recipe.model == model)) continue;
      spec::MemoryPlan stated;
      stated.device = true;
      stated.persistent_bytes = stated.lower_bound_bytes = recipe.stated_bytes;
      return stated;
    }
    struct Known {
      spec::ModelConfig model;
      spec::TrainSpec train;
      std::string profile;
      absl::StatusOr<spec::MemoryPlan> plan;
    };
    static auto* known = new std::vector<Known>;
    const std::string key = core::ProfileKey(profile);
    for (const Known& k : *known) {
      if (k.profile == key && k.model == model && k.train == train) return k.plan;
    }
    known->push_back({model, train, key, compile(model, train, profile)});
    if (known->back().plan.ok()) known->back().plan->buffers.clear();  // nobody here reads them
    return known->back().plan;
  };
  return functions;
}

class NibblePolicy : public Policy {
 public:
  NibblePolicy(Floor* floor, bool apart)
      : floor_(*floor),
        apart_(apart),
        core_{OptionsOf(floor->scenario()), core::Planner(RememberingFunctions(floor->scenario()))} {
    Must(core::ServerStart{"simulated"});
    Must(core::RecordBlob{Sha(), 1});
    for (const Recipe& recipe : floor_.scenario().recipes) RegisterModel(recipe, recipe.name);
    for (int32_t d = 0; d < floor_.devices(); ++d) RegisterWorker(d);
    names_.resize(floor_.workload().jobs.size());
    attempts_.resize(floor_.workload().jobs.size());
    for (size_t i = 0; i < names_.size(); ++i) names_[i] = absl::StrCat("j", i);
  }

  void Arrived(int32_t id) override {
    const FleetJob& job = floor_.job(id);
    const Recipe& recipe = floor_.scenario().recipes[static_cast<size_t>(job.recipe)];
    const std::string& tenant = floor_.scenario().tenants[static_cast<size_t>(job.tenant)].name;
    core::CreateDataset data;
    data.dataset.id = absl::StrCat("d", id);
    data.dataset.tenant = tenant;
    data.dataset.sha256 = absl::StrCat("data-", id);
    data.dataset.path = absl::StrCat("/d", id);
    Must(data);
    core::CreateJob create;
    create.job_id = names_[static_cast<size_t>(id)];
    create.tenant = tenant;
    create.spec = recipe.train;
    create.model_id = recipe.name;
    if (apart_) RegisterModel(recipe, create.model_id = absl::StrCat(recipe.name, "-", id));
    create.dataset_id = data.dataset.id;
    Must(create);
  }

  void Ended(int32_t id) override {
    const Attempt attempt = attempts_[static_cast<size_t>(id)];
    attempts_[static_cast<size_t>(id)] = {};
    Must(core::ReportFinished{
        FenceOf(names_[static_cast<size_t>(id)], attempt.epoch, attempt.device),
        floor_.job(id).run_steps,
        {{"adapter_model.safetensors", Sha(), 1}},
        "max_steps"});
    Drop(attempt.device, names_[static_cast<size_t>(id)], attempt.epoch);
  }

  void Act() override {
    while (!timers_.empty() && timers_.top().at_us <= floor_.now_us()) {
      const Timer timer = timers_.top();
      timers_.pop();
      Due(timer);
    }
    if (floor_.now_us() >= next_pass_us_) changed_ = true;
    if (!changed_) return;
    changed_ = false;
    next_pass_us_ = kNeverUs;
    const auto begin = std::chrono::steady_clock::now();
    Must(core::Place{});
    pass_s_.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    // The loop's tick is a second; an hour of seconds in which nothing changes is skipped in part.
    if (changed_) {
      next_pass_us_ = floor_.now_us() + kSecondUs;
    } else if (!state_.queued_jobs.empty()) {
      next_pass_us_ = floor_.now_us() + 10 * kMinuteUs;
    }
    changed_ = false;
  }

  int64_t NextUs() const override {
    return std::min(next_pass_us_, timers_.empty() ? kNeverUs : timers_.top().at_us);
  }

 private:
  enum class What { kCheckRead, kReady, kProgress, kReleased };
  struct Timer {
    int64_t at_us;
    What what;
    int32_t job;
    int64_t epoch;
    int64_t extra;                              // device of a check; interval of a progress
    bool operator<(const Timer& other) const {  // the earliest on top
      return std::tie(at_us, what, job, epoch) >
             std::tie(other.at_us, other.what, other.job, other.epoch);
    }
  };
  // What the simulated worker runs of a job.
  struct Attempt {
    int64_t epoch = 0;  // 0 = none
    int32_t device = -1;
  };

  static core::CoreOptions OptionsOf(const Scenario& s) {
    core::CoreOptions options;
    options.token_secret = "simulated";
    // Lost workers are the fault simulator's business.
    options.lease_suspect_us = options.lease_lost_us = kNeverUs / 2;
    options.blob_pin_us = kNeverUs / 2;
    for (const Knob& knob : kKnobs) {
      const auto it = s.core.find(knob.name);
      if (it != s.core.end()) knob.set(options, it->second);
    }
    for (const Tenant& tenant : s.tenants)
      options.projects[tenant.name].weight = static_cast<int32_t>(tenant.weight);
    return options;
  }

  std::string WorkerId(int32_t device) const { return absl::StrCat("w", device); }

  core::Now Now() const {
    // From a second on, as nothing happens at time zero of a machine.
    return {floor_.now_us() + kSecondUs, floor_.now_us() + kSecondUs};
  }

  absl::Status Do(core::CommandBody body) {
    absl::StatusOr<core::Decision> decision = core::Decide(state_, {Now(), std::move(body)}, core_);
    if (!decision.ok()) return decision.status();
    records_.clear();
    for (const core::Event& event : decision->events) core::Apply(&state_, event, &records_);
    changed_ = changed_ || !records_.empty();
    state_.touched = {};
    for (const core::Event& event : decision->events) Heed(event);
    return absl::OkStatus();
  }
  void Must(core::CommandBody body) { CHECK_OK(Do(std::move(body))); }

  void RegisterModel(const Recipe& recipe, const std::string& name) {
    core::RegisterModel c;
    c.model.id = name;
    c.model.digest = name;
    c.model.root_path = "/" + name;
    c.model.files = {{"config.json", Sha(), 1}};
    c.model.config_json = recipe.model_json;
    c.model.config = recipe.model;
    Must(c);
  }

  void RegisterWorker(int32_t device) {
    core::RegisterWorker c;
    c.worker_id = WorkerId(device);
    c.incarnation = "only";
    core::Device d;
    d.id = kDevice;
    d.capacity_bytes = floor_.device(device).capacity_bytes;
    d.profile = SimProfile(d.capacity_bytes);
    if (!floor_.workload().speed.empty())
      d.profile.linear_mflop_per_s = std::llround(floor_.device(device).speed * kMflopPerS);
    d.backend = d.profile.backend;
    d.body = d.profile.body;
    c.devices = {d};
    Must(c);
  }

  core::Fence FenceOf(const std::string& job, int64_t epoch, int32_t device) {
    const std::string worker = WorkerId(device);
    return {job, epoch, worker, "only",
            core::AttemptToken(core_.options, state_, job, epoch, worker, "only")};
  }

  static int32_t IndexOf(const std::string& name) {
    int32_t index = -1;
    CHECK(absl::SimpleAtoi(absl::string_view(name).substr(1), &index));
    return index;
  }

  void After(int64_t delay_us, What what, int32_t job, int64_t epoch, int64_t extra) {
    timers_.push({floor_.now_us() + delay_us, what, job, epoch, extra});
  }

  void Heed(const core::Event& event) {
    const Costs& costs = floor_.scenario().costs;
    if (const auto* a = std::get_if<core::AttemptAssigned>(&event.body)) {
      const core::Job& job = state_.jobs.at(a->job_id);
      const int32_t device = IndexOf(a->worker_id);
      listed_[device].insert({a->job_id, a->epoch});
      if (job.kind == core::JobKind::kCheck) {
        checks_[IndexOf(job.dataset_id)] = a->job_id;
        After(costs.check_us, What::kCheckRead, IndexOf(job.dataset_id), a->epoch, device);
        return;
      }
      const int32_t id = IndexOf(a->job_id);
      attempts_[static_cast<size_t>(id)] = {a->epoch, device};
      floor_.Start(id, device, floor_.now_us() + costs.start_us);
      After(costs.start_us, What::kReady, id, a->epoch, 0);
    } else if (const auto* r = std::get_if<core::AttemptReleaseRequested>(&event.body)) {
      After(costs.release_us, What::kReleased, IndexOf(r->job_id), r->epoch, 0);
    }
  }

  // Of a step alone on that device.
  double StepUs(int32_t id, int32_t device) const {
    return floor_.job(id).step_us / floor_.job(id).PaceAt(floor_.device(device).speed);
  }

  void Due(const Timer& timer) {
    if (timer.what == What::kCheckRead) return CheckRead(timer);
    const Attempt attempt = attempts_[static_cast<size_t>(timer.job)];
    if (attempt.epoch != timer.epoch) return;  // over
    const std::string& name = names_[static_cast<size_t>(timer.job)];
    const core::Fence fence = FenceOf(name, attempt.epoch, attempt.device);
    switch (timer.what) {
      case What::kReady:
        Must(core::ReportPlan{fence, floor_.job(timer.job).steps, "{}", ""});
        After(static_cast<int64_t>(StepUs(timer.job, attempt.device)) + 1, What::kProgress, timer.job,
              attempt.epoch, kMinuteUs / 2);
        return;
      case What::kProgress: {
        const int64_t interval_us = std::min<int64_t>(timer.extra * 2, 10 * kMinuteUs);
        After(interval_us, What::kProgress, timer.job, attempt.epoch, interval_us);
        core::Progress head;
        head.step = floor_.StepsDone(timer.job);
        const double speed = floor_.device(attempt.device).speed;
        head.step_time_us = static_cast<int64_t>(StepUs(timer.job, attempt.device) *
                                                 floor_.job(timer.job).BusyAt(speed)) +
                            1;
        if (head.step > 0) Must(core::ReportProgress{fence, head});
        return;
      }
      default:
        return Released(timer.job, attempt, fence);
    }
  }

  void CheckRead(const Timer& timer) {
    const std::string name = checks_.at(timer.job);
    const auto device = static_cast<int32_t>(timer.extra);
    Must(core::ReportCheck{FenceOf(name, timer.epoch, device), "{}", floor_.job(timer.job).steps});
    Drop(device, name, timer.epoch);
  }

  void Released(int32_t id, const Attempt& attempt, const core::Fence& fence) {
    const int64_t step = floor_.StepsDone(id);
    const core::Job& job = state_.jobs.at(names_[static_cast<size_t>(id)]);
    if (step > (job.checkpoints.empty() ? 0 : job.checkpoints.back().step))
      Must(core::ReportCheckpoint{fence, step, {{"state", Sha(), 1}}, Sha(), 0});
    Must(core::ReportReleased{fence, step});
    floor_.Preempt(id);
    attempts_[static_cast<size_t>(id)] = {};
    Drop(attempt.device, names_[static_cast<size_t>(id)], attempt.epoch);
  }

  // The worker no longer has it, and says so.
  void Drop(int32_t device, const std::string& job, int64_t epoch) {
    listed_[device].erase({job, epoch});
    core::Synchronize sync;
    sync.worker_id = WorkerId(device);
    sync.incarnation = "only";
    sync.known_revision = state_.FindWorker(sync.worker_id)->revision;
    core::DeviceUse use{kDevice, floor_.device(device).touched_bytes, {}};
    for (const core::AttemptKey& key : listed_[device]) {
      sync.attempts.push_back({key.first, key.second, kDevice, core::Phase::kTraining, 0, 0});
      use.resident_bases.insert(state_.jobs.at(key.first).model_id);
    }
    sync.devices = {use};
    Must(sync);
  }

  Floor& floor_;
  const bool apart_;
  core::State state_;
  core::Core core_;
  std::vector<core::EventRecord> records_;
  std::vector<std::string> names_;
  std::vector<Attempt> attempts_;
  std::map<int32_t, std::set<core::AttemptKey>> listed_;  // by device
  std::map<int32_t, std::string> checks_;                 // by the job whose data it reads
  std::priority_queue<Timer> timers_;
  bool changed_ = false;
  int64_t next_pass_us_ = kNeverUs;
};

}  // namespace

bool IsCoreOption(std::string_view name) {
  for (const Knob& knob : kKnobs) {
    if (name == knob.name) return true;
  }
  return false;
}

std::unique_ptr<Policy> MakeNibblePolicy(Floor* floor, bool apart) {
  return std::make_unique<NibblePolicy>(floor, apart);
}

}  // namespace nibble::fleet
