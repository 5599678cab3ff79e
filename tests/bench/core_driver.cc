#include "tests/bench/core_driver.h"

#include <time.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace nibble::bench {
namespace {

constexpr const char* kConfigJson =
    R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":512,"hidden_size":64,)"
    R"("intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,)"
    R"("max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu"})";
constexpr const char* kIncarnation = "only";
constexpr const char* kDevice = "gpu0";

core::Now NowAt(int64_t us) { return {us, us}; }

}  // namespace

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

const std::string& BlobSha() {
  static const auto* sha = new std::string(64, 'a');
  return *sha;
}

core::SpecFunctions SmallPlans() {
  core::SpecFunctions functions;
  functions.resolve = spec::ResolveTrainSpec;
  functions.plan = [](const spec::ModelConfig&, const spec::TrainSpec& spec,
                      const spec::DeviceProfile&) -> absl::StatusOr<spec::MemoryPlan> {
    spec::MemoryPlan plan;
    plan.base_bytes = 2 * kGb;
    plan.persistent_bytes = kGb / 2;
    plan.step_bytes = int64_t{spec.sequence_len} * 1'000'000;
    plan.lower_bound_bytes = plan.TotalBytes();
    return plan;
  };
  return functions;
}

core::CoreOptions BenchOptions() {
  core::CoreOptions options;
  options.token_secret = "bench";
  options.lease_suspect_us = options.lease_lost_us = int64_t{1} << 60;
  options.max_attempts_per_device = kSlots;
  options.max_bases_per_device = kSlots;
  return options;
}

std::string WorkerId(int32_t index) { return absl::StrFormat("w%05d", index); }

core::RegisterWorker Registration(int32_t index) {
  core::RegisterWorker c;
  c.worker_id = WorkerId(index);
  c.incarnation = kIncarnation;
  core::Device device;
  device.id = kDevice;
  device.backend = device.profile.backend;
  device.capacity_bytes = 80 * kGb;
  c.devices = {device};
  return c;
}

std::vector<core::CommandBody> Things(const Setup& setup) {
  std::vector<core::CommandBody> commands{core::RecordBlob{BlobSha(), 1}};
  for (int32_t i = 0; i < setup.kinds; ++i) {
    core::RegisterModel c;
    c.model.id = absl::StrCat("m", i);
    c.model.digest = c.model.id;
    c.model.root_path = "/" + c.model.id;
    c.model.files = {{"config.json", BlobSha(), 1}};
    c.model.config_json = kConfigJson;
    c.model.config = spec::ParseModelConfig(kConfigJson).value();
    commands.push_back(c);
  }
  for (int32_t i = 0; i < setup.datasets; ++i) {
    core::CreateDataset c;
    c.dataset.id = absl::StrCat("d", i);
    c.dataset.sha256 = c.dataset.id;
    c.dataset.path = "/" + c.dataset.id;
    commands.push_back(c);
  }
  for (int32_t i = 0; i < setup.workers; ++i) commands.push_back(Registration(i));
  return commands;
}

core::CreateJob NewJob(int64_t number, const Setup& setup) {
  core::CreateJob c;
  c.job_id = absl::StrFormat("j%08d", number);
  c.tenant = absl::StrCat("t", number % 4);
  c.spec.sequence_len = 1'024;
  c.model_id = absl::StrCat("m", number % setup.kinds);
  c.dataset_id = absl::StrCat("d", number / setup.kinds % setup.datasets);
  return c;
}

std::vector<core::ValidateDataset> Reads(const Setup& setup) {
  std::vector<core::ValidateDataset> reads;
  for (int64_t i = 0; i < int64_t{setup.kinds} * setup.datasets; ++i) {
    const core::CreateJob job = NewJob(i, setup);
    reads.push_back({job.dataset_id, "", job.model_id, job.spec});
  }
  return reads;
}

core::Fence FenceOf(const core::CoreOptions& options, const core::State& state,
                    const core::AttemptKey& key) {
  const std::string& worker = state.FindAttempt(key)->worker_id;
  return {key.first, key.second, worker, kIncarnation,
          core::AttemptToken(options, state, key.first, key.second, worker, kIncarnation)};
}

core::Synchronize ListingWithout(const core::State& state, const std::string& worker,
                                 const std::set<core::AttemptKey>& gone) {
  core::Synchronize sync;
  sync.worker_id = worker;
  sync.incarnation = kIncarnation;
  sync.known_revision = state.FindWorker(worker)->revision;
  const auto held = state.holding.find(worker);
  if (held == state.holding.end()) return sync;
  for (const core::AttemptKey& key : held->second) {
    if (gone.count(key) == 0)
      sync.attempts.push_back({key.first, key.second, kDevice, core::Phase::kTraining, 0, 0});
  }
  return sync;
}

CoreDriver::CoreDriver(const Setup& setup) : core_{BenchOptions(), core::Planner(SmallPlans())} {
  Do(core::ServerStart{"bench"});
  for (core::CommandBody& c : Things(setup)) Do(std::move(c));
  for (const core::ValidateDataset& c : Reads(setup)) Do(c);
  int64_t steps = 100;
  while (!state_.queued_jobs.empty()) {
    double spent_s = 0;
    for (const core::AttemptKey& key : Place(&spent_s)) {
      const std::string worker = state_.FindAttempt(key)->worker_id;
      Do(core::ReportCheck{FenceOf(core_.options, state_, key), "{}", steps});
      Do(ListingWithout(state_, worker, {key}));
      steps = steps > 50'000 ? 100 : steps * 11 / 10 + 1;
    }
  }
}

void CoreDriver::Do(core::CommandBody body) {
  absl::StatusOr<core::Decision> decision =
      core::Decide(state_, {NowAt(now_us_), std::move(body)}, core_);
  CHECK_OK(decision.status());
  records_.clear();
  for (const core::Event& event : decision->events) core::Apply(&state_, event, &records_);
  state_.touched = {};
}

std::vector<core::AttemptKey> CoreDriver::Place(double* spent_s) {
  std::vector<core::AttemptKey> placed;
  const double begin_s = ThreadSeconds();
  absl::StatusOr<core::Decision> decision =
      core::Decide(state_, {NowAt(now_us_), core::Place{}}, core_);
  CHECK_OK(decision.status());
  records_.clear();
  for (const core::Event& event : decision->events) core::Apply(&state_, event, &records_);
  state_.touched = {};
  *spent_s += ThreadSeconds() - begin_s;
  for (const core::Event& event : decision->events) {
    const auto* a = std::get_if<core::AttemptAssigned>(&event.body);
    if (a == nullptr) continue;
    placed.emplace_back(a->job_id, a->epoch);
    for (const char c : absl::StrCat(a->job_id, "/", a->worker_id, "/", a->device_id, "/", a->why))
      fingerprint_ = (fingerprint_ ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  return placed;
}

void CoreDriver::Finish(const std::vector<core::AttemptKey>& attempts) {
  std::map<std::string, std::set<core::AttemptKey>> by_worker;
  for (const core::AttemptKey& key : attempts) {
    by_worker[state_.FindAttempt(key)->worker_id].insert(key);
    Do(core::ReportFinished{
        FenceOf(core_.options, state_, key), 1, {{"adapter", BlobSha(), 1}}, "max_steps"});
  }
  for (const auto& [worker, gone] : by_worker) Do(ListingWithout(state_, worker, gone));
  for (const core::AttemptKey& key : attempts) {
    Do(core::DeleteJob{key.first});
    if (state_.adapters.count(key.first) > 0) Do(core::DeleteAdapter{key.first});
  }
}

}  // namespace nibble::bench
