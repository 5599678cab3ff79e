#include "engine/fused_turn.h"

#include <utility>

#include "base/status.h"
#include "engine/lockstep.h"
#include "engine/spec/workspace.h"

namespace nibble::engine {

std::vector<Job*> FusedJobs(const Device& device, std::span<Job* const> jobs) {
  std::vector<Job*> chosen = {jobs.front()};
  if (!jobs.front()->CanFuse()) return chosen;
  const spec::DeviceProfile& profile = device.profile();
  const auto shape = [](const Job& job) {
    const spec::TrainSpec& spec = job.spec();
    return spec::OpShape{.m = int64_t{spec.micro_batch_size} * spec.sequence_len, .r = spec.lora_r};
  };
  int64_t bytes = spec::WorkspaceBytes(spec::Op::kLinearForward, shape(*jobs.front()), profile);
  for (Job* const job : jobs.subspan(1)) {
    if (chosen.size() == Lockstep::kMost) break;
    if (!job->CanFuse() || &job->table() != &jobs.front()->table()) continue;
    const int64_t more = spec::LinearPartBytes(shape(*job), profile);
    if (bytes + more > device.step().mapped_bytes()) continue;
    bytes += more;
    chosen.push_back(job);
  }
  return chosen;
}

std::vector<FusedStep> AdvanceTogether(Device& device, std::span<Job* const> jobs) {
  std::vector<FusedStep> steps(jobs.size(), FusedStep{JobEvent{}, 0});
  std::vector<size_t> ready;
  std::vector<Lockstep::Member> members;
  for (size_t i = 0; i < jobs.size(); ++i) {
    Job& job = *jobs[i];
    absl::Status status = job.TakeDevice();
    if (status.ok()) status = job.PrepareStep();
    if (!status.ok()) {
      steps[i].event = std::move(status);
      continue;
    }
    job.BeginStep();
    ready.push_back(i);
    members.push_back(job.MicroBatches());
  }
  if (ready.empty()) return steps;
  Lockstep(device.backend(), jobs.front()->table(), device.step().data(), device.step().mapped_bytes())
      .Run(members);
  if (jobs[ready.front()]->StepWasStopped()) {
    for (const size_t i : ready) jobs[i]->StopStep();
    return steps;
  }
  for (const size_t i : ready) {
    const StepDone done = jobs[i]->EndStep();
    steps[i].time_us = done.row.step_time_us;
    steps[i].event = jobs[i]->ConcludeStep(done);
  }
  return steps;
}

}  // namespace nibble::engine
