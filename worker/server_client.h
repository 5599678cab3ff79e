// ServerLink over gRPC: one channel at a time, reconnecting within 5 s, pinging while calls are out.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/server_link.h"

namespace nibble::worker {

struct ServerClientOptions {
  std::string server = "127.0.0.1:7070";  // "https://..." or a ca_file ask for TLS
  std::string token;
  std::string ca_file;  // read again while the server cannot be reached
  int64_t call_timeout_ms = 10'000;
  int64_t synchronize_timeout_ms = 25'000;  // the server holds it 10 s at most
};

absl::StatusOr<std::unique_ptr<ServerLink>> ConnectToServer(ServerClientOptions options,
                                                            WorkerIdentity identity);

}  // namespace nibble::worker
