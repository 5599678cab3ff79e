// nibble ps and get: jobs in a table, a line each.
#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/patience.h"
#include "client/report.h"
#include "client/submit.h"

namespace nibble::client {
namespace {

std::vector<std::string> JobRow(const Style& style, const v1::Job& job, int64_t now_us) {
  const v1::JobProgress& p = job.progress();
  std::string progress = "-";
  if (p.planned_steps() > 0) {
    progress = absl::StrCat(p.completed_steps(), "/", p.planned_steps());
  } else if (p.completed_steps() > 0) {
    progress = absl::StrCat(p.completed_steps());
  }
  return {ShortName(job.name()),
          StateText(style, job.state()),
          progress,
          p.has_loss() ? FormatLoss(p.loss()) : "-",
          job.plan().total_bytes() > 0 ? FormatBytes(job.plan().total_bytes()) : "-",
          job.worker().empty() ? "-" : ShortName(job.worker()),
          AgeText(job.create_time(), now_us)};
}

// `none`: what to say when there is nothing to show.
int PrintJobs(const Globals& g, const v1::ListJobsResponse& jobs, const char* none) {
  if (PrintMessage(g.terminal, jobs)) return kExitOk;
  if (g.terminal.form == Form::kName || g.quiet) {
    for (const auto& job : jobs.jobs()) PrintOut(ShortName(job.name()) + "\n");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "STATE", "STEP", "LOSS", "MEMORY", "WORKER", "CREATED"}};
  const int64_t now_us = RealClock::Get().NowUnixUs();
  for (const auto& job : jobs.jobs()) rows.push_back(JobRow(g.terminal.style, job, now_us));
  PrintOut(Table(rows, g.terminal.style, {2, 3, 4}));
  if (jobs.jobs_size() == 0) PrintNote(g.terminal, none);
  return kExitOk;
}

absl::StatusOr<std::vector<v1::JobState>> StatesOf(const std::vector<std::string>& names,
                                                   bool all) {
  std::vector<v1::JobState> wanted;
  for (const std::string& text : names) {
    v1::JobState state;
    if (!v1::JobState_Parse(absl::AsciiStrToUpper(text), &state)) {
      return Error::Field(Reason::kSpecInvalid, "--state",
                          absl::StrCat("has no \"", text,
                                       "\"; states are queued, "
                                       "starting, running, pausing, paused, cancelling, "
                                       "succeeded, failed, cancelled"))
          .ToStatus();
    }
    wanted.push_back(state);
  }
  if (wanted.empty() && !all) {
    wanted = {v1::QUEUED, v1::STARTING, v1::RUNNING, v1::PAUSING, v1::PAUSED, v1::CANCELLING};
  }
  return wanted;
}

// The list again and again, in place on a terminal, until Ctrl-C.
absl::StatusOr<int> WatchJobs(Client& client, const Globals& g,
                              const std::vector<v1::JobState>& states,
                              const std::map<std::string, std::string>& labels, int limit,
                              const char* none) {
  InstallInterrupt();
  Patience patience(client);
  while (!Interrupted()) {
    const absl::StatusOr<v1::ListJobsResponse> jobs = client.ListJobs(states, limit, labels);
    if (!jobs.ok()) {
      if (!IsAway(jobs.status()) || !patience.Again(jobs.status())) return jobs.status();
      continue;
    }
    patience.Reset();
    if (g.terminal.live) PrintOut("\x1b[H\x1b[2J");
    PrintJobs(g, *jobs, none);
    NoteWarning(g.terminal, client);
    if (!g.terminal.live) PrintOut("\n");
    for (int i = 0; i < 20 && !Interrupted(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
  return kExitOk;
}

}  // namespace

int ListCommand(const Globals& g, const ListArgs& args) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const std::vector<v1::JobState> states, StatesOf(args.states, args.all));
    ASSIGN_OR_RETURN(const auto labels, ParseLabels(args.labels));
    const char* none = !args.states.empty() ? "no jobs in these states"
                       : args.all           ? "no jobs yet; `nibble run recipe.yaml` submits one"
                                            : "no jobs; `nibble ps -a` shows finished ones too";
    if (!labels.empty())
      none = args.all ? "no jobs with these labels" : "no jobs with these labels; -a shows finished ones too";
    if (args.watch) return WatchJobs(client, g, states, labels, args.limit, none);
    ASSIGN_OR_RETURN(const v1::ListJobsResponse jobs, client.ListJobs(states, args.limit, labels));
    PrintJobs(g, jobs, none);
    if (args.limit > 0 && jobs.jobs_size() == args.limit && g.terminal.form == Form::kTable)
      PrintNote(g.terminal, absl::StrCat("the first ", args.limit, " (--limit 0 shows all)"));
    return kExitOk;
  });
}

int GetCommand(const Globals& g, const std::string& job) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Job found, client.GetJob(FullName("jobs", job)));
    if (PrintMessage(g.terminal, found)) return kExitOk;
    v1::ListJobsResponse one;
    *one.add_jobs() = found;
    PrintJobs(g, one, "");
    const std::string why = ReasonText(found);
    if (!why.empty() && !g.quiet && g.terminal.form == Form::kTable) PrintOut(Printable(why) + "\n");
    return kExitOk;
  });
}

}  // namespace nibble::client
