#include "server/keeper.h"

#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "base/log.h"
#include "server/core/blob_references.h"
#include "server/core/check_id.h"

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

// Digests of blobs that are not pinned in the store, and how far the rows that refer to some were seen.
struct Sieve {
  std::unordered_set<std::string> left;
  core::BlobReferences references;
};

// Forgotten by the state, committed, deleted.
void CollectBlobs(Edge* edge, std::vector<std::string> candidates) {
  core::ForgetBlobs command{candidates};
  (void)edge->loop->Post(std::move(command), [edge, candidates = std::move(candidates)](
                                                 absl::Status status, const ControlLoop::Outcome& outcome) {
    if (!status.ok()) return;
    // What the state knows is referenced, or pinned there; the rest is nobody's.
    std::vector<std::string> nobodys;
    for (const std::string& sha256 : candidates) {
      if (!outcome.state.blobs.contains(sha256)) nobodys.push_back(sha256);
    }
    (void)edge->io->Post([edge, nobodys] { LogResult("blob.collected", edge->blobs->Remove(nobodys)); });
  });
}

// Takes out what is referred to, a part of the rows in each turn of the loop. What comes to be referred to
// meanwhile the decision finds.
void SiftBlobs(Edge* edge, std::shared_ptr<Sieve> sieve) {
  (void)edge->loop->Read([edge, sieve = std::move(sieve)](const ControlLoop::Outcome& outcome) {
    const auto take_out = [&](const std::string& sha256) { sieve->left.erase(sha256); };
    if (!sieve->references.Next(outcome.state, take_out)) return SiftBlobs(edge, sieve);
    if (!sieve->left.empty()) CollectBlobs(edge, {sieve->left.begin(), sieve->left.end()});
  });
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
  ExpireChecks();
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
    auto sieve = std::make_shared<Sieve>();
    sieve->left.insert(unpinned->begin(), unpinned->end());
    SiftBlobs(edge, std::move(sieve));
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

// Nobody sees them in a list, so nobody removes them, and their data may be long gone. What they have found
// stands in the jobs that asked; only those that have not ended are spared another reading.
void Keeper::ExpireChecks() {
  (void)edge_->loop->Read(
      [edge = edge_, retain_us = options_.retain_checks_us](const ControlLoop::Outcome& outcome) {
        int expired = 0;
        const auto& jobs = outcome.state.jobs;
        for (auto it = jobs.lower_bound(std::string(core::kCheckPrefix));
             it != jobs.end() && absl::StartsWith(it->first, core::kCheckPrefix); ++it) {
          const core::Job& job = it->second;
          if (!core::IsTerminal(job.state) || job.end_unix_us + retain_us > outcome.now.unix_us ||
              outcome.state.check_users.contains(job.check_key))
            continue;
          if (++expired > kMaxExpired) return;
          (void)edge->loop->Post(core::DeleteJob{job.id},
                                 [](const absl::Status&, const ControlLoop::Outcome&) {});
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
