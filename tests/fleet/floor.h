// The devices of a run: who works where, how fast, and in how many bytes. Policies act on it.
//
// Jobs on a device take turns. While their busy shares sum to at most one, each runs as if alone;
// beyond that all slow down alike. Bytes are counted here from the plans, not by the server's own
// bookkeeping: reserved as the policy reserves them, touched as the largest live set of the
// step is. A device that would hold more than it has is a violation and is counted, not prevented.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/fleet/workload.h"

namespace nibble::fleet {

// How a policy reserves bytes.
enum class Reserving {
  kWhole,     // one job per device
  kFifth,     // a process per job, a fifth on top of its plan
  kSeparate,  // a process per job, exactly its plan
  kShared,    // jobs of one base in one process: base + sum(persistent, host) + max(step)
};

// Bytes of a set of jobs on one device, by recipe: how many of each.
class Occupancy {
 public:
  Occupancy(const std::vector<core::PlanBytes>* plans, Reserving reserving)
      : plans_(plans), reserving_(reserving), count_(plans->size()) {}
  void Add(int32_t recipe);
  void Remove(int32_t recipe);
  int32_t jobs() const { return jobs_; }
  int32_t count(int32_t recipe) const { return count_[static_cast<size_t>(recipe)]; }
  int32_t bases() const;
  int64_t ReservedBytes(int64_t capacity_bytes) const;
  int64_t TouchedBytes() const;
  // Whether one more still fits, by bytes alone.
  bool Fits(int64_t capacity_bytes, int32_t recipe) const;
  int64_t AddedBytes(int64_t capacity_bytes, int32_t recipe) const;

 private:
  int64_t Bytes(int32_t recipe) const;  // what one more reserves

  const std::vector<core::PlanBytes>* plans_;
  Reserving reserving_;
  std::vector<int32_t> count_;
  int32_t jobs_ = 0;
  int64_t reserved_bytes_ = 0;  // of all but kWhole
};

struct JobRun {
  double done_us = 0;  // of its own time
  int32_t device = -1;
  int64_t ready_us = 0;  // its turns begin
  int64_t first_start_us = -1;
  int64_t end_us = -1;
  int32_t preemptions = 0;
  bool arrived = false;
  bool Runs() const { return device >= 0; }
};

// What happened over a run, summed over time.
struct Totals {
  double capacity_bytes_us = 0;
  double reserved_bytes_us = 0;
  double touched_bytes_us = 0;
  double busy_us = 0;                 // of device time
  double unallocated_backlog_us = 0;  // bytes x us not reserved while jobs waited
  double capacity_backlog_us = 0;     // bytes x us while jobs waited
  int64_t over_capacity = 0;          // times a device was asked for more than it has
  int64_t preemptions = 0;
  // Per hour and tenant; weights are the scenario's.
  struct Hour {
    std::vector<double> memory_us;  // bytes x us
    std::vector<double> device_us;
    bool backlogged = true;  // every tenant had a job waiting all the time
  };
  std::vector<Hour> hours;
};

class Floor {
 public:
  struct Device {
    int64_t capacity_bytes = 0;
    Occupancy occupancy;
    double speed = 1;
    std::set<int32_t> jobs;
    double busy_share = 0;  // sum over jobs whose turns have begun
    double rate = 1;        // of a job's pace alone there
    int64_t since_us = 0;   // done_us of its jobs is right up to here
    int64_t reserved_bytes = 0;
    int64_t touched_bytes = 0;
  };

  Floor(const Scenario* scenario, const Workload* workload, Reserving reserving);

  // Moves the clock; nothing ends in between (the driver asks NextUs first).
  void AdvanceTo(int64_t now_us);
  // When the first running job ends or begins its turns; kNeverUs when nothing runs.
  int64_t NextUs() const;
  // Jobs whose work is done now.
  std::vector<int32_t> Finished() const;

  void Arrive(int32_t job);
  // Takes its bytes now, and turns from start_us on.
  void Start(int32_t job, int32_t device, int64_t start_us);
  // Off its device; keeps whole steps.
  void Preempt(int32_t job);
  void End(int32_t job);

  int64_t now_us() const { return now_us_; }
  const Scenario& scenario() const { return scenario_; }
  const Workload& workload() const { return workload_; }
  const FleetJob& job(int32_t id) const { return workload_.jobs[static_cast<size_t>(id)]; }
  const JobRun& run(int32_t id) const { return runs_[static_cast<size_t>(id)]; }
  const Device& device(int32_t id) const { return devices_[static_cast<size_t>(id)]; }
  int32_t devices() const { return static_cast<int32_t>(devices_.size()); }
  const std::set<int32_t>& waiting() const { return waiting_; }
  int32_t unfinished() const { return unfinished_; }
  // Right at any time.
  int64_t StepsDone(int32_t job) const;
  double RemainingUs(int32_t job) const;
  const Totals& totals() const { return totals_; }

 private:
  void Settle(Device& device);
  void Refresh(Device& device);
  void Integrate(int64_t until_us);
  double DoneUs(int32_t job) const;

  const Scenario& scenario_;
  const Workload& workload_;
  int64_t now_us_ = 0;
  std::vector<Device> devices_;
  std::vector<JobRun> runs_;
  std::set<int32_t> waiting_;
  std::vector<int32_t> waiting_of_;  // by tenant
  int32_t unfinished_ = 0;
  double capacity_bytes_ = 0;
  // Sums over devices, kept as they change.
  double reserved_bytes_ = 0;
  double touched_bytes_ = 0;
  double busy_ = 0;
  std::vector<double> tenant_memory_;
  std::vector<double> tenant_device_;
  Totals totals_;
};

inline constexpr int64_t kNeverUs = INT64_MAX / 4;

}  // namespace nibble::fleet
