// All the server knows, and the indexes derived from it.
//
// Ordered containers only; copied by value in tests. Changed by Apply alone, read by everyone on
// the loop's thread. `touched` names the rows that changed since it was last taken: what Commit
// writes.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/flat_set.h"
#include "server/core/options.h"
#include "server/core/schedule_board.h"
#include "server/core/types.h"

namespace nibble::core {

using AttemptKey = std::pair<std::string, int64_t>;      // job, epoch
using RequestKey = std::pair<std::string, std::string>;  // tenant, request_id

// Keys of rows to write again, or to remove when the state no longer has them.
struct Touched {
  bool meta = false;
  std::set<std::string> jobs, workers, datasets, models, adapters, blobs;
  std::set<AttemptKey> attempts;
  std::set<RequestKey> requests;
  std::set<std::string> specs;  // of `jobs`: what they were created with has changed, too
  // Workers whose row is out of date in when they were last seen, by minutes: written with the next
  // commit, and no reason for one.
  std::set<std::string> seen;
  bool Empty() const {
    return !meta && jobs.empty() && workers.empty() && datasets.empty() && models.empty() &&
           adapters.empty() && blobs.empty() && attempts.empty() && requests.empty();
  }
};

// All registered devices that are alike.
struct DeviceKind {
  spec::DeviceProfile profile;  // capacity as registered
  std::set<std::pair<std::string, std::string>> devices;  // worker, device
};

struct State {
  // Rows.
  std::string timeline;
  int64_t generation = 0;
  int64_t last_job_number = 0;
  int64_t last_event_number = 0;
  std::map<std::string, Job> jobs;
  std::map<std::string, Worker> workers;
  std::map<std::string, Dataset> datasets;
  std::map<std::string, Model> models;
  std::map<std::string, Adapter> adapters;
  std::map<std::string, Blob> blobs;
  std::map<RequestKey, RequestRecord> requests;

  // Derived; BuildIndexes makes them from the rows.
  std::set<std::string> live_jobs;  // not terminal
  std::set<std::string> queued_jobs;
  std::map<std::string, FlatSet<AttemptKey>> holding;          // worker -> attempts that hold bytes
  std::map<std::string, std::string> checks;                   // CheckKey -> newest check job
  std::map<std::string, std::set<std::string>> model_users;    // model -> live jobs
  std::map<std::string, std::set<std::string>> dataset_users;  // data set -> live jobs
  std::set<std::string> queued_checks;                         // CHECK jobs that wait
  std::set<std::string> cancelling_jobs;
  std::map<std::string, std::set<std::string>> check_users;    // CheckKey -> live TRAIN jobs
  std::map<std::string, std::set<std::string>> unread;  // CheckKey nobody has read -> queued jobs
  std::map<std::string, int32_t> checks_held;    // worker -> CHECK attempts it holds
  // Of jobs that are gone, the oldest first: what may be forgotten once it is old enough.
  std::set<std::pair<int64_t, RequestKey>> requests_by_age;
  std::map<int64_t, std::string> jobs_by_number;  // TRAIN jobs, the newest last
  std::array<int64_t, kJobStateCount> job_counts{};  // TRAIN jobs by state
  std::map<std::string, DeviceKind> device_kinds;  // by profile and capacity
  Board board;  // what the scheduler looks at

  // Volatile.
  // By plan_key and speed of the device: of jobs with that plan on such devices.
  std::map<std::string, std::map<int64_t, Learned>> learned;
  std::map<std::string, int32_t> learned_loads;  // by model: load of the last one measured
  int64_t picos_per_work = 0;                    // of the last step measured anywhere,
  int64_t picos_mflops = 0;                      // on a device so fast
  bool rollback_suspected = false;
  // The highest revision that a worker which is gone was told of. Who registers, or comes back because its
  // deletion was never written, begins above it.
  int64_t gone_revision = 0;
  // Workers whose desired set may have changed; taken by who holds their calls.
  std::set<std::string> revised;
  Touched touched;

  const Job* FindJob(std::string_view id) const;
  const Worker* FindWorker(std::string_view id) const;
  const Attempt* FindAttempt(const AttemptKey& key) const;
  const Model* ModelOf(const Job& job) const;

  // Keep device_kinds.
  void ListDevices(const Worker& worker);
  void UnlistDevices(const Worker& worker);
  // After the rows were loaded.
  void BuildIndexes();
  // Everything that must hold between any two commands; the first violation, in words.
  absl::Status CheckInvariants(const CoreOptions& options) const;
};

// The job that this request made; nullptr when it is gone, also where another has its id now.
const Job* JobMadeBy(const State& state, const RequestRecord& record);
// Changes with every durable change of the job.
std::string Etag(const Job& job);
// What an attempt's writes must carry: HMAC over timeline, job, epoch, worker and incarnation.
std::string AttemptToken(const CoreOptions& options, const State& state, std::string_view job_id,
                         int64_t epoch, std::string_view worker_id, std::string_view incarnation);
// By the age of its last renewal.
WorkerHealth HealthOf(const Worker& worker, const CoreOptions& options, int64_t now_us);
// What the desired set of a worker begins with that the state does not know.
int64_t RevisionOfNew(const State& state);
// A job that waits and whose data no CHECK has read or is to read.
bool IsUnread(const State& state, const Job& job);
// Digests that rows refer to: never to be collected.
std::set<std::string> ReferencedBlobs(const State& state);

}  // namespace nibble::core
