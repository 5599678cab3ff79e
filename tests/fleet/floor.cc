#include "tests/fleet/floor.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace nibble::fleet {
namespace {

// The step region's largest live set; what a run really has in use at its peak.
int64_t LiveStepBytes(const core::PlanBytes& plan) {
  return plan.step_bytes - (plan.TotalBytes() - plan.lower_bound_bytes);
}

// What each job of a base adds for itself on the device.
int64_t OwnBytes(const core::PlanBytes& plan) {
  return plan.TotalBytes() - plan.fixed_bytes - plan.base_bytes - plan.step_bytes;
}

}  // namespace

int32_t Occupancy::bases() const {
  return static_cast<int32_t>(
      std::count_if(count_.begin(), count_.end(), [](int32_t n) { return n > 0; }));
}

void Occupancy::Add(int32_t recipe) {
  reserved_bytes_ += Bytes(recipe);
  ++count_[static_cast<size_t>(recipe)];
  ++jobs_;
}

void Occupancy::Remove(int32_t recipe) {
  --count_[static_cast<size_t>(recipe)];
  --jobs_;
  reserved_bytes_ -= Bytes(recipe);
}

// Jobs of one recipe have equal step regions, so the largest is that of the first.
int64_t Occupancy::Bytes(int32_t recipe) const {
  const core::PlanBytes& p = (*plans_)[static_cast<size_t>(recipe)];
  const int64_t total = p.TotalBytes();
  if (reserving_ == Reserving::kFifth) return total + total / 5;
  if (reserving_ == Reserving::kShared && count(recipe) > 0)
    return OwnBytes(p);
  return total;
}

int64_t Occupancy::ReservedBytes(int64_t capacity_bytes) const {
  return reserving_ == Reserving::kWhole ? jobs_ * capacity_bytes : reserved_bytes_;
}

int64_t Occupancy::TouchedBytes() const {
  int64_t bytes = 0;
  for (size_t i = 0; i < count_.size(); ++i) {
    const core::PlanBytes& p = (*plans_)[i];
    if (count_[i] == 0) continue;
    const int64_t bases = reserving_ == Reserving::kShared ? 1 : count_[i];
    bytes += bases * (p.fixed_bytes + p.base_bytes + LiveStepBytes(p)) +
             count_[i] * OwnBytes(p);
  }
  return bytes;
}

bool Occupancy::Fits(int64_t capacity_bytes, int32_t recipe) const {
  const int64_t total = (*plans_)[static_cast<size_t>(recipe)].TotalBytes();
  if (reserving_ == Reserving::kWhole) return jobs_ == 0 && total <= capacity_bytes;
  // A lone job is admitted without its reserve; anything else would refuse it for ever.
  if (jobs_ == 0 && reserving_ == Reserving::kFifth) return total <= capacity_bytes;
  return ReservedBytes(capacity_bytes) + AddedBytes(capacity_bytes, recipe) <= capacity_bytes;
}

int64_t Occupancy::AddedBytes(int64_t capacity_bytes, int32_t recipe) const {
  return reserving_ == Reserving::kWhole ? capacity_bytes : Bytes(recipe);
}

Floor::Floor(const Scenario* scenario, const Workload* workload, Reserving reserving)
    : scenario_(*scenario),
      workload_(*workload),
      runs_(workload->jobs.size()),
      waiting_of_(scenario->tenants.size()),
      unfinished_(static_cast<int32_t>(workload->jobs.size())),
      tenant_memory_(scenario->tenants.size()),
      tenant_device_(scenario->tenants.size()) {
  for (const int64_t bytes : workload->capacity_bytes) {
    const double speed = workload->speed.empty() ? 1 : workload->speed[devices_.size()];
    devices_.push_back({bytes, Occupancy(&workload->plans, reserving), speed});
    capacity_bytes_ += static_cast<double>(bytes);
  }
}

double Floor::DoneUs(int32_t id) const {
  const JobRun& run = runs_[static_cast<size_t>(id)];
  if (!run.Runs()) return run.done_us;
  const Device& device = devices_[static_cast<size_t>(run.device)];
  const int64_t from_us = std::max(device.since_us, run.ready_us);
  if (now_us_ <= from_us) return run.done_us;
  return run.done_us +
         static_cast<double>(now_us_ - from_us) * device.rate * job(id).PaceAt(device.speed);
}

int64_t Floor::StepsDone(int32_t id) const {
  const double steps = std::floor(DoneUs(id) / job(id).step_us + 1e-6);
  return std::min(job(id).run_steps, static_cast<int64_t>(steps));
}

double Floor::RemainingUs(int32_t id) const { return std::max(0.0, job(id).OwnUs() - DoneUs(id)); }

void Floor::Settle(Device& device) {
  for (const int32_t id : device.jobs) runs_[static_cast<size_t>(id)].done_us = DoneUs(id);
  device.since_us = now_us_;
}

// After a change of who is on the device or whose turns have begun; Settle came first.
void Floor::Refresh(Device& device) {
  const double busy_before = std::min(1.0, device.busy_share);
  device.busy_share = 0;
  int32_t working = 0;
  for (const int32_t id : device.jobs) {
    if (runs_[static_cast<size_t>(id)].ready_us > now_us_) continue;
    device.busy_share += job(id).BusyAt(device.speed);
    ++working;
  }
  const double overhead = 1 + scenario_.costs.sharing_overhead * std::max(0, working - 1);
  device.rate = 1 / std::max(1.0, device.busy_share * overhead);
  const int64_t reserved = device.occupancy.ReservedBytes(device.capacity_bytes);
  const int64_t touched = device.occupancy.TouchedBytes();
  if (touched > device.capacity_bytes) ++totals_.over_capacity;
  reserved_bytes_ += static_cast<double>(std::min(reserved, device.capacity_bytes) -
                                         std::min(device.reserved_bytes, device.capacity_bytes));
  touched_bytes_ += static_cast<double>(touched - device.touched_bytes);
  busy_ += std::min(1.0, device.busy_share) - busy_before;
  device.reserved_bytes = reserved;
  device.touched_bytes = touched;
}

