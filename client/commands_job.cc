#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/follow.h"
#include "client/interrupt.h"
#include "client/patience.h"
#include "client/phases.h"
#include "client/plan_report.h"
#include "client/report.h"
#include "client/transfer.h"
#include "client/watch.h"
#include "client/why_report.h"

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

std::string EventLine(const Style& style, const v1::JobEvent& event) {
  return absl::StrCat(Paint(style, Ink::kDim, TimeText(ToUnixUs(event.time()))), "  ",
                      absl::StrFormat("%-20s", event.type()), "  ", Printable(event.message()), "\n");
}

int PrintCreated(const Globals& g, const v1::Job& job) {
  if (PrintMessage(g.terminal, job)) return kExitOk;
  PrintOut(ShortName(job.name()) + "\n");
  return kExitOk;
}

double MetricValue(const v1::MetricPoint& p, std::string_view name, bool& present) {
  present = true;
  if (name == "eval_loss") {
    present = p.has_eval_loss();
    return p.eval_loss();
  }
  // A point without tokens is an evaluation alone.
  present = p.tokens() > 0;
  if (name == "loss") return p.loss();
  if (name == "grad_norm") return p.gradient_norm();
  if (name == "learning_rate") return p.learning_rate();
  if (name == "tokens") return static_cast<double>(p.tokens());
  if (name == "tokens_per_second") {
    present = present && p.step_time_us() > 0;
    return present ? static_cast<double>(p.tokens()) * 1e6 / static_cast<double>(p.step_time_us())
                   : 0;
  }
  if (name == "used_bytes") return static_cast<double>(p.used_bytes());
  present = false;
  return 0;
}

