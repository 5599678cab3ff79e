#include "tests/sim/worker_proc.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "base/error.h"

namespace nibble::sim {
namespace {

constexpr int64_t kCallTimeoutUs = 4 * kSecond;

worker::AgentOptions AgentOptionsOf(const core::CoreOptions& options) {
  worker::AgentOptions agent;
  agent.trust_margin_us = options.lease_lost_us / 8;
  agent.engine_idle_us = 5 * kSecond;
  agent.engine_start_timeout_us = 30 * kSecond;
  agent.detach_timeout_us = 6 * kSecond;
  agent.retry_min_us = 200 * kMs;
  agent.retry_max_us = 2 * kSecond;
  agent.retry_disk_us = 4 * kSecond;
  agent.room_us = 20 * kSecond;
  agent.silence_us = 60 * kSecond;
  agent.probed_devices = {"cpu0"};
  agent.probe_timeout_us = 5 * kSecond;
  agent.probe_min_us = kSecond;
  agent.probe_max_us = 8 * kSecond;
  return agent;
}

core::FileRef ToCore(const worker::FileRef& f) { return {f.name, f.sha256, f.size_bytes}; }
worker::FileRef FromCore(const core::FileRef& f) { return {f.name, f.sha256, f.size_bytes}; }

std::vector<core::FileRef> ToCore(const std::vector<worker::FileRef>& files) {
  std::vector<core::FileRef> list;
  for (const worker::FileRef& f : files) list.push_back(ToCore(f));
  return list;
}

worker::Assignment ToWorker(const core::Assignment& a) {
  worker::Assignment w;
  w.key = {a.job->id, a.attempt->epoch};
  w.token = a.token;
  w.continues_epoch = a.attempt->continues_epoch;
  w.device_id = a.attempt->device_id;
  w.kind = static_cast<worker::Kind>(a.job->kind);
  w.want = static_cast<worker::Want>(a.want);
  w.spec = a.job->spec;
  w.base_digest = a.model->digest;
  w.base_path = "models";
  if (a.resume != nullptr) {
    for (const core::FileRef& f : a.resume->files) w.checkpoint_files.push_back(FromCore(f));
    w.checkpoint_step = a.resume->step;
  }
  w.planned_persistent_bytes = a.attempt->plan.persistent_bytes;
  w.planned_step_bytes = a.attempt->plan.step_bytes;
  w.planned_base_bytes = a.attempt->plan.base_bytes;
  w.numerics_id = a.job->numerics_id;
  w.priority = a.job->priority;
  return w;
}

}  // namespace

std::string CheckpointContent(const std::string& job_id, int64_t step) {
  return "checkpoint " + job_id + " " + std::to_string(step);
}
std::string ResultContent(const std::string& job_id, int64_t step) {
  return "result " + job_id + " " + std::to_string(step);
}

WorkerProc::WorkerProc(World* world, Network* network, Server* server, const Faults* faults,
                       Host host, std::string incarnation)
    : world_(*world),
      network_(*network),
      server_(*server),
      faults_(*faults),
      host_(std::move(host)),
      incarnation_(std::move(incarnation)),
      agent_(AgentOptionsOf(server->options())) {}

void WorkerProc::Start() {
  alive_ = true;
  world_.Trace("worker starts " + incarnation_);
  Feed(worker::Start{});
}

void WorkerProc::Kill() {
  if (!alive_) return;
  world_.Trace("worker dies " + incarnation_);
  alive_ = false;
  engines_.clear();
}

void WorkerProc::Terminate() {
  world_.Trace("worker is terminated " + incarnation_);
  Feed(worker::Drain{});
}

void WorkerProc::Feed(worker::Input input) {
  if (!alive_) return;
  if (world_.now_us() < frozen_until_us_) {
    Later(frozen_until_us_ - world_.now_us(), [this, input = std::move(input)] { Feed(input); });
    return;
  }
  for (const worker::Action& action : agent_.Handle(input, world_.now_us())) {
    std::visit([this](const auto& a) { Perform(a); }, action);
    if (!alive_) return;
  }
  ScheduleTick();
}

void WorkerProc::Later(int64_t delay_us, std::function<void()> what) {
  world_.After(delay_us, [self = weak_from_this(), what = std::move(what)] {
    const auto process = self.lock();
    if (process != nullptr && process->alive_) what();
  });
}

void WorkerProc::ScheduleTick() {
  const int64_t at_us = std::max(agent_.NextDueUs(), world_.now_us() + kMs);
  if (tick_at_us_ > world_.now_us() && tick_at_us_ <= at_us) return;
  tick_at_us_ = at_us;
  Later(at_us - world_.now_us(), [this, at_us] {
    if (tick_at_us_ != at_us) return;
    tick_at_us_ = 0;
    Feed(worker::Tick{});
  });
}

// ---- Calls -------------------------------------------------------------------------------------

void WorkerProc::Perform(const worker::DoRegister& action) {
  core::RegisterWorker request;
  request.worker_id = host_.worker_id;
  request.incarnation = incarnation_;
  request.generation_seen = action.generation_seen;
  request.timeline_seen = action.timeline_seen;
  core::Device device;
  device.id = "cpu0";
  device.backend = "cpu";
  device.capacity_bytes = host_.capacity_bytes;
  device.profile.build = host_.build;
  device.profile.fixed_bytes = kFixedBytes;
  device.profile.capacity_bytes = host_.capacity_bytes;
  request.devices.push_back(device);
  const auto answered = std::make_shared<bool>(false);
  const auto self = weak_from_this();
  server_.Request(host_.name, [this, self, request, answered] {
    server_.Call(host_.name, request, [this, self, answered](const Server::Answer& answer) {
      const auto alive = self.lock();
      if (alive == nullptr || *answered) return;
      *answered = true;
      worker::RegisterReply reply;
      reply.ok = answer.status.ok();
      reply.superseded = StatusReason(answer.status) == Reason::kStaleAttempt;
      if (reply.ok && server_.up()) {
        reply.timeline = server_.state().timeline;
        reply.generation = server_.state().generation;
        reply.lease_lost_us = server_.options().lease_lost_us;
      } else if (!reply.superseded) {
        reply.ok = false;
      }
      Feed(reply);
    });
  });
  Later(kCallTimeoutUs, [this, answered] {
    if (*answered) return;
    *answered = true;
    Feed(worker::RegisterReply{});
  });
}

void WorkerProc::Perform(const worker::DoSynchronize& action) {
  core::Synchronize request;
  request.worker_id = host_.worker_id;
  request.incarnation = incarnation_;
  request.generation_seen = action.generation_seen;
  request.known_revision = action.request.known_revision;
  request.draining = action.request.draining;
  request.no_room = action.request.no_room;
  for (const worker::RunningAttempt& a : action.request.attempts) {
    request.attempts.push_back({a.key.job_id, a.key.epoch, a.device_id,
                                static_cast<core::Phase>(a.phase), a.step, a.used_bytes,
                                a.intact, a.trouble});
  }
  for (const worker::DeviceStatus& d : action.request.devices) {
    request.devices.push_back({d.device_id, d.used_bytes, d.resident_bases, d.fault});
  }
  const auto self = weak_from_this();
  const int64_t id = action.request.id;
  server_.Request(host_.name, [this, self, request, id] {
    server_.Synchronize(
        host_.name, request,
        [this, self, id](const absl::Status& status, const ControlLoop::Outcome& outcome) {
          worker::SynchronizeReply reply;
          reply.id = id;
          const core::Worker* worker = outcome.state.FindWorker(host_.worker_id);
          const Reason reason = StatusReason(status);
          if (reason == Reason::kStaleAttempt) {
            reply.code = worker::SynchronizeReply::Code::kSuperseded;
          } else if (reason == Reason::kWorkerNotFound || worker == nullptr ||
                     worker->incarnation != incarnation_) {
            reply.code = worker::SynchronizeReply::Code::kRegisterAgain;
          } else if (!status.ok()) {
            reply.code = worker::SynchronizeReply::Code::kUnavailable;
          } else {
            const core::DesiredSet desired =
                core::DesiredFor(outcome.state, *worker, outcome.core.options);
            reply.timeline = outcome.state.timeline;
            reply.generation = outcome.state.generation;
            reply.revision = desired.revision;
            for (const core::Assignment& a : desired.assignments)
              reply.assignments.push_back(ToWorker(a));
          }
          server_.Reply(host_.name, [this, self, reply] {
            const auto alive = self.lock();
            if (alive == nullptr) return;
            Feed(reply);
            CheckPriorities(reply);
          });
        });
  });
  Later(kCallTimeoutUs + server_.options().synchronize_hold_us, [this, id] {
    worker::SynchronizeReply reply;
    reply.id = id;  // ignored when it has been answered
    reply.code = worker::SynchronizeReply::Code::kUnavailable;
    Feed(reply);
  });
}

core::Fence WorkerProc::FenceOf(const worker::Report& report) const {
  return {report.key.job_id, report.key.epoch, host_.worker_id, incarnation_, report.token};
}

// Runs at the server: metrics first, then the body, as two commands.
void WorkerProc::PostReport(const worker::Report& report,
                            std::function<void(const Server::Answer&)> done) {
  const core::Fence fence = FenceOf(report);
  const auto post = [&](core::CommandBody body, std::function<void(const Server::Answer&)> answer,
                        const char* kind, int64_t step) {
    server_.Call(host_.name, std::move(body), std::move(answer),
                 [this, kind, step, key = report.key](const absl::Status& status) {
                   if (status.ok())
                     server_.checker().ReportAccepted(key.job_id, key.epoch, kind, step);
                 });
  };
  if (!report.metrics.empty()) {
    core::ReportProgress progress;
    progress.fence = fence;
    progress.head.step = report.metrics.back().step;
    progress.head.loss = report.metrics.back().loss;
    progress.head.step_time_us = report.metrics.back().step_time_us;
    progress.head.used_bytes = report.metrics.back().used_bytes;
    const bool alone = std::holds_alternative<std::monostate>(report.body);
    post(
        progress, alone ? done : [](const Server::Answer&) {}, "progress", 0);
  }
  if (const auto* plan = std::get_if<worker::PlanReport>(&report.body)) {
    post(core::ReportPlan{fence, plan->planned_steps, plan->plan_json, plan->numerics_id}, done,
         "plan", 0);
  } else if (const auto* c = std::get_if<worker::CheckpointReport>(&report.body)) {
    post(core::ReportCheckpoint{fence, c->step, ToCore(c->files), c->manifest_sha256, c->loss},
         done, "checkpoint", c->step);
  } else if (const auto* finished = std::get_if<worker::FinishedReport>(&report.body)) {
    post(
        core::ReportFinished{fence, finished->step, ToCore(finished->files), finished->stop_reason},
        done, "finished", 0);
  } else if (const auto* failed = std::get_if<worker::FailedReport>(&report.body)) {
    post(core::ReportFailed{fence, failed->reason, failed->message, failed->infrastructure,
                            failed->neighbour_fault, failed->all_checkpoints},
         done, "failed", 0);
  } else if (const auto* check = std::get_if<worker::CheckReport>(&report.body)) {
    post(core::ReportCheck{fence, check->report_json, check->planned_steps}, done, "check", 0);
  } else if (const auto* released = std::get_if<worker::ReleasedReport>(&report.body)) {
    post(core::ReportReleased{fence, released->step}, done, "released", 0);
  }
}

void WorkerProc::Perform(const worker::DoReport& action) {
  const auto self = weak_from_this();
  const auto answered = std::make_shared<bool>(false);
  const worker::Report report = action.report;
  const auto handle = [this, self, report, answered] {
    PostReport(report, [this, self, answered, id = report.id](const Server::Answer& answer) {
      const auto alive = self.lock();
      if (alive == nullptr || *answered) return;
      *answered = true;
      worker::ReportReply reply;
      reply.id = id;
      reply.message = std::string(answer.status.message());
      const Reason reason = StatusReason(answer.status);
      if (reason == Reason::kStaleAttempt) {
        reply.code = worker::ReportReply::Code::kStale;
      } else if (absl::IsUnavailable(answer.status)) {
        reply.code = worker::ReportReply::Code::kUnavailable;
      } else if (!answer.status.ok()) {
        reply.code = worker::ReportReply::Code::kRefused;
      }
      if (reply.code != worker::ReportReply::Code::kOk)
        world_.Trace("report answered: " + reply.message);
      Feed(reply);
    });
  };
  const bool result = std::holds_alternative<worker::FinishedReport>(report.body);
  if (result && world_.rng().Chance(faults_.stuck)) {
    const int64_t lease_us = server_.options().lease_lost_us;
    server_.RequestStuck(host_.name, world_.rng().Between(lease_us, 2 * lease_us), handle);
  } else {
    server_.Request(host_.name, handle);
  }
  Later(kCallTimeoutUs, [this, answered, id = report.id] {
    if (*answered) return;
    *answered = true;
    Feed(worker::ReportReply{id, worker::ReportReply::Code::kUnavailable, "no answer"});
  });
}

void WorkerProc::Perform(const worker::DoFetch& action) {
  const auto self = weak_from_this();
  const auto done = std::make_shared<bool>(false);
  const worker::Assignment assignment = action.assignment;
  worker::LocalFiles files{"models", "data", "", ""};
  if (world_.now_us() < disk_full_until_us_) {
    Later(50 * kMs, [this, key = assignment.key] {
      Feed(worker::FetchFailed{key, "STORAGE_FULL", "no room", true});
    });
    return;
  }
  if (assignment.checkpoint_files.empty()) {
    Later(world_.rng().Between(10, 500) * kMs, [this, assignment, files] {
      Feed(worker::Fetched{assignment.key, files});
    });
    return;
  }
  if (world_.rng().Chance(faults_.bad_fetch)) {
    Later(50 * kMs, [this, key = assignment.key] {
      Feed(worker::FetchFailed{key, "CHECKPOINT_INVALID", "digests differ", false});
    });
    return;
  }
  const std::string sha256 = assignment.checkpoint_files[0].sha256;
  server_.Request(host_.name, [this, self, done, assignment, files, sha256] {
    const auto blob = server_.blobs().find(sha256);
    const std::string content = blob == server_.blobs().end() ? "" : blob->second;
    server_.Reply(host_.name, [this, self, done, assignment, files, content] {
      const auto alive = self.lock();
      if (alive == nullptr || *done) return;
      *done = true;
      worker::LocalFiles fetched = files;
      fetched.resume_dir = content;
      if (content.empty()) {
        Feed(
            worker::FetchFailed{assignment.key, "CHECKPOINT_INVALID", "the bytes are gone", false});
      } else {
        Feed(worker::Fetched{assignment.key, fetched});
      }
    });
  });
  Later(kCallTimeoutUs, [this, done, key = assignment.key] {
    if (*done) return;
    *done = true;
    Feed(worker::FetchFailed{key, "STORE_UNAVAILABLE", "no answer", true});
  });
}

void WorkerProc::Perform(const worker::DoUpload& action) {
  const auto self = weak_from_this();
  const auto done = std::make_shared<bool>(false);
  const std::string content = action.dir;  // the fake directory is its content
  server_.Request(host_.name, [this, self, done, content, id = action.id] {
    const std::string sha256 = Sha256Hex(content);
    const auto size_bytes = static_cast<int64_t>(content.size());
    server_.blobs()[sha256] = content;  // durable before it is recorded
    server_.checker().BlobStored(sha256, content);
    server_.Call(host_.name, core::RecordBlob{sha256, size_bytes},
                 [this, self, done, id, sha256, size_bytes](const Server::Answer& answer) {
                   const auto alive = self.lock();
                   if (alive == nullptr || *done) return;
                   *done = true;
                   if (answer.status.ok()) {
                     Feed(worker::Uploaded{id, {{"state.safetensors", sha256, size_bytes}}});
                   } else {
                     Feed(worker::UploadFailed{id, "STORE_UNAVAILABLE", "refused"});
                   }
                 });
  });
  Later(kCallTimeoutUs, [this, done, id = action.id] {
    if (*done) return;
    *done = true;
    Feed(worker::UploadFailed{id, "STORE_UNAVAILABLE", "no answer"});
  });
}

void WorkerProc::Perform(const worker::StartCheck& action) {
  const worker::Assignment a = action.assignment;
  Later(world_.rng().Between(200, 2'000) * kMs, [this, a] {
    worker::CheckEnded ended;
    ended.key = a.key;
    ended.ok = a.spec.format != kEmptyFormat;
    ended.planned_steps = a.spec.max_steps;
    ended.report_json = "{}";
    ended.reason = "NO_SUPERVISED_TOKENS";
    ended.message = "no row has an answer";
    Feed(ended);
  });
}

void WorkerProc::Perform(const worker::Exit& action) {
  world_.Trace("worker exits " + incarnation_ + ": " + action.why);
  superseded_ = action.superseded;
  alive_ = false;
  engines_.clear();
}

}  // namespace nibble::sim
