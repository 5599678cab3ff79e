// The whole server: what it owns, in what order it starts and in what order it stops.
//
// Start: options checked, data directory locked, secret, stores, blobs, loop, services, ports, and only
// then run/server.json. Stop: readiness off, watchers cut with where to go on, held calls answered, gRPC
// shut down, pool and loop emptied. Start and Stop from one thread; a Server stops when it is destroyed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/blob_store.h"
#include "server/core/options.h"
#include "server/meter.h"

namespace nibble::server {

struct ServerOptions {
  std::string data_dir;
  std::string listen = "127.0.0.1:7070";
  std::string http_listen = "127.0.0.1:7071";  // "" = no HTTP
  std::string model_root;                      // "" = no paths
  std::string tls_cert;                        // PEM files; all "" = no TLS
  std::string tls_key;
  std::string client_ca;
  bool reflection = false;                     // on for loopback in any case
  bool in_memory = false;                      // keeps nothing but blobs; for tests
  core::CoreOptions core;
  MeterOptions meter;
  BlobStoreOptions blobs;
  int64_t tick_us = 1'000'000;
  int64_t heartbeat_us = 15'000'000;
  int64_t certificate_refresh_us = 10'000'000;     // between two looks at the files of TLS
  int64_t collect_us = int64_t{600} * 1'000'000;   // between two collections of unused blobs
  int64_t retain_jobs_us = 0;                      // terminal jobs are deleted after this; 0 = never
  int64_t retain_workers_us = 0;                   // lost workers are forgotten after this; 0 = never
  int64_t retain_events_us = int64_t{90} * 86'400 * 1'000'000;  // 0 = for ever
  std::function<void()> on_fatal;                  // the database is lost: end the process
};

// Lease times from one number: lost after this long, suspect after a third, calls held for a sixth.
void SetLease(int64_t lease_us, core::CoreOptions* core);

class Server {
 public:
  virtual ~Server() = default;
  virtual int port() const = 0;
  virtual int http_port() const = 0;
  // Graceful: calls in flight get grace_us to end.
  virtual void Stop(int64_t grace_us) = 0;
};

absl::StatusOr<std::unique_ptr<Server>> StartServer(ServerOptions options);

}  // namespace nibble::server