constexpr std::string_view kMetricNames[] = {
    "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "used_bytes"};

absl::StatusOr<std::vector<std::string>> MetricNames(const std::string& text) {
  std::vector<std::string> names = absl::StrSplit(text, ',', absl::SkipEmpty());
  for (const std::string& name : names) {
    if (std::find(std::begin(kMetricNames), std::end(kMetricNames), name) ==
        std::end(kMetricNames)) {
      return Error::Field(Reason::kSpecInvalid, "--name",
                          absl::StrCat("has no \"", name,
                                       "\"; there are loss, eval_loss, grad_norm, "
                                       "learning_rate, tokens, tokens_per_second, used_bytes"))
          .ToStatus();
    }
  }
  return names;
}

void PrintMetricRows(const Globals& g, const v1::QueryMetricsResponse& metrics,
                     const std::vector<std::string>& names, bool csv) {
  std::vector<std::vector<std::string>> rows = {{csv ? "step" : "STEP"}};
  std::vector<int> right = {0};
  for (const std::string& name : names) {
    right.push_back(static_cast<int>(rows[0].size()));
    rows[0].push_back(csv ? name : absl::AsciiStrToUpper(name));
  }
  for (const auto& point : metrics.points()) {
    std::vector<std::string> row = {absl::StrCat(point.step())};
    bool any = false;
    for (const std::string& name : names) {
      bool present = false;
      const double value = MetricValue(point, name, present);
      any |= present;
      row.push_back(!present ? (csv ? "" : "-")
                    : csv    ? absl::StrFormat("%.9g", value)
                             : absl::StrFormat("%.6g", value));
    }
    if (any) rows.push_back(std::move(row));
  }
  if (!csv) return PrintOut(Table(rows, g.terminal.style, right));
  for (const auto& row : rows) PrintOut(absl::StrJoin(row, ",") + "\n");
}

bool IsText(const Globals& g) { return g.terminal.form == Form::kTable || g.terminal.form == Form::kName; }

// The job as it was when the wait was over goes to `ended`.
absl::StatusOr<int> WaitForOne(Client& client, const Globals& g, const std::string& name,
                               v1::JobState wanted, int64_t deadline_us, v1::Job* ended) {
  Patience patience(client);
  while (true) {
    const absl::StatusOr<v1::Job> found = client.GetJob(name);
    if (!found.ok()) {
      const bool in_time = deadline_us <= 0 || RealClock::Get().NowMonotonicUs() < deadline_us;
      if (!IsAway(found.status()) || !in_time || !patience.Again(found.status()))
        return found.status();
      continue;
    }
    patience.Reset();
    const v1::Job& job = *found;
    const bool reached =
        wanted == v1::JOB_STATE_UNSPECIFIED ? IsTerminal(job.state()) : job.state() == wanted;
    if (reached || IsTerminal(job.state())) {
      if (IsText(g)) PrintOut(absl::StrCat(ShortName(name), " ", v1::JobState_Name(job.state()), "\n"));
      if (job.state() == v1::FAILED) PrintNote(g.terminal, ReasonText(job));
      *ended = job;
      if (wanted != v1::JOB_STATE_UNSPECIFIED)
        return reached ? kExitOk : std::max<int>(kExitError, ExitCodeOf(job.state()));
      return ExitCodeOf(job.state());
    }
    if (deadline_us > 0 && RealClock::Get().NowMonotonicUs() >= deadline_us) {
      const std::string why = ReasonText(job);
      PrintNote(g.terminal, absl::StrCat(ShortName(name), " is still ", v1::JobState_Name(job.state()),
                                         why.empty() ? "" : absl::StrCat(": ", why)));
      *ended = job;
      return kExitTimeout;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
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

namespace {

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
                              const std::vector<v1::JobState>& states, int limit, const char* none) {
  InstallInterrupt();
  Patience patience(client);
  while (!Interrupted()) {
    const absl::StatusOr<v1::ListJobsResponse> jobs = client.ListJobs(states, limit);
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
    const char* none = !args.states.empty() ? "no jobs in these states"
                       : args.all           ? "no jobs yet; `nibble run recipe.yaml` submits one"
                                            : "no jobs; `nibble ps -a` shows finished ones too";
    if (args.watch) return WatchJobs(client, g, states, args.limit, none);
    ASSIGN_OR_RETURN(const v1::ListJobsResponse jobs, client.ListJobs(states, args.limit));
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

int WhyCommand(const Globals& g, const std::string& job, int max_devices) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::ExplainJobResponse why,
                     client.ExplainJob(FullName("jobs", job), max_devices));
    if (PrintMessage(g.terminal, why)) return kExitOk;
    PrintOut(WhyText(why, RealClock::Get().NowUnixUs(), g.terminal.style));
    return kExitOk;
  });
}

int DescribeCommand(const Globals& g, const std::string& job) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    const std::string name = FullName("jobs", job);
    ASSIGN_OR_RETURN(const v1::Job found, client.GetJob(name));
    if (PrintMessage(g.terminal, found)) return kExitOk;
    PrintOut(JobText(found, g.terminal.style));
    if (!found.dataset_report_json().empty())
      PrintOut(DataReportText(found.dataset_report_json(), g.terminal.style));
    ASSIGN_OR_RETURN(const v1::ListJobEventsResponse events, client.ListJobEvents(name));
    PrintOut(Paint(g.terminal.style, Ink::kBold, "events") + "\n");
    for (const auto& event : events.events()) PrintOut("  " + EventLine(g.terminal.style, event));
    return kExitOk;
  });
}

int WatchCommand(const Globals& g, const std::string& job) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    return FollowJob(client, g.terminal, FullName("jobs", job));
  });
}

int EventsCommand(const Globals& g, const std::string& job, bool follow) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    const std::string name = FullName("jobs", job);
    ASSIGN_OR_RETURN(const v1::ListJobEventsResponse events, client.ListJobEvents(name));
    if (!follow && PrintMessage(g.terminal, events)) return kExitOk;
    // A document that grows is none: with -o json each event is one, in a line of its own.
    const auto print = [&](const v1::JobEvent& event) {
      std::string json;
      if (IsText(g) || !google::protobuf::util::MessageToJsonString(event, &json).ok()) {
        PrintOut(EventLine(g.terminal.style, event));
      } else {
        PrintOut(json + "\n");
      }
    };
    JobWatch::Options options;
    for (const auto& event : events.events()) {
      print(event);
      options.after_sequence = event.sequence();
    }
    if (!follow) return kExitOk;
    const InterruptNote note(g.terminal, "stopped looking; " + ShortName(name) + " goes on");
    RETURN_IF_ERROR(JobWatch(client, name, options).Run([&](const v1::WatchJobResponse& update) {
      if (update.has_event()) print(update.event());
      return true;
    }));
    return kExitOk;
  });
}

