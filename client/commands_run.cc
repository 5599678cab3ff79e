// Recipes to jobs: run, submit, validate.
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/follow.h"
#include "client/interrupt.h"
#include "client/plan_report.h"
#include "client/report.h"
#include "client/watch.h"

namespace nibble::client {
namespace {

int PrintCreated(const Globals& g, const v1::Job& job) {
  if (PrintMessage(g.terminal, job)) return kExitOk;
  PrintOut(ShortName(job.name()) + "\n");
  return kExitOk;
}

}  // namespace

absl::StatusOr<std::string> AwaitDataReport(Client& client, const Globals& g,
                                            const v1::ValidateDatasetRequest& request) {
  const InterruptNote note(
      g.terminal, "stopped; a worker reads the data without us, and the same command asks for what it found");
  const Transient waiting(g.terminal, "a worker reads the data");
  const int64_t deadline_us = RealClock::Get().NowMonotonicUs() + int64_t{g.timeout_s} * 1'000'000;
  while (true) {
    const absl::StatusOr<v1::ValidateDatasetResponse> report = client.ValidateDataset(request);
    if (!report.ok()) return InRecipeWords(report.status());
    if (!report->pending()) return report->report_json();
    if (RealClock::Get().NowMonotonicUs() > deadline_us) return "";
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
}

int RunCommand(const Globals& g, const SubmitArgs& args, bool detach) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Job job, Submit(client, g.terminal, args));
    if (args.dry_run) {
      if (!PrintMessage(g.terminal, job)) PrintOut(JobText(job, g.terminal.style));
      return kExitOk;
    }
    PrintCreated(g, job);
    if (detach) return kExitOk;
    Terminal terminal = g.terminal;
    // With a machine-readable form stdout holds the job alone.
    if (terminal.form != Form::kTable) terminal.quiet = true;
    return FollowJob(client, terminal, job.name());
  });
}

int SubmitCommand(const Globals& g, const SubmitArgs& args) { return RunCommand(g, args, true); }

int ValidateCommand(const Globals& g, const SubmitArgs& args) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    SubmitArgs dry = args;
    dry.dry_run = true;
    ASSIGN_OR_RETURN(v1::Job job, Submit(client, g.terminal, dry));
    v1::PlanJobRequest plan_request;
    *plan_request.mutable_spec() = job.spec();
    const absl::StatusOr<v1::PlanJobResponse> plan = client.PlanJob(plan_request);
    if (!plan.ok()) PrintNote(g.terminal, absl::StrCat("no memory plan: ", plan.status().message()));
    const v1::DeviceFit* shown = plan.ok() ? ShownFit(*plan) : nullptr;
    if (shown != nullptr) *job.mutable_plan() = shown->plan();
    if (IsText(g)) {
      PrintOut(JobText(job, g.terminal.style, shown == nullptr ? "" : PlaceText(*shown)));
      if (plan.ok()) PrintOut(FitsText(*plan, g.terminal.style));
    }
    v1::ValidateDatasetRequest request;
    request.set_name(job.effective_spec().dataset().empty() ? job.spec().dataset()
                                                            : job.effective_spec().dataset());
    request.set_base_model(job.spec().base_model());
    *request.mutable_spec() = job.spec();
    ASSIGN_OR_RETURN(const std::string report, AwaitDataReport(client, g, request));
    if (report.empty()) {
      PrintNote(g.terminal,
                "the recipe is valid, the data not yet read: no worker has come to it within --call-timeout; "
                "ask again later");
      return kExitTimeout;
    }
    job.set_dataset_report_json(report);
    if (PrintMessage(g.terminal, job)) return kExitOk;
    PrintOut(DataReportText(report, g.terminal.style, &job.effective_spec()));
    PrintOut("the recipe is valid\n");
    return kExitOk;
  });
}

}  // namespace nibble::client
