// The worker's own /metrics: its loop, its engines, its link. Jobs are the server's to show.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/agent_loop.h"
#include "worker/server_link.h"

namespace nibble::worker {

class MetricsServer {
 public:
  virtual ~MetricsServer() = default;
};

// Serves until destroyed; `address` "" serves nothing. `work_dir` is whose disk is shown; `counts`
// must outlive it.
absl::StatusOr<std::unique_ptr<MetricsServer>> ServeMetrics(const std::string& address,
                                                            const WorkerIdentity& identity,
                                                            const std::string& work_dir,
                                                            const LoopCounts& counts);

}  // namespace nibble::worker