int MetricsCommand(const Globals& g, const MetricsArgs& args) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, MetricNames(args.names));
    v1::QueryMetricsRequest request;
    request.set_name(FullName("jobs", args.job));
    request.set_max_points(args.max_points);
    ASSIGN_OR_RETURN(const v1::QueryMetricsResponse metrics, client.QueryMetrics(request));
    if (!args.plot && !args.csv && PrintMessage(g.terminal, metrics)) return kExitOk;
    if (args.phases) {
      const std::string view = PhaseView(metrics, g.terminal.style);
      if (view.empty()) PrintNote(g.terminal, "no step has said where its time went");
      PrintOut(view);
      return kExitOk;
    }
    if (!args.plot) {
      PrintMetricRows(g, metrics, names, args.csv);
      return kExitOk;
    }
    std::vector<Series> series;
    for (const std::string& name : names) {
      Series s{name, {}, {}};
      for (const auto& point : metrics.points()) {
        bool present = false;
        const double value = MetricValue(point, name, present);
        if (!present) continue;
        s.x.push_back(static_cast<double>(point.step()));
        s.y.push_back(value);
      }
      if (!s.x.empty()) series.push_back(std::move(s));
    }
    const auto lines = Plot(series, std::min(g.terminal.columns, 100), 14, g.terminal.style);
    if (lines.empty()) PrintNote(g.terminal, "nothing to plot yet");
    for (const std::string& line : lines) PrintOut(line + "\n");
    return kExitOk;
  });
}

int VerbCommand(const Globals& g, Verb verb, const std::vector<std::string>& jobs) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    int worst = kExitOk;
    v1::ListJobsResponse changed;
    for (const std::string& text : jobs) {
      const std::string name = FullName("jobs", text);
      absl::StatusOr<v1::Job> job = v1::Job();
      switch (verb) {
        case Verb::kCancel:
          job = client.CancelJob(name);
          break;
        case Verb::kPause:
          job = client.PauseJob(name);
          break;
        case Verb::kResume:
          job = client.ResumeJob(name);
          break;
        case Verb::kRemove: {
          const absl::Status status = client.DeleteJob(name);
          if (!status.ok()) job = status;
          break;
        }
      }
      if (!job.ok()) {
        worst = std::max(worst, PrintError(g.terminal, job.status()));
        continue;
      }
      if (verb != Verb::kRemove) *changed.add_jobs() = *job;
      if (!g.quiet && IsText(g)) {
        const std::string state =
            verb == Verb::kRemove ? "removed" : v1::JobState_Name(job->state());
        PrintOut(absl::StrCat(ShortName(name), " ", state, "\n"));
      }
    }
    (void)PrintMessage(g.terminal, changed);
    return worst;
  });
}

int UpdateCommand(const Globals& g, const UpdateArgs& args) {
  if (!args.priority && !args.allow_numerics_change) {
    return PrintError(g.terminal, Error::Field(Reason::kSpecInvalid, "update",
                                               "needs --priority N or --allow-numerics-change")
                                      .ToStatus());
  }
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    v1::UpdateJobRequest request;
    request.mutable_job()->set_name(FullName("jobs", args.job));
    if (args.priority) {
      request.mutable_job()->set_priority(*args.priority);
      request.mutable_update_mask()->add_paths("priority");
    }
    if (args.allow_numerics_change) {
      request.mutable_job()->mutable_spec()->mutable_training()->set_allow_numerics_change(true);
      request.mutable_update_mask()->add_paths("spec.training.allow_numerics_change");
    }
    ASSIGN_OR_RETURN(const v1::Job updated, client.UpdateJob(request));
    if (PrintMessage(g.terminal, updated) || g.quiet) return kExitOk;
    const std::string name = ShortName(updated.name());
    if (args.priority) PrintOut(absl::StrCat(name, " has priority ", updated.priority(), "\n"));
    if (args.allow_numerics_change)
      PrintOut(absl::StrCat(name, " may go on where numerics are other than where it began\n"));
    return kExitOk;
  });
}

