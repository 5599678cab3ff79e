// The auditor: what must hold, judged from the outside.
//
// It knows what was acknowledged to users and reads the committed events and rows; it does not
// share code with the core but for CheckInvariants. The first violation ends the run.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "server/core/options.h"
#include "server/core/state.h"
#include "server/store/memory_store.h"
#include "tests/sim/world.h"

namespace nibble::sim {

class Checker {
 public:
  Checker(World* world, const core::CoreOptions& options, const store::MemoryStore* disk)
      : world_(*world), options_(options), disk_(*disk) {}

  // After every turn of the control loop.
  void AfterTurn(const core::State& state);
  // Acknowledged to a user.
  void CreateAcked(const std::string& request_id, const std::string& job_id);
  void CancelAcked(const std::string& job_id);
  void NumericsAllowed(const std::string& job_id) { numerics_allowed_.insert(job_id); }
  void DeleteSent(const std::string& job_id) { deleted_.insert(job_id); }
  // Bytes that are durable in the blob store.
  void BlobStored(const std::string& sha256, const std::string& content) {
    contents_[sha256] = content;
  }
  void BlobForgotten(const std::string& sha256) {
    contents_.erase(sha256);
    shown_.erase(sha256);
  }
  // A project was told that the server has what it sent.
  void ShownAcked(const std::string& sha256, const std::string& project) { shown_[sha256].insert(project); }
  // The server answered OK to a worker's report. Judged by the events up to the turn before.
  void ReportAccepted(const std::string& job_id, int64_t epoch, const std::string& kind,
                      int64_t step);
  // What is really on a device.
  void DeviceUsed(const std::string& host, int64_t bytes, int64_t capacity_bytes);
  // A watcher has seen this event.
  void Watched(const std::string& watcher, const core::EventRecord& record);
  // Server and workers will sleep for so long.
  void Sleeps(const core::State& state, int64_t slept_us);
  // Content of an adapter must be that of the last step.
  void ExpectResult(const std::string& job_id, const std::string& content) {
    results_[job_id] = content;
  }

  bool failed() const { return !violation_.empty(); }
  const std::string& violation() const { return violation_; }
  void Fail(const std::string& what);

 private:
  struct Audit {
    int64_t sequence = 0;
    int64_t epoch = 0;
    bool active = false;
    bool cancelled = false;  // a cancel was acknowledged
    core::JobState terminal = core::JobState::kUnspecified;
    std::map<int64_t, std::string> ended;         // epoch -> how
    std::set<std::pair<int64_t, int64_t>> saved;  // checkpoints: epoch, step
    std::set<int64_t> kept;                       // their steps, but for the dropped ones
  };
  void AuditEvents(const core::State& state);
  void AuditEvent(const core::EventRecord& record, const core::State& state);
  void AuditPlacement(const core::EventRecord& record, const Audit& audit,
                      const core::State& state);
  void CheckRows(const core::State& state);
  void CheckJobs(const core::State& state);

  World& world_;
  const core::CoreOptions options_;
  const store::MemoryStore& disk_;
  std::string violation_;
  std::map<std::string, Audit> jobs_;
  std::map<std::string, std::string> requests_;  // request id -> job
  std::set<std::string> acked_;
  std::set<std::string> deleted_;
  std::set<std::string> numerics_allowed_;
  std::map<std::string, std::string> contents_;
  std::map<std::string, std::set<std::string>> shown_;  // digest -> projects
  std::map<std::string, std::string> results_;
  std::map<std::string, int64_t> watched_;
  std::set<std::pair<std::string, std::string>> withdrawn_;  // worker, device
  std::set<std::string> full_;                               // workers that said that their disk is
  std::map<std::string, std::string> incarnations_;          // by worker
  std::map<std::string, int64_t> trusted_until_us_;  // by worker: whose lease cannot have run out before
  int64_t number_ = 0;
  int64_t turns_ = 0;
};

}  // namespace nibble::sim
