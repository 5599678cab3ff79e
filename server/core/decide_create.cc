// What makes jobs: T1, and the CHECKs of their data.
#include <algorithm>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/check_id.h"
#include "server/core/data_format.h"
#include "server/core/decide_internal.h"
#include "server/core/limits.h"
#include "server/core/schedule_load.h"
#include "server/core/views.h"

namespace nibble::core {
namespace {

// What the specs of a job refer to.
struct Parts {
  const Model* model = nullptr;
  const Dataset* dataset = nullptr;
  const Dataset* eval_dataset = nullptr;
};

// Models are for everybody; data is its project's.
absl::StatusOr<Parts> FindParts(const Turn& turn, const std::string& model_id,
                                const std::string& dataset_id, const std::string& eval_dataset_id) {
  const State& state = turn.state;
  Parts parts;
  const auto model = state.models.find(model_id);
  if (model == state.models.end()) {
    return Error::Field(
               Reason::kBaseModelNotFound, "spec.base_model",
               absl::StrCat("names models/", model_id, ", which does not exist; register it first"))
        .ToStatus();
  }
  parts.model = &model->second;
  const auto find = [&](const std::string& id,
                        const char* field) -> absl::StatusOr<const Dataset*> {
    const auto it = state.datasets.find(id);
    if (it != state.datasets.end() && turn.Sees(it->second.tenant)) return &it->second;
    return Error::Field(
               Reason::kDatasetNotFound, field,
               absl::StrCat("names datasets/", id, ", which does not exist; create it first"))
        .ToStatus();
  };
  ASSIGN_OR_RETURN(parts.dataset, find(dataset_id, "spec.dataset"));
  if (!eval_dataset_id.empty()) {
    ASSIGN_OR_RETURN(parts.eval_dataset, find(eval_dataset_id, "spec.eval_dataset"));
  }
  return parts;
}

// The kinds of registered devices that do not hold a job.
struct Misfits {
  const DeviceKind* nearest = nullptr;  // of those with a plan
  int64_t shortfall_bytes = std::numeric_limits<int64_t>::max();
  int64_t total_bytes = 0;
  HostPart beside;
  // Of those that do not take it whatever memory they have.
  const DeviceKind* refusing = nullptr;
  absl::Status refusal;
};

std::string FirstOf(const DeviceKind& kind) {
  return absl::StrCat(kind.devices.begin()->first, "/", kind.devices.begin()->second);
}

// Nothing where some device holds it, or none is known.
absl::StatusOr<std::optional<Misfits>> FindMisfits(Turn& turn, const Job& job, const Model& model) {
  Misfits found;
  for (const auto& [key, kind] : turn.state.device_kinds) {
    const absl::StatusOr<PlanBytes>& plan = turn.core.planner.PlanOf(job, model, kind.profile);
    if (IsNotPlanned(plan.status())) return plan.status();
    if (!plan.ok()) {
      if (found.refusing == nullptr) found.refusal = plan.status(), found.refusing = &kind;
      continue;
    }
    const Need need(*plan);
    if (need.FitsAlone(Capacity(kind.profile))) return std::nullopt;
    // Where the device itself has enough, its host has not.
    const int64_t over_bytes =
        std::max<int64_t>(0, plan->TotalBytes() - kind.profile.capacity_bytes);
    if (over_bytes > found.shortfall_bytes ||
        (over_bytes == found.shortfall_bytes && *found.nearest->devices.begin() < *kind.devices.begin()))
      continue;
    found.beside = need.beside;
    found.shortfall_bytes = over_bytes;
    found.total_bytes = plan->TotalBytes();
    found.nearest = &kind;
  }
  if (found.nearest == nullptr && found.refusing == nullptr) return std::nullopt;
  return found;
}

// What is missing at the nearest device, and why it is none of those that take no such job.
std::string ShortfallText(const Misfits& m) {
  const int64_t capacity_bytes = m.nearest->profile.capacity_bytes;
  std::string text = absl::StrCat(
      "needs ", HumanBytes(m.total_bytes), " (", m.total_bytes, " bytes) and no device ",
      m.refusing != nullptr ? "that takes it " : "", "has that: the nearest, ", FirstOf(*m.nearest),
      ", offers ", HumanBytes(capacity_bytes), " (", capacity_bytes, " bytes), ",
      HumanBytes(m.shortfall_bytes), " (", m.shortfall_bytes, " bytes) too few");
  if (m.shortfall_bytes == 0) {
    const HostPart offered = Capacity(m.nearest->profile).beside;
    text = absl::StrCat("needs ", HumanBytes(m.beside.pinned_bytes), " of page-locked and ",
                        HumanBytes(m.beside.host_bytes), " of other host memory beside the device's, and ",
                        FirstOf(*m.nearest), " offers ", HumanBytes(offered.pinned_bytes), " and ",
                        HumanBytes(offered.host_bytes));
  }
  if (m.refusing != nullptr)
    absl::StrAppend(&text, "; ", FirstOf(*m.refusing), " does not take it: ", m.refusal.message());
  return text;
}

// Refuses what no registered device could ever hold, with the shortfall and what would help. A device that
// does not take it at all stands in nobody's way but its own.
absl::Status CheckCanFit(Turn& turn, const Job& job, const Model& model) {
  ASSIGN_OR_RETURN(const std::optional<Misfits> misfits, FindMisfits(turn, job, model));
  if (!misfits) return absl::OkStatus();
  if (misfits->nearest == nullptr) return misfits->refusal;
  const int64_t capacity_bytes = misfits->nearest->profile.capacity_bytes;
  ASSIGN_OR_RETURN(
      const std::vector<Suggestion> suggestions,
      turn.core.planner.Suggestions(job, model, misfits->nearest->profile, capacity_bytes));
  std::string help = "; no recomputation, smaller batch, shorter sequence or rank would fit either";
  if (!suggestions.empty()) {
    help = "; would fit with ";
    for (size_t i = 0; i < suggestions.size(); ++i) {
      absl::StrAppend(&help, i == 0 ? "" : ", or with ", suggestions[i].description);
    }
  }
  Error error(Reason::kExceedsDeviceMemory, absl::StrCat(ShortfallText(*misfits), help));
  error.With("needed_bytes", absl::StrCat(misfits->total_bytes))
      .With("capacity_bytes", absl::StrCat(capacity_bytes))
      .With("shortfall_bytes", absl::StrCat(misfits->shortfall_bytes))
      .With("device", FirstOf(*misfits->nearest));
  for (size_t i = 0; i < suggestions.size(); ++i) {
    error.With(absl::StrCat("suggestion_", i + 1),
               absl::StrJoin(suggestions[i].changes, " ", [](std::string* out, const SpecChange& c) {
                 absl::StrAppend(out, c.field, "=", c.value);
               }));
  }
  return error;
}

const Job* FindCheck(const State& state, const std::string& key) {
  const auto it = state.checks.find(key);
  return it == state.checks.end() ? nullptr : state.FindJob(it->second);
}

// Whether a CHECK answers who asks again, rather than that it runs once more. A failure of the
// machines' does for a while only, so that who polls for the result hears of it.
bool IsAnswer(const Job& check, const Now& now) {
  constexpr int64_t kFailureStandsUs = 60 * kSecondUs;
  if (check.state == JobState::kCancelled) return false;
  if (check.state != JobState::kFailed) return true;
  return check.infra_retries == 0 || now.unix_us - check.end_unix_us < kFailureStandsUs;
}

// What the CHECK of the same data has found, if it ran: counts for the job, or its refusal.
absl::Status AdoptCheck(const State& state, Job& job) {
  const Job* check = FindCheck(state, job.check_key);
  if (check == nullptr) return absl::OkStatus();
  if (check->state == JobState::kSucceeded) {
    job.report_json = check->report_json;
    job.progress.planned_steps = check->progress.planned_steps;
  }
  if (check->state == JobState::kFailed) {
    const Reason reason = ReasonFromName(check->error_reason);
    // What lies in the data alone: a template or a tokenizer may be known to a worker of a later release.
    if (reason == Reason::kNoSupervisedTokens || reason == Reason::kDatasetEmpty ||
        reason == Reason::kDatasetSchemaMismatch) {
      const std::string why = absl::StrCat("cannot be trained on: ", check->error_message);
      return Error(reason, absl::StrCat("datasets/", job.dataset_id, " ", why))
          .Violation("spec.dataset", why);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCreate(const State& state, const CreateJob& c) {
  RETURN_IF_ERROR(CheckText(c.display_name, c.priority));
  RETURN_IF_ERROR(CheckLabels(c.labels));
  if (!IsValidId(c.job_id) || (c.job_id_given && absl::StartsWith(c.job_id, kCheckPrefix))) {
    return Error::Field(Reason::kNameInvalid, "job_id",
                        "must be 1 to 63 of a-z, 0-9 and inner '-', and not begin with check-");
  }
  if (state.FindJob(c.job_id) != nullptr || state.adapters.count(c.job_id) > 0) {
    return Error(Reason::kJobExists,
                 absl::StrCat("jobs/", c.job_id, " exists, or its adapter does"));
  }
  if (state.live_jobs.size() >= kMaxLiveJobs || state.jobs.size() >= kMaxJobs) {
    return Error(Reason::kQueueFull,
                 absl::StrCat("there are ", state.live_jobs.size(), " unfinished jobs of at most ",
                              kMaxLiveJobs, " and ", state.jobs.size(), " in all of at most ",
                              kMaxJobs, "; wait, or delete some"));
  }
  return absl::OkStatus();
}

// The answer to a request_id that was used before; nullopt when it was not.
absl::StatusOr<std::optional<std::string>> FindRepeat(const Turn& turn, const CreateJob& c) {
  if (c.request_id.empty()) return std::nullopt;
  if (c.request_id.size() > kMaxRequestIdBytes) {
    return Error::Field(
               Reason::kSpecInvalid, "request_id",
               absl::StrCat("has ", c.request_id.size(), " bytes; at most ", kMaxRequestIdBytes))
        .ToStatus();
  }
  const auto it = turn.state.requests.find({c.tenant, c.request_id});
  if (it == turn.state.requests.end()) return std::nullopt;
  if (it->second.body_sha256 != c.body_sha256) {
    return Error(Reason::kRequestIdReused,
                 absl::StrCat("request_id ", c.request_id, " made jobs/", it->second.job_id,
                              " from another request; use a fresh one"))
        .With("job", it->second.job_id)
        .ToStatus();
  }
  if (JobMadeBy(turn.state, it->second) == nullptr) {
    return Error(Reason::kJobNotFound,
                 absl::StrCat("request_id ", c.request_id, " made jobs/", it->second.job_id,
                              ", which was deleted; use a fresh one to make another"))
        .With("job", it->second.job_id)
        .ToStatus();
  }
  return it->second.job_id;
}

}  // namespace

absl::Status CheckLabels(const std::map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return Error::Field(Reason::kSpecInvalid, "labels",
                        absl::StrCat("has ", labels.size(), " entries; at most ", kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelBytes || value.size() > kMaxLabelBytes) {
      return Error::Field(Reason::kSpecInvalid, absl::StrCat("labels[", key.substr(0, 64), "]"),
                          absl::StrCat("must have a key of 1 to ", kMaxLabelBytes,
                                       " bytes and a value of at most as many"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckText(const std::string& display_name, int32_t priority) {
  if (display_name.size() > kMaxDisplayNameBytes) {
    return Error::Field(
        Reason::kSpecInvalid, "display_name",
        absl::StrCat("has ", display_name.size(), " bytes; at most ", kMaxDisplayNameBytes));
  }
  if (priority < -kMaxPriority || priority > kMaxPriority) {
    return Error::Field(
        Reason::kSpecInvalid, "priority",
        absl::StrCat("must be between ", -kMaxPriority, " and ", kMaxPriority, ", got ", priority));
  }
  return absl::OkStatus();
}

int64_t DataRows(const State& state, const CreateJob& c) {
  int64_t rows = 0;
  for (const std::string& id : {c.dataset_id, c.eval_dataset_id}) {
    const auto it = state.datasets.find(id);
    if (it != state.datasets.end()) rows += it->second.rows;
  }
  return rows;
}

Answer DecideJob(Turn& turn, const CreateJob& c) {
  ASSIGN_OR_RETURN(const std::optional<std::string> repeat, FindRepeat(turn, c));
  if (repeat) return *repeat;
  RETURN_IF_ERROR(CheckCreate(turn.state, c));
  ASSIGN_OR_RETURN(const Parts parts,
                   FindParts(turn, c.model_id, c.dataset_id, c.eval_dataset_id));
  if (c.ahead != nullptr) turn.core.planner.Adopt(*c.ahead);
  const Planner::RememberedOnly only(turn.core.planner, c.plan_elsewhere);
  Job job;
  ASSIGN_OR_RETURN(job.spec, turn.core.planner.Resolve(c.spec, parts.model->config));
  RETURN_IF_ERROR(CheckDataFormat(job.spec, parts.dataset, parts.eval_dataset));
  job.spec.data_rows = DataRows(turn.state, c);
  job.recompute_left = job.spec.recompute == spec::Recompute::kAuto;
  ASSIGN_OR_RETURN(
      const spec::Recomputation recompute,
      turn.core.planner.ChooseRecompute(*parts.model, job.spec, KnownDevices(turn.state)));
  recompute.SetIn(job.spec);
  ASSIGN_OR_RETURN(job.spec.base_cache, turn.core.planner.ChooseBaseCache(
                                            *parts.model, job.spec, KnownDevices(turn.state)));
  job.id = c.job_id;
  job.uid = c.uid;
  job.tenant = c.tenant;
  job.number = turn.state.last_job_number + 1;
  job.display_name = c.display_name;
  job.labels = c.labels;
  job.priority = c.priority;
  job.user_spec = c.user_spec;
  job.model_id = c.model_id;
  job.dataset_id = c.dataset_id;
  job.eval_dataset_id = c.eval_dataset_id;
  job.request_id = c.request_id;
  job.body_sha256 = c.body_sha256;
  job.check_key = CheckKey(*parts.dataset, parts.eval_dataset, *parts.model, job.spec);
  job.plan_key = PlanKey(*parts.model, job.spec);
  RETURN_IF_ERROR(AdoptCheck(turn.state, job));
  RETURN_IF_ERROR(CheckCanFit(turn, job, *parts.model));
  turn.Emit(JobQueued{job.id, job});
  return c.job_id;
}

Answer DecideJob(Turn& turn, const ValidateDataset& c) {
  ASSIGN_OR_RETURN(const Parts parts,
                   FindParts(turn, c.model_id, c.dataset_id, c.eval_dataset_id));
  Job job;
  ASSIGN_OR_RETURN(job.spec, turn.core.planner.Resolve(c.spec, parts.model->config));
  RETURN_IF_ERROR(CheckDataFormat(job.spec, parts.dataset, parts.eval_dataset));
  job.tenant = parts.dataset->tenant;
  job.model_id = c.model_id;
  job.dataset_id = c.dataset_id;
  job.eval_dataset_id = c.eval_dataset_id;
  job.check_key = CheckKey(*parts.dataset, parts.eval_dataset, *parts.model, job.spec);
  const Job* known = FindCheck(turn.state, job.check_key);
  if (known != nullptr && IsAnswer(*known, turn.now)) return known->id;
  QueueCheck(turn, job);
  return std::get<JobQueued>(turn.events.back().body).job_id;
}

void QueueCheck(Turn& turn, const Job& job) {
  Job check;
  check.kind = JobKind::kCheck;
  check.number = turn.state.last_job_number + 1;
  // Several may be queued in one decision.
  for (const Event& event : turn.events) {
    if (std::holds_alternative<JobQueued>(event.body)) ++check.number;
  }
  check.id = absl::StrCat(kCheckPrefix, job.check_key.substr(0, 12), "-", check.number);
  check.uid = check.id;
  check.tenant = job.tenant;
  check.spec = job.spec;
  check.model_id = job.model_id;
  check.dataset_id = job.dataset_id;
  check.eval_dataset_id = job.eval_dataset_id;
  check.check_key = job.check_key;
  turn.Emit(JobQueued{check.id, check});
}

}  // namespace nibble::core
