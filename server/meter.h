// What Prometheus sees of a server.
//
// Counters and histograms are fed where things happen; everything else (jobs, workers, disks) is read when
// somebody scrapes, from the control loop's state, so it cannot drift. A job has series while it is live
// and job_linger_us after its end, where live ones leave room; beyond max_job_series live jobs the youngest
// have none, which is counted.
// Thread-safe. The header includes no library: prometheus-cpp stays in the .cc file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "server/core/event_record.h"
#include "server/core/state.h"

namespace nibble {
class ControlLoop;
class WatchHub;
}  // namespace nibble

namespace nibble::server {

class Authorizer;
class BlobStore;
class ServerCertificate;

struct MeterOptions {
  int64_t job_linger_us = int64_t{300} * 1'000'000;
  int32_t max_job_series = 100;
};

class Meter {
 public:
  Meter(const MeterOptions& options, const Clock* clock);
  ~Meter();

  // What a scrape asks. All may be null, and must not end before the last Scrape.
  struct Sources {
    ControlLoop* loop = nullptr;
    const WatchHub* hub = nullptr;
    BlobStore* blobs = nullptr;
    const Authorizer* authorizer = nullptr;
    std::string data_dir;
    std::string model_root;
    int64_t reserved_bytes = 0;  // of the data directory's volume; no upload may leave less
    const ServerCertificate* certificate = nullptr;  // null = without TLS
  };
  void SetSources(Sources sources);

  // After each commit, on the loop's thread.
  void OnCommit(const std::vector<core::EventRecord>& records, const core::State& state);
  void OnProgress(const std::string& job_id);
  void OnPlacementPass(int64_t duration_us);
  void OnDatabase(std::string_view operation, int64_t duration_us, bool failed);
  void OnArtifact(std::string_view operation, int64_t duration_us, bool failed);
  void OnDatasetChecked(bool good);

  void OnCallStarted(std::string_view type, std::string_view method);
  void OnCallHandled(std::string_view type, std::string_view method, std::string_view code,
                     int64_t duration_us);
  void OnMessage(std::string_view type, std::string_view method, bool received);

  // The text exposition format.
  std::string Scrape();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server
