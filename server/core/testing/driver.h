// For tests of the core and of what holds its state: decides and applies, with cheap plans.
//
// One data set "data", one model "base" (100 MB), workers on demand. Time stands still until told.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/spec/workspace.h"
#include "server/core/apply.h"
#include "server/core/decide.h"
#include "server/core/state.h"
#include "server/core/views.h"

namespace nibble::core::testing {

inline constexpr int64_t kMB = 1'000'000;
inline constexpr const char* kConfigJson =
    R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":512,"hidden_size":64,)"
    R"("intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,)"
    R"("max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu"})";

// fixed 10 MB, base 100 MB, persistent r MB, step sequence_len x micro_batch_size KB.
inline SpecFunctions CheapSpecFunctions() {
  SpecFunctions functions;
  functions.plan = [](const spec::ModelConfig&, const spec::TrainSpec& spec,
                      const spec::DeviceProfile& profile) -> absl::StatusOr<spec::MemoryPlan> {
    spec::MemoryPlan plan;
    plan.base_bytes = 100 * kMB;
    plan.persistent_bytes = spec.lora_r * kMB;
    plan.device = spec::IsCuda(profile);
    if (plan.device) plan.pinned_bytes = spec.paged_optimizer ? spec.lora_r * kMB : kMB / 1'000;
    plan.step_bytes = int64_t{spec.sequence_len} * spec.micro_batch_size * 1'000 *
                      (spec.recompute == spec::Recompute::kNone ? 4 : 1);
    plan.fixed_bytes = profile.fixed_bytes;
    return plan;
  };
  functions.resolve = [](spec::TrainSpec spec,
                         const spec::ModelConfig&) -> absl::StatusOr<spec::TrainSpec> {
    return spec;
  };
  return functions;
}

class Driver {
 public:
  explicit Driver(CoreOptions options = {})
      : core_{std::move(options), Planner(CheapSpecFunctions())} {
    core_.options.token_secret = "secret";
    Must(ServerStart{"timeline-1"});
    RegisterBase("base");
    CreateDataset dataset;
    dataset.dataset.id = "data";
    dataset.dataset.sha256 = std::string(64, 'd');
    dataset.dataset.path = "/data.jsonl";
    Must(dataset);
  }

  void RegisterBase(const std::string& id) {
    RegisterModel model;
    model.model.id = id;
    model.model.digest = "digest-of-" + id;
    model.model.root_path = "/" + id;
    model.model.files = {{"config.json", std::string(64, 'c'), 1}};
    model.model.config_json = kConfigJson;
    model.model.config = spec::ParseModelConfig(kConfigJson).value();
    Must(model);
  }

  // Its state's reason, as a reader of that project sees it; "" = everybody's.
  std::string Why(const std::string& id, const std::string& scope = "") {
    QueueLook look(state_, core_, Now().monotonic_us, scope);
    return StateReason(job(id), look);
  }
  absl::StatusOr<std::string> Do(CommandBody body) {
    absl::StatusOr<Decision> decision = Decide(state_, {Now(), std::move(body)}, core_);
    if (!decision.ok()) return decision.status();
    last_events_ = decision->events;
    for (const Event& event : decision->events) Apply(&state_, event, &records_);
    CHECK_OK(state_.CheckInvariants(core_.options));
    return decision->id;
  }
  std::string Must(CommandBody body) {
    absl::StatusOr<std::string> id = Do(std::move(body));
    CHECK_OK(id.status());
    return *id;
  }

  static RegisterWorker WorkerOf(const std::string& id, const std::string& incarnation,
                                 int64_t capacity_bytes) {
    RegisterWorker request;
    request.worker_id = id;
    request.incarnation = incarnation;
    Device device;
    device.id = "cpu0";
    device.backend = "cpu";
    device.capacity_bytes = capacity_bytes;
    device.profile.fixed_bytes = 10 * kMB;
    device.profile.build = "build-1";
    request.devices = {device};
    return request;
  }
  void AddWorker(const std::string& id, int64_t capacity_bytes = 1'000 * kMB,
                 const std::string& incarnation = "i1") {
    Must(WorkerOf(id, incarnation, capacity_bytes));
  }
  // r 10 and 1,000 tokens: 10 + 100 + 10 + 1 MB alone.
  static CreateJob JobOf(const std::string& id) {
    CreateJob create;
    create.job_id = id;
    create.uid = "uid-" + id;
    create.tenant = "default";
    create.model_id = "base";
    create.dataset_id = "data";
    create.body_sha256 = "body-" + id;
    create.spec.lora_r = 10;
    create.spec.sequence_len = 1'000;
    return create;
  }
  void Place() { Must(core::Place{}); }
  void Advance(int64_t us) { now_us_ += us; }

  Fence FenceOf(const std::string& job_id) const {
    const Job& job = state_.jobs.at(job_id);
    const Attempt& attempt = job.attempts.at(job.epoch);
    return {job_id, job.epoch, attempt.worker_id, attempt.incarnation,
            AttemptToken(core_.options, state_, job_id, job.epoch, attempt.worker_id,
                         attempt.incarnation)};
  }
  // A Synchronize that has seen everything and lists all attempts it should.
  Synchronize SyncOf(const std::string& worker_id) const {
    const Worker& worker = state_.workers.at(worker_id);
    Synchronize request;
    request.worker_id = worker_id;
    request.incarnation = worker.incarnation;
    request.known_revision = worker.revision;
    for (const Assignment& a : DesiredFor(state_, worker, core_.options).assignments) {
      request.attempts.push_back(
          {a.job->id, a.attempt->epoch, a.attempt->device_id, Phase::kTraining, 0, 0});
    }
    return request;
  }
  std::vector<FileRef> Upload(const std::string& name) {
    const std::string sha256(64, static_cast<char>('a' + (blobs_++ % 6)));
    Must(RecordBlob{sha256, 7});
    return {{name, sha256, 7}};
  }

  core::Now Now() const { return {now_us_, 1'700'000'000'000'000 + now_us_}; }
  const State& state() const { return state_; }
  State& mutable_state() { return state_; }
  const Job& job(const std::string& id) const { return state_.jobs.at(id); }
  Core& core() { return core_; }
  const std::vector<EventRecord>& records() const { return records_; }
  const std::vector<Event>& last_events() const { return last_events_; }
  std::vector<EventRecord> TakeRecords() { return std::exchange(records_, {}); }

 private:
  Core core_;
  State state_;
  int64_t now_us_ = 1'000 * kSecondUs;
  int64_t blobs_ = 0;
  std::vector<EventRecord> records_;
  std::vector<Event> last_events_;
};

}  // namespace nibble::core::testing