void Floor::Integrate(int64_t until_us) {
  while (now_us_ < until_us) {
    const size_t hour = static_cast<size_t>(now_us_ / kHourUs);
    const int64_t end_us = std::min(until_us, static_cast<int64_t>(hour + 1) * kHourUs);
    const double dt = static_cast<double>(end_us - now_us_);
    totals_.capacity_bytes_us += capacity_bytes_ * dt;
    totals_.reserved_bytes_us += reserved_bytes_ * dt;
    totals_.touched_bytes_us += touched_bytes_ * dt;
    totals_.busy_us += busy_ * dt;
    if (!waiting_.empty()) {
      totals_.unallocated_backlog_us += (capacity_bytes_ - reserved_bytes_) * dt;
      totals_.capacity_backlog_us += capacity_bytes_ * dt;
    }
    while (totals_.hours.size() <= hour) {
      totals_.hours.push_back({std::vector<double>(tenant_memory_.size()),
                               std::vector<double>(tenant_memory_.size()), true});
    }
    Totals::Hour& h = totals_.hours[hour];
    for (size_t t = 0; t < tenant_memory_.size(); ++t) {
      h.memory_us[t] += tenant_memory_[t] * dt;
      h.device_us[t] += tenant_device_[t] * dt;
      if (waiting_of_[t] == 0) h.backlogged = false;
    }
    now_us_ = end_us;
  }
}

void Floor::AdvanceTo(int64_t now_us) {
  Integrate(now_us);
  for (Device& device : devices_) {
    for (const int32_t id : device.jobs) {
      const JobRun& run = runs_[static_cast<size_t>(id)];
      if (run.ready_us <= device.since_us || run.ready_us > now_us_) continue;
      Settle(device);
      Refresh(device);
      break;
    }
  }
}

int64_t Floor::NextUs() const {
  int64_t next_us = kNeverUs;
  for (const Device& device : devices_) {
    for (const int32_t id : device.jobs) {
      const JobRun& run = runs_[static_cast<size_t>(id)];
      if (run.ready_us > now_us_) {
        next_us = std::min(next_us, run.ready_us);
      } else {
        const double left_us = std::max(0.0, job(id).OwnUs() - run.done_us) /
                               (device.rate * job(id).PaceAt(device.speed));
        const int64_t from_us = std::max(device.since_us, run.ready_us);
        next_us = std::min(next_us, from_us + static_cast<int64_t>(std::ceil(left_us)));
      }
    }
  }
  return std::max(next_us, now_us_);
}

std::vector<int32_t> Floor::Finished() const {
  std::vector<int32_t> done;
  for (const Device& device : devices_) {
    for (const int32_t id : device.jobs) {
      if (RemainingUs(id) < 1) done.push_back(id);
    }
  }
  return done;
}

void Floor::Arrive(int32_t id) {
  runs_[static_cast<size_t>(id)].arrived = true;
  waiting_.insert(id);
  ++waiting_of_[static_cast<size_t>(job(id).tenant)];
}

void Floor::Start(int32_t id, int32_t to, int64_t start_us) {
  JobRun& run = runs_[static_cast<size_t>(id)];
  CHECK(run.arrived && !run.Runs() && run.end_us < 0);
  Device& device = devices_[static_cast<size_t>(to)];
  Settle(device);
  run.device = to;
  run.ready_us = start_us;
  if (run.first_start_us < 0) run.first_start_us = now_us_;
  device.jobs.insert(id);
  device.occupancy.Add(job(id).recipe);
  Refresh(device);
  waiting_.erase(id);
  const size_t tenant = static_cast<size_t>(job(id).tenant);
  --waiting_of_[tenant];
  const core::PlanBytes& plan = workload_.plans[static_cast<size_t>(job(id).recipe)];
  tenant_memory_[tenant] += static_cast<double>(plan.TotalBytes());
  tenant_device_[tenant] += job(id).BusyAt(device.speed);
}

void Floor::Preempt(int32_t id) {
  JobRun& run = runs_[static_cast<size_t>(id)];
  End(id);
  ++unfinished_;
  run.end_us = -1;
  run.done_us = std::floor(run.done_us / job(id).step_us + 1e-6) * job(id).step_us;
  ++run.preemptions;
  ++totals_.preemptions;
  waiting_.insert(id);
  ++waiting_of_[static_cast<size_t>(job(id).tenant)];
}

void Floor::End(int32_t id) {
  JobRun& run = runs_[static_cast<size_t>(id)];
  CHECK(run.Runs());
  Device& device = devices_[static_cast<size_t>(run.device)];
  Settle(device);
  device.jobs.erase(id);
  device.occupancy.Remove(job(id).recipe);
  run.device = -1;
  run.end_us = now_us_;
  --unfinished_;
  Refresh(device);
  const size_t tenant = static_cast<size_t>(job(id).tenant);
  const core::PlanBytes& plan = workload_.plans[static_cast<size_t>(job(id).recipe)];
  tenant_memory_[tenant] -= static_cast<double>(plan.TotalBytes());
  tenant_device_[tenant] -= job(id).BusyAt(device.speed);
}

}  // namespace nibble::fleet
