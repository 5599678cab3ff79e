#include "server/plan_desk.h"

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/views.h"

namespace nibble::server {
namespace {

// A fleet of this one card.
core::State Alone(const core::KnownCard& card) {
  core::State state;
  core::Worker& worker = state.workers[card.name];
  worker.id = card.name;
  core::Device& device = worker.devices["gpu0"];
  device.id = "gpu0";
  device.backend = "cuda";
  device.description = card.description;
  device.profile = core::CardProfile(card);
  device.capacity_bytes = device.profile.capacity_bytes;
  state.BuildIndexes();
  return state;
}

std::string CardNames() {
  std::string names;
  for (const core::KnownCard& card : core::KnownCards())
    absl::StrAppend(&names, names.empty() ? "" : ", ", card.name);
  return names;
}

// The device a plan is shown for: the one asked for, else the first that the job fits, else the first that
// takes it, else the first.
absl::StatusOr<const core::DeviceFit*> ShownFit(const PlanDesk::Answer& answer, const std::string& name) {
  const core::DeviceFit* chosen = nullptr;
  const auto rank = [](const core::DeviceFit& fit) {
    return !fit.refusal.ok() ? 2 : fit.shortfall_bytes > 0 ? 1 : 0;
  };
  for (const core::FitReport* report : {&answer.devices, &answer.cards}) {
    for (const core::DeviceFit& fit : report->fits) {
      if (!name.empty()) {
        if (fit.worker_id == name) return &fit;
        continue;
      }
      if (chosen == nullptr || rank(fit) < rank(*chosen)) chosen = &fit;
    }
  }
  if (chosen) return chosen;
  return Error::Field(Reason::kWorkerNotFound, "layout_worker",
                      absl::StrCat("names ", name.substr(0, 64), ", which is no worker and no known card (",
                                   CardNames(), ")"))
      .ToStatus();
}

// Where no device at all takes the job, worker's or card, it is the job that is wrong. Without workers the
// cards are no witnesses for processors.
absl::Status RefusedByAll(const PlanDesk::Answer& answer, const PlanDesk::Question& q,
                          core::Planner& planner) {
  absl::Status first;
  for (const core::FitReport* report : {&answer.devices, &answer.cards}) {
    for (const core::DeviceFit& fit : report->fits) {
      if (fit.refusal.ok()) return absl::OkStatus();
      first.Update(fit.refusal);
    }
  }
  if (!answer.devices.fits.empty()) return first;
  return planner.Plan(q.model, q.fit.spec, spec::DeviceProfile()).status();
}

}  // namespace

absl::Status PlanDesk::PlanCards(const Question& q, Answer& answer) {
  for (const core::KnownCard& card : core::KnownCards()) {
    RETURN_IF_ERROR(core::CheckWanted(q.fit));
    core::FitQuestion question = q.fit;
    // What a card must have; that a decoded base could be kept on it says nothing about that.
    if (question.spec.base_cache == spec::BaseCache::kAuto) {
      question.spec.base_cache = spec::BaseCache::kOff;
    }
    question.planned_steps = 0;
    if (question.any_recompute) {
      question.spec.recompute = spec::Recompute::kAuto;
      question.spec.keep_blocks = 0;
      ASSIGN_OR_RETURN(
          const spec::Recomputation recompute,
          core_.planner.ChooseRecompute(q.model, question.spec, {core::CardProfile(card)}));
      recompute.SetIn(question.spec);
    }
    ASSIGN_OR_RETURN(core::FitReport report, core::FitsOf(Alone(card), q.model, question, core_));
    report.fits[0].expected_start_us = 0;  // nobody has it
    answer.cards.fits.push_back(std::move(report.fits[0]));
    answer.card_specs.push_back(std::move(question.spec));
  }
  return absl::OkStatus();
}

std::vector<core::Counterfactual> PlanDesk::WhatWouldStart(
    const core::State& excerpt, const core::Job& job, const core::Model& model,
    const std::vector<core::DeviceExplanation>& devices, size_t limit) {
  std::lock_guard lock(mutex_);
  return core::WhatWouldStart(excerpt, job, model, devices, limit, core_);
}

absl::StatusOr<PlanDesk::Answer> PlanDesk::Plan(const core::State& excerpt, const Question& q) {
  std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(core::CheckWanted(q.fit));  // there may have been a line
  Answer answer;
  core::FitQuestion on_devices = q.fit;
  const std::vector<spec::DeviceProfile> known = core::KnownDevices(excerpt);
  ASSIGN_OR_RETURN(const spec::Recomputation recompute,
                   core_.planner.ChooseRecompute(q.model, on_devices.spec, known));
  recompute.SetIn(on_devices.spec);
  ASSIGN_OR_RETURN(on_devices.spec.base_cache,
                   core_.planner.ChooseBaseCache(q.model, on_devices.spec, known));
  answer.device_spec = on_devices.spec;
  ASSIGN_OR_RETURN(answer.devices, core::FitsOf(excerpt, q.model, on_devices, core_));
  RETURN_IF_ERROR(PlanCards(q, answer));
  RETURN_IF_ERROR(RefusedByAll(answer, q, core_.planner));
  ASSIGN_OR_RETURN(const core::DeviceFit* fit, ShownFit(answer, q.shown));
  spec::TrainSpec spec = answer.device_spec;
  spec::DeviceProfile profile;
  if (excerpt.workers.contains(fit->worker_id)) {
    profile = excerpt.workers.at(fit->worker_id).devices.at(fit->device_id).profile;
  }
  for (size_t i = 0; i < core::KnownCards().size(); ++i) {
    if (fit != &answer.cards.fits[i]) continue;
    profile = core::CardProfile(core::KnownCards()[i]);
    spec = answer.card_specs[i];
  }
  answer.shown_spec = spec;
  if (q.methods) {
    answer.methods_at = fit->worker_id;
    ASSIGN_OR_RETURN(answer.methods, core::CompareMethods(q.model, spec, profile, core_.planner));
  }
  if (q.layout) {
    ASSIGN_OR_RETURN(spec::MemoryPlan plan, spec::CompilePlan(q.model.config, spec, profile));
    answer.layout = Layout{fit->worker_id, fit->device_id, std::move(plan), fit->plan};
  }
  return answer;
}

}  // namespace nibble::server
