// Events as people and watchers read them.
#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/apply.h"

namespace nibble::core {
namespace {

using Fields = std::map<std::string, std::string>;

std::string Seconds(int64_t us) { return absl::StrCat(us / 1'000'000, " s"); }
std::string OptimizerSteps(int64_t steps) {
  return absl::StrCat(steps, " optimizer step", steps == 1 ? "" : "s");
}
std::string Text(std::string_view text) { return std::string(text); }

struct Describer {
  EventRecord& r;

  void Say(std::string message, Fields fields = {}) {
    r.message = std::move(message);
    r.fields = std::move(fields);
  }

  void operator()(const ServerStarted& e) {
    Say(absl::StrCat("server started, generation ", e.generation),
        {{"generation", absl::StrCat(e.generation)}, {"timeline", e.timeline}});
  }
  void operator()(const ServerSlept& e) {
    Say(absl::StrCat("the server did not run for ", Seconds(e.slept_us), "; leases last that much longer"),
        {{"slept_us", absl::StrCat(e.slept_us)}});
  }
  void operator()(const JobQueued& e) {
    Say("queued", {{"model", e.job.model_id},
                   {"dataset", e.job.dataset_id},
                   {"kind", Text(JobKindName(e.job.kind))},
                   {"priority", absl::StrCat(e.job.priority)}});
  }
  void operator()(const JobUpdated& e) {
    // Names and labels are users' words: messages are logged.
    Say(absl::StrCat("updated: priority ", e.priority,
                     e.labels.empty() ? "" : absl::StrCat(", labels: ", e.labels.size()),
                     e.allow_numerics_change ? ", may go on with other numerics" : ""),
        {{"display_name", e.display_name},
         {"priority", absl::StrCat(e.priority)},
         {"allow_numerics_change", e.allow_numerics_change ? "true" : "false"}});
  }
  void operator()(const JobCancelling&) { Say("cancel requested; its worker lets go"); }
  void operator()(const JobCancelled&) { Say("cancelled"); }
  void operator()(const JobPausing&) { Say("pause requested; its worker saves a checkpoint"); }
  void operator()(const JobPaused&) { Say("paused; nothing of it is on a device"); }
  void operator()(const JobResumed&) { Say("resumed"); }
  void operator()(const JobRequeued& e) {
    Say(e.backoff_us > 0
            ? absl::StrCat("back in the queue after ", e.why, "; waits ", Seconds(e.backoff_us))
            : absl::StrCat("back in the queue: ", e.why),
        {{"why", e.why}, {"backoff_us", absl::StrCat(e.backoff_us)}});
  }
  void operator()(const JobSucceeded& e) {
    Say(e.adapter.id.empty() ? "succeeded" : absl::StrCat("succeeded: adapters/", e.adapter.id),
        {{"adapter", e.adapter.id},
         {"step", absl::StrCat(e.step)},
         {"stop_reason", e.stop_reason}});
  }
  void operator()(const JobFailed& e) {
    Say(absl::StrCat(e.reason, ": ", e.message), {{"reason", e.reason}});
  }
  void operator()(const JobDeleted& e) {
    Say(absl::StrCat("jobs/", e.job_id, " deleted"), {{"job", e.job_id}});
  }
  void operator()(const AttemptAssigned& e) {
    const bool continues = e.continues_epoch > 0;
    Say(absl::StrCat("attempt ", e.epoch, continues ? " goes on in memory on " : " goes to ",
                     e.worker_id, "/", e.device_id, " with ", HumanBytes(e.plan.TotalBytes()), " planned",
                     e.resume_step > 0 && !continues ? absl::StrCat(", from step ", e.resume_step) : "",
                     e.why.empty() ? "" : absl::StrCat(" (", e.why, ")")),
        {{"epoch", absl::StrCat(e.epoch)},
         {"worker", e.worker_id},
         {"device", e.device_id},
         {"planned_bytes", absl::StrCat(e.plan.TotalBytes())},
         {"resume_step", absl::StrCat(e.resume_step)},
         {"continues_epoch", absl::StrCat(e.continues_epoch)},
         {"run_alone", e.run_alone ? "true" : "false"}});
  }
  void operator()(const AttemptPlanned& e) {
    Say(absl::StrCat("data read: ", OptimizerSteps(e.planned_steps)),
        {{"epoch", absl::StrCat(e.epoch)},
         {"planned_steps", absl::StrCat(e.planned_steps)},
         {"numerics_id", e.numerics_id}});
  }
  void operator()(const AttemptStarted& e) {
    Say(absl::StrCat("attempt ", e.epoch, " trains"), {{"epoch", absl::StrCat(e.epoch)}});
  }
  void operator()(const AttemptEnded& e) {
    const std::string state(AttemptStateName(e.state));
    Say(absl::StrCat("attempt ", e.epoch, " is ", state,
                     e.reason.empty() ? "" : absl::StrCat(": ", e.reason),
                     e.message.empty() ? "" : absl::StrCat(": ", e.message)),
        {{"epoch", absl::StrCat(e.epoch)},
         {"state", state},
         {"reason", e.reason},
         {"spends_retry", e.spends_retry ? "true" : "false"}});
  }
  void operator()(const AttemptReleaseRequested& e) {
    Say(absl::StrCat("asked to save and let go: ", e.why),
        {{"epoch", absl::StrCat(e.epoch)}, {"why", e.why}});
  }
  void operator()(const AttemptFreed& e) {
    Say(absl::StrCat(e.job_id, "/", e.epoch, " holds no bytes any more"),
        {{"job", e.job_id}, {"epoch", absl::StrCat(e.epoch)}});
  }
  void operator()(const CheckpointSaved& e) {
    Say(absl::StrCat("checkpoint at step ", e.checkpoint.step, ", ",
                     HumanBytes(e.checkpoint.size_bytes)),
        {{"epoch", absl::StrCat(e.checkpoint.epoch)},
         {"step", absl::StrCat(e.checkpoint.step)},
         {"size_bytes", absl::StrCat(e.checkpoint.size_bytes)},
         {"manifest_sha256", e.checkpoint.manifest_sha256}});
  }
  void operator()(const CheckpointDropped& e) {
    Say(absl::StrCat("checkpoint of step ", e.step, " dropped: ", e.why),
        {{"epoch", absl::StrCat(e.epoch)}, {"step", absl::StrCat(e.step)}, {"why", e.why}});
  }
  void operator()(const ProgressUpdated&) {}
  void operator()(const LeaseRenewed&) {}
  void operator()(const WorkerRegistered& e) {
    Say(absl::StrCat("workers/", e.worker.id, " registered with ", e.worker.devices.size(),
                     e.worker.devices.size() == 1 ? " device" : " devices"),
        {{"worker", e.worker.id},
         {"incarnation", e.worker.incarnation},
         {"version", e.worker.version}});
  }
  void operator()(const WorkerLost& e) { OfWorker(e.worker_id, "lost: its lease ran out"); }
  void operator()(const WorkerReturned& e) { OfWorker(e.worker_id, "is back"); }
  void operator()(const WorkerDraining& e) { OfWorker(e.worker_id, "drains"); }
  void operator()(const WorkerUndrained& e) { OfWorker(e.worker_id, "takes work again"); }
  void operator()(const WorkerDeleted& e) { OfWorker(e.worker_id, "removed"); }
  void operator()(const WorkerDiskFull& e) {
    OfWorker(e.worker_id, absl::StrCat("takes no new work, its disk is full: ", e.why));
  }
  void operator()(const WorkerHasRoom& e) { OfWorker(e.worker_id, "has room on its disk again"); }
  void OfWorker(const std::string& id, std::string_view what) {
    Say(absl::StrCat("workers/", id, " ", std::string(what)), {{"worker", id}});
  }
  void operator()(const DatasetCreated& e) { OfThing("datasets", e.dataset.id, "created"); }
  void operator()(const DatasetDeleted& e) { OfThing("datasets", e.dataset_id, "deleted"); }
  void operator()(const ModelRegistered& e) { OfThing("models", e.model.id, "registered"); }
  void operator()(const ModelDeleted& e) { OfThing("models", e.model_id, "deleted"); }
  void operator()(const AdapterDeleted& e) { OfThing("adapters", e.adapter_id, "deleted"); }
  void operator()(const BlobRecorded& e) { OfThing("blobs", e.sha256, "recorded"); }
  void operator()(const BlobShown& e) {
    Say(absl::StrCat("blobs/", e.sha256, " sent by the project ", e.project),
        {{"id", e.sha256}, {"project", e.project}});
  }
  void operator()(const BlobForgotten& e) { OfThing("blobs", e.sha256, "forgotten"); }
  void OfThing(std::string_view collection, const std::string& id, std::string_view what) {
    Say(absl::StrCat(std::string(collection), "/", id, " ", std::string(what)), {{"id", id}});
  }
  void operator()(const JobChecked& e) {
    Say(absl::StrCat("data checked: ", OptimizerSteps(e.planned_steps)),
        {{"planned_steps", absl::StrCat(e.planned_steps)}});
  }
  void operator()(const RequestExpired& e) {
    Say("request id expired", {{"request_id", e.request_id}});
  }
  void operator()(const BlobPinned&) {}
  void operator()(const RollbackSuspected&) {}
  void operator()(const DeviceWithdrawn& e) {
    OfDevice(e.worker_id, e.device_id, absl::StrCat("is withdrawn: ", e.fault));
  }
  void operator()(const DeviceRestored& e) { OfDevice(e.worker_id, e.device_id, "answers again"); }
  void OfDevice(const std::string& worker_id, const std::string& device_id, std::string_view what) {
    Say(absl::StrCat("workers/", worker_id, "/", device_id, " ", std::string(what)),
        {{"worker", worker_id}, {"device", device_id}});
  }
};

// The job whose sequence the event belongs to.
template <typename E>
std::string JobIdOf(const E& e) {
  if constexpr (E::kKeep == Keep::kJob) {
    return e.job_id;
  } else {
    return "";
  }
}

}  // namespace

EventRecord Describe(const Event& event) {
  EventRecord record;
  record.unix_us = event.now.unix_us;
  std::visit(
      [&](const auto& e) {
        record.type = std::string(std::decay_t<decltype(e)>::kType);
        record.job_id = JobIdOf(e);
        Describer{record}(e);
      },
      event.body);
  return record;
}

}  // namespace nibble::core
