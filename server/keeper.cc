#include "server/keeper.h"

#include <string>
#include <utility>
#include <vector>

#include "base/log.h"

namespace nibble::server {
namespace {

// Jobs deleted in one round: users' calls wait in the same mailbox.
constexpr int kMaxExpired = 1'000;
constexpr int64_t kJobsAtOnce = 1'000;

void LogResult(const char* event, const absl::StatusOr<CollectResult>& result) {
  if (!result.ok()) {
    LogWarning("blob.collect_failed", {{"status", std::string(result.status().ToString())}});
  } else if (result->blobs_removed + result->uploads_removed > 0) {
    LogInfo(event, {{"blobs", result->blobs_removed},
                    {"uploads", result->uploads_removed},
                    {"bytes", result->bytes_removed}});
  }
}

// Pool, loop, pool, some jobs at a time: the ids that have metrics, those the state does not know, away with
// them. Who takes such an id meanwhile has no steps yet.
void DropStrayMetrics(Edge* edge, std::string after) {
  (void)edge->io->Post([edge, after = std::move(after)] {
    auto ids = edge->metrics->JobIds(after, kJobsAtOnce);
    if (!ids.ok() || ids->empty()) return;
    (void)edge->loop->Read([edge, ids = *std::move(ids)](const ControlLoop::Outcome& outcome) {
      std::vector<std::string> stray;
      for (const std::string& id : ids) {
        if (outcome.state.FindJob(id) == nullptr) stray.push_back(id);
      }
      if (!stray.empty()) {
        (void)edge->io->Post([edge, stray] {
          for (const std::string& id : stray) (void)edge->metrics->DeleteJob(id);
          LogInfo("metrics.strays_dropped", {{"jobs", static_cast<int64_t>(stray.size())}});
        });
      }
      if (static_cast<int64_t>(ids.size()) == kJobsAtOnce) DropStrayMetrics(edge, ids.back());
    });
  });
}

}  // namespace

Keeper::Keeper(Edge* edge, const KeeperOptions& options)
    : edge_(edge), options_(options), tick_(edge->ticker->Add(options.collect_us, [this] { Round(); })) {}

Keeper::~Keeper() { edge_->ticker->Remove(tick_); }

// What finds no room now is done in the next round.
void Keeper::Round() {
  if (options_.retain_jobs_us > 0) ExpireJobs();
  DropStrayMetrics(edge_, "");
  if (options_.retain_workers_us > 0) ExpireWorkers();
  (void)edge_->io->Post([edge = edge_] {
    LogResult("blob.collected", edge->blobs->SweepUploads());
    auto unpinned = edge->blobs->Unpinned();
    if (!unpinned.ok()) {
      LogWarning("blob.collect_failed", {{"status", std::string(unpinned.status().ToString())}});
      return;
    }
    if (unpinned->empty()) return;
    core::ForgetBlobs command{*unpinned};
    (void)edge->loop->Post(std::move(command), [edge, candidates = *std::move(unpinned)](
                                                   absl::Status status, const ControlLoop::Outcome& outcome) {
      if (!status.ok()) return;
      // What the state knows is referenced, or pinned there; the rest is nobody's.
      std::vector<std::string> nobodys;
      for (const std::string& sha256 : candidates) {
        if (!outcome.state.blobs.contains(sha256)) nobodys.push_back(sha256);
      }
      (void)edge->io->Post([edge, nobodys] { LogResult("blob.collected", edge->blobs->Remove(nobodys)); });
    });
  });
}

void Keeper::ExpireJobs() {
  (void)edge_->loop->Read(
      [edge = edge_, retain_us = options_.retain_jobs_us](const ControlLoop::Outcome& outcome) {
        int expired = 0;
        for (const auto& [id, job] : outcome.state.jobs) {
          if (!core::IsTerminal(job.state) || job.end_unix_us + retain_us > outcome.now.unix_us)
            continue;
          if (++expired > kMaxExpired) return;
          (void)edge->loop->Post(core::DeleteJob{id}, [edge, id = id](absl::Status status,
                                                                      const ControlLoop::Outcome&) {
            if (!status.ok()) return;
            (void)edge->io->Post([edge, id] { (void)edge->metrics->DeleteJob(id); });
          });
        }
      });
}

// As by `nibble worker rm`: one that has come back meanwhile is refused there.
void Keeper::ExpireWorkers() {
  (void)edge_->loop->Read(
      [edge = edge_, retain_us = options_.retain_workers_us](const ControlLoop::Outcome& outcome) {
        for (const auto& [id, worker] : outcome.state.workers) {
          if (!worker.lost || worker.lost_unix_us + retain_us > outcome.now.unix_us) continue;
          (void)edge->loop->Post(core::DeleteWorker{id}, [id = id](absl::Status status,
                                                                   const ControlLoop::Outcome&) {
            if (status.ok()) LogInfo("worker.forgotten", {{"worker", id}});
          });
        }
      });
}

}  // namespace nibble::server
