// One job: why it waits, what is known of it, its events, and what it can be told.
#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/follow.h"
#include "client/interrupt.h"
#include "client/report.h"
#include "client/watch.h"
#include "client/why_report.h"

namespace nibble::client {
namespace {

std::string EventLine(const Style& style, const v1::JobEvent& event) {
  return absl::StrCat(Paint(style, Ink::kDim, TimeText(ToUnixUs(event.time()))), "  ",
                      absl::StrFormat("%-20s", event.type()), "  ", Printable(event.message()), "\n");
}

}  // namespace

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
        const std::string id = ShortName(name);
        PrintOut(absl::StrCat(id, " ", state, "\n"));
        if (verb == Verb::kRemove && client.GetAdapter(FullName("adapters", id)).ok())
          PrintNote(g.terminal,
                    absl::StrCat("note: its adapter stays; nibble adapter rm ", id, " removes it"));
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

}  // namespace nibble::client
