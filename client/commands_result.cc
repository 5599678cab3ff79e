// What comes of jobs: waiting for it, checkpoints, the adapter.
#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/patience.h"
#include "client/report.h"
#include "client/transfer.h"
#include "client/watch.h"

namespace nibble::client {
namespace {

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

// The adapter that a job of that name has made, or one named in full.
absl::StatusOr<v1::Adapter> AdapterOf(Client& client, const std::string& job) {
  if (absl::StartsWith(job, "adapters/")) return client.GetAdapter(job);
  const absl::StatusOr<v1::Job> found = client.GetJob(FullName("jobs", job));
  if (StatusReason(found.status()) == Reason::kJobNotFound) {
    // It outlives its job, under the same name.
    auto adapter = client.GetAdapter(FullName("adapters", ShortName(job)));
    return adapter.ok() ? adapter : found.status();
  }
  RETURN_IF_ERROR(found.status());
  if (!found->adapter().empty()) return client.GetAdapter(found->adapter());
  const std::string name = ShortName(found->name()), why = ReasonText(*found);
  return Error(Reason::kArtifactNotReady,
               absl::StrCat(name, " is ", v1::JobState_Name(found->state()),
                            why.empty() ? "" : absl::StrCat(" (", why, ")"),
                            IsTerminal(found->state())
                                ? "; it has no adapter"
                                : absl::StrCat("; its adapter can be downloaded once it has SUCCEEDED "
                                               "(nibble wait ",
                                               name, ")")))
      .ToStatus();
}

}  // namespace

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
    ASSIGN_OR_RETURN(const v1::Adapter found, AdapterOf(client, job));
    const std::string& adapter = found.name();
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
