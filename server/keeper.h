// House-keeping: blobs nobody refers to, uploads nobody goes on with, jobs and lost workers past their
// retention, CHECKs of long ago, metrics of jobs that are gone (a crash may come between a job's end in the
// state and that of its metrics).
//
// Runs on the ticker and the I/O pool. Order for a blob: unpinned in the store, forgotten by the state and
// committed, only then deleted, and only if nobody has pinned it meanwhile. What is referred to is most of
// them, and is told apart a few rows at a time: the loop decides in between.
#pragma once

#include <cstdint>

#include "server/edge.h"

namespace nibble::server {

struct KeeperOptions {
  int64_t collect_us = int64_t{600} * 1'000'000;  // between two rounds
  int64_t retain_jobs_us = 0;                     // 0 = for ever
  int64_t retain_workers_us = 0;                  // lost ones, since they were last seen; 0 = for ever
  int64_t retain_checks_us = int64_t{30} * 86'400 * 1'000'000;  // of data that no job waits with; read anew
};

class Keeper {
 public:
  Keeper(Edge* edge, const KeeperOptions& options);
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;
  // One round, posted to the pool; for the ticker and for tests.
  void Round();

 private:
  void ExpireJobs();
  void ExpireChecks();
  void ExpireWorkers();

  Edge* edge_;
  const KeeperOptions options_;
  const int64_t tick_;
};

}  // namespace nibble::server
