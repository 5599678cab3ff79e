// nibble-engine train: one job on this machine, without server or worker. For tests and benchmarks.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/status.h"
#include "engine/commands.h"
#include "engine/job.h"

namespace nibble::engine {
namespace {

void Print(const JobEvent& event, const Job& job) {
  if (const auto* step = std::get_if<StepDone>(&event)) {
    const MetricRow& row = step->row;
    std::printf(
        "step %lld/%lld  epoch %.3f  loss %.4f  grad_norm %.4f  lr %.3e  %lld tokens  %.0f "
        "tok/s%s\n",
        static_cast<long long>(row.step), static_cast<long long>(job.total_steps()), row.epoch,
        row.loss, row.grad_norm, row.learning_rate, static_cast<long long>(row.tokens),
        static_cast<double>(row.tokens) * 1e6 /
            static_cast<double>(std::max<int64_t>(1, row.step_time_us)),
        step->applied ? "" : "  skipped");
  } else if (const auto* eval = std::get_if<EvalDone>(&event)) {
    std::printf("eval at step %lld  loss %.4f  %.2f s\n", static_cast<long long>(eval->row.step),
                eval->row.loss, static_cast<double>(eval->row.step_time_us) * 1e-6);
  } else if (const auto* checkpoint = std::get_if<CheckpointDone>(&event)) {
    std::printf("checkpoint %s\n", checkpoint->saved.directory.c_str());
  } else if (const auto* finish = std::get_if<FinishDone>(&event)) {
    std::printf("adapter %s\n", finish->directory.c_str());
  }
  std::fflush(stdout);
}

absl::StatusOr<JobInput> InputFrom(const Flags& flags) {
  JobInput input;
  input.attempt = "local/1";
  ASSIGN_OR_RETURN(input.dir, flags.Needed("out"));
  ASSIGN_OR_RETURN(input.dataset, flags.Needed("dataset"));
  input.eval_dataset = flags.Text("eval-dataset");
  input.resume = flags.Text("resume");
  if (input.resume == "latest") input.resume = NewestCheckpoint(JoinPath(input.dir, "checkpoints"));
  input.init_adapter = flags.Text("init-adapter");
  input.numerics_id = flags.Text("numerics-id");
  input.base_name = flags.Text("base-name", BaseName(flags.Text("model-dir")));
  input.display_name = flags.Text("name", "local");
  if (flags.Has("spec")) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.Text("spec"), 1 << 20));
    ASSIGN_OR_RETURN(input.spec, spec::TrainSpecFromJson(text));
  }
  return input;
}

}  // namespace

absl::Status TrainCommand(const Arguments& arguments) {
  std::vector<std::string> valued = DeviceFlagNames();
  for (const char* name : {"spec", "dataset", "eval-dataset", "out", "resume", "init-adapter",
                           "numerics-id", "base-name", "name", "stop-after"}) {
    valued.emplace_back(name);
  }
  ASSIGN_OR_RETURN(const Flags flags, Flags::Parse(arguments, valued));
  ASSIGN_OR_RETURN(DeviceOptions options, DeviceOptionsFrom(flags));
  ASSIGN_OR_RETURN(JobInput input, InputFrom(flags));
  ASSIGN_OR_RETURN(const int64_t stop_after, flags.Integer("stop-after", -1));
  options.base.quant = input.spec.quant;
  options.base.double_quant = input.spec.double_quant;
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend,
                   OpenBackend(options.device, options.threads));
  ASSIGN_OR_RETURN(const std::unique_ptr<Device> device,
                   Device::Open(options, *backend, MeasureProfile(*backend)));
  ASSIGN_OR_RETURN(const std::unique_ptr<Job> job,
                   Job::Open(*device, std::move(input), RealClock::Get()));
  std::printf("%s%s", DataReportToText(job->report()).c_str(),
              spec::MemoryPlanToText(job->plan()).c_str());
  RETURN_IF_ERROR(job->Start());
  RETURN_IF_ERROR(device->ResizeStep(job->plan().step_bytes));
  while (!job->finished()) {
    if (job->step() == stop_after && job->NextWork() == JobWork::kStep) {
      job->RequestCheckpoint();
      ASSIGN_OR_RETURN(const JobEvent event, job->Advance());
      Print(event, *job);
      break;
    }
    ASSIGN_OR_RETURN(const JobEvent event, job->Advance());
    Print(event, *job);
  }
  std::printf(
      "memory: planned %s, resident now %s\n",
      HumanBytes(job->plan().TotalBytes()).c_str(), HumanBytes(ResidentBytes()).c_str());
  return absl::OkStatus();
}

}  // namespace nibble::engine