int WaitCommand(const Globals& g, const std::vector<std::string>& jobs, const std::string& state,
                int timeout_s) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    v1::JobState wanted = v1::JOB_STATE_UNSPECIFIED;
    const std::string name = absl::StartsWith(state, "state=") ? state.substr(6) : state;
    if (!name.empty() && !v1::JobState_Parse(absl::AsciiStrToUpper(name), &wanted)) {
      return Error::Field(Reason::kSpecInvalid, "--for",
                          absl::StrCat("must be state=STATE, got \"", state, "\""))
          .ToStatus();
    }
    const InterruptNote note(g.terminal, "stopped waiting; the jobs go on");
    const int64_t deadline_us =
        timeout_s > 0 ? RealClock::Get().NowMonotonicUs() + int64_t{timeout_s} * 1'000'000 : 0;
    int worst = kExitOk;
    v1::ListJobsResponse ended;
    for (const std::string& job : jobs) {
      ASSIGN_OR_RETURN(const int code,
                       WaitForOne(client, g, FullName("jobs", job), wanted, deadline_us, ended.add_jobs()));
      worst = std::max(worst, code);
    }
    (void)PrintMessage(g.terminal, ended);
    return worst;
  });
}

int CheckpointsCommand(const Globals& g, const std::string& job) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse list,
                     client.ListCheckpoints(FullName("jobs", job)));
    if (PrintMessage(g.terminal, list)) return kExitOk;
    std::vector<std::vector<std::string>> rows = {{"STEP", "ATTEMPT", "LOSS", "SIZE", "SAVED"}};
    for (const auto& c : list.checkpoints()) {
      rows.push_back({absl::StrCat(c.step()), absl::StrCat(c.epoch()), FormatLoss(c.loss()),
                      FormatBytes(c.size_bytes()), TimeText(ToUnixUs(c.create_time()))});
    }
    PrintOut(Table(rows, g.terminal.style, {0, 1, 2, 3}));
    return kExitOk;
  });
}

int DownloadCommand(const Globals& g, const std::string& job, const std::string& directory) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    std::string adapter = job;
    if (!absl::StartsWith(job, "adapters/")) {
      ASSIGN_OR_RETURN(const v1::Job found, client.GetJob(FullName("jobs", job)));
      if (found.adapter().empty()) {
        const std::string name = ShortName(found.name()), why = ReasonText(found);
        const bool over = IsTerminal(found.state());
        return Error(Reason::kArtifactNotReady,
                     absl::StrCat(name, " is ", v1::JobState_Name(found.state()),
                                  why.empty() ? "" : absl::StrCat(" (", why, ")"),
                                  over ? "; it has no adapter"
                                       : absl::StrCat("; its adapter can be downloaded once it has "
                                                      "SUCCEEDED (nibble wait ", name, ")")))
            .ToStatus();
      }
      adapter = found.adapter();
    }
    ASSIGN_OR_RETURN(const v1::Adapter found, client.GetAdapter(adapter));
    const std::string target = directory.empty() ? ShortName(job) + "-adapter" : directory;
    {
      const InterruptNote note(g.terminal,
                               absl::StrCat("stopped; what has come is kept in ", target,
                                            ", and the same command goes on from there"));
      ByteProgress progress(g.terminal, absl::StrCat("downloading ", ShortName(adapter)));
      RETURN_IF_ERROR(DownloadAdapter(
          client, found, target, [&](int64_t done, int64_t total) { progress.Show(done, total); }));
    }
    if (PrintMessage(g.terminal, found)) return kExitOk;
    int64_t total = 0;
    for (const auto& file : found.files()) total += file.size_bytes();
    PrintOut(absl::StrCat(target, "\n"));
    PrintNote(g.terminal, absl::StrCat(found.files_size(), " files, ", FormatBytes(total),
                                       ", digests verified"));
    PrintNote(g.terminal, "try it:");
    const std::string config = ReadFile(absl::StrCat(target, "/adapter_config.json")).value_or("");
    for (const absl::string_view line :
         absl::StrSplit(AdapterUses(target, ShortName(adapter), config), '\n', absl::SkipEmpty())) {
      PrintNote(g.terminal, absl::StrCat("  ", line));
    }
    return kExitOk;
  });
}

}  // namespace nibble::client
