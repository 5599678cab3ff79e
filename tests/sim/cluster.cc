#include "tests/sim/cluster.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "base/error.h"

namespace nibble::sim {
namespace {

constexpr int64_t kWarmUpUs = 5 * kSecond;
constexpr int64_t kChaosUs = 120 * kSecond;
// All jobs one after another on one device, with every retry and the longest backoff, take less.
constexpr int64_t kHealUs = 1200 * kSecond;
constexpr const char* kUser = "user";

core::CoreOptions SimOptions() {
  core::CoreOptions options;
  options.synchronize_hold_us = 2 * kSecond;
  options.lease_suspect_us = 8 * kSecond;
  options.lease_lost_us = 24 * kSecond;
  options.cancel_force_us = 12 * kSecond;
  options.backoff_min_us = kSecond;
  options.backoff_max_us = 8 * kSecond;
  options.poison_window_us = 6 * kSecond;
  options.wait_floor_us = 120 * kSecond;
  options.min_run_us = 5 * kSecond;
  options.max_attempts_per_device = 4;
  options.projects["p1"].weight = 2;
  options.projects["p2"].quota_jobs = 2;
  options.blob_pin_us = 60 * kSecond;
  options.token_secret = "secret-of-the-run";
  return options;
}

}  // namespace

Cluster::Cluster(uint64_t seed, Mutant mutant, bool verbose)
    : world_(seed),
      faults_(Faults::Draw(world_.rng())),
      network_(&world_, &faults_),
      server_(&world_, &network_, &faults_, SimOptions(), mutant) {
  world_.set_verbose(verbose);
  Random& rng = world_.rng();
  const int64_t count = rng.Between(1, 4);
  for (int64_t i = 0; i < count; ++i) {
    // The smallest device holds the largest job; two builds, so that numerics matter.
    hosts_.push_back({"host-" + std::to_string(i), "worker-" + std::to_string(i),
                      rng.Chance(0.7) ? "build-1" : "build-2", rng.Between(480, 900) * kMB});
  }
  workers_.resize(hosts_.size());
  to_create_ = rng.Between(4, 12);
}

void Cluster::CallUntilAnswered(core::CommandBody body,
                                std::function<void(const Server::Answer&)> done) {
  auto call = std::make_shared<UserCall>();
  call->peer = kUser;
  call->body = std::move(body);
  call->done = std::move(done);
  Attempt(std::move(call));
}

void Cluster::Attempt(std::shared_ptr<UserCall> call) {
  if (call->answered) return;
  server_.Request(call->peer, [this, call] {
    server_.Call(call->peer, call->body, [this, call](const Server::Answer& answer) {
      if (answer.status.ok() || !absl::IsUnavailable(answer.status)) {
        // Duplicates of an answer reach the checker, but end the call once.
        const bool first = !call->answered;
        call->answered = true;
        if (!first) marks_.insert("answer twice");
        call->done(answer);
      }
    });
  });
  world_.After(2 * kSecond, [this, call] { Attempt(call); });
}

void Cluster::SetUp() {
  for (const char* content : {"data-1", "data-2"}) {
    const std::string sha256 = Sha256Hex(content);
    server_.blobs()[sha256] = content;
    server_.checker().BlobStored(sha256, content);
    core::CreateDataset create;
    create.dataset.id = content;
    create.dataset.sha256 = sha256;
    create.dataset.size_bytes = 6;
    CallUntilAnswered(core::RecordBlob{sha256, 6}, [this, create](const Server::Answer& answer) {
      if (answer.status.ok()) CallUntilAnswered(create, [](const Server::Answer&) {});
    });
  }
  for (const int64_t layers : {1, 2}) {
    core::RegisterModel create;
    create.model.id = "base-" + std::to_string(layers);
    create.model.digest = Sha256Hex(create.model.id);
    create.model.root_path = "/models";
    create.model.files = {{"config.json", create.model.digest, 10}};
    create.model.config.layers = layers;
    CallUntilAnswered(create, [](const Server::Answer&) {});
  }
}

void Cluster::StartWorker(size_t index) {
  const std::string incarnation = hosts_[index].worker_id + "-" + std::to_string(++incarnations_);
  workers_[index] = std::make_shared<WorkerProc>(&world_, &network_, &server_, &faults_,
                                                 hosts_[index], incarnation);
  processes_.push_back(workers_[index]);
  workers_[index]->Start();
}

core::CreateJob Cluster::DrawJob(int64_t number) {
  Random& rng = world_.rng();
  core::CreateJob create;
  create.job_id = "job-" + std::to_string(number);
  create.uid = create.job_id;
  create.tenant = "p" + std::to_string(rng.Between(0, 2));
  create.request_id = "request-" + std::to_string(number);
  create.body_sha256 = Sha256Hex(create.request_id);
  create.priority = static_cast<int32_t>(rng.Between(-1, 2));
  create.model_id = "base-" + std::to_string(rng.Between(1, 2));
  create.dataset_id = "data-" + std::to_string(rng.Between(1, 2));
  create.spec.max_steps = rng.Between(10, 80);
  create.spec.save_steps = rng.Between(3, 12);
  create.spec.lora_r = static_cast<int32_t>(rng.Between(5, 60));
  create.spec.sequence_len = static_cast<int32_t>(16 * rng.Between(20, 160));  // 20 to 160 MB
  create.spec.micro_batch_size = 1;
  if (number % 2 == 0) create.spec.recompute = spec::Recompute::kFull;  // the others leave it to the server
  create.spec.allow_numerics_change = rng.Chance(0.5);
  create.spec.seed = static_cast<uint64_t>(number);
  if (rng.Chance(faults_.poison_job))
    create.spec.lora_dropout = kPoisonDropout;
  else if (rng.Chance(faults_.bad_job))
    create.spec.lora_dropout = kBadDropout;
  else if (rng.Chance(faults_.bad_job))
    create.spec.format = kEmptyFormat;
  return create;
}

void Cluster::CreateJob() {
  const int64_t number = static_cast<int64_t>(jobs_.size()) + 1;
  core::CreateJob create = DrawJob(number);
  server_.checker().ExpectResult(create.job_id,
                                 ResultContent(create.job_id, create.spec.max_steps));
  jobs_.push_back(create.job_id);
  // Its project sends the data first.
  const core::RecordBlob record{Sha256Hex(create.dataset_id), 6, create.tenant};
  CallUntilAnswered(record, [this, record](const Server::Answer& answer) {
    if (answer.status.ok()) server_.checker().ShownAcked(record.sha256, record.project);
  });
  const std::string request_id = create.request_id;
  const auto acked = [this, request_id](const Server::Answer& answer) {
    if (answer.status.ok()) {
      server_.checker().CreateAcked(request_id, answer.id);
      Watch(answer.id);
    } else {
      marks_.insert("create refused: " + std::string(ReasonName(StatusReason(answer.status))));
    }
  };
  CallUntilAnswered(create, acked);
  Random& rng = world_.rng();
  if (rng.Chance(0.3)) {
    // The same request again, from a client that lost its first answer and has drawn another id.
    core::CreateJob again = create;
    again.job_id += "-again";
    world_.After(rng.Between(0, 30) * kSecond,
                 [this, again, acked] { CallUntilAnswered(again, acked); });
  }
  if (rng.Chance(0.1)) {
    core::CreateJob other = create;
    other.job_id += "-other";
    other.body_sha256 = Sha256Hex("another body");
    world_.After(60 * kSecond, [this, other] {
      CallUntilAnswered(other, [this](const Server::Answer& answer) {
        if (answer.status.ok())
          server_.checker().Fail("P2: another body under the same request_id was accepted");
        marks_.insert("request id reused");
      });
    });
  }
}

std::string Cluster::AnyJob() {
  return jobs_.empty() ? "" : jobs_[world_.rng().Below(jobs_.size())];
}

void Cluster::UserAction() {
  Random& rng = world_.rng();
  const std::string job = AnyJob();
  if (job.empty()) return;
  const auto ignore = [](const Server::Answer&) {};
  switch (rng.Below(8)) {
    case 0:
      return CallUntilAnswered(core::CancelJob{job}, [this, job](const Server::Answer& answer) {
        if (answer.status.ok()) server_.checker().CancelAcked(job);
      });
    case 1:
    case 2:
      return CallUntilAnswered(core::PauseJob{job}, ignore);
    case 3:
    case 4:
      return CallUntilAnswered(core::ResumeJob{job}, ignore);
    case 5: {
      core::UpdateJob update;
      update.job_id = job;
      update.priority = static_cast<int32_t>(rng.Between(-2, 2));
      update.allow_numerics_change = rng.Chance(0.3);
      return CallUntilAnswered(update, [this, update](const Server::Answer& answer) {
        if (answer.status.ok() && update.allow_numerics_change)
          server_.checker().NumericsAllowed(update.job_id);
      });
    }
    case 6:
      server_.checker().DeleteSent(job);
      return CallUntilAnswered(core::DeleteJob{job}, [this](const Server::Answer& answer) {
        if (answer.status.ok()) marks_.insert("deleted");
      });
    default: {
      const std::string worker = hosts_[rng.Below(hosts_.size())].worker_id;
      if (rng.Chance(0.5)) {
        return CallUntilAnswered(core::DeleteWorker{worker}, [this](const Server::Answer& answer) {
          if (answer.status.ok()) marks_.insert("worker removed");
        });
      }
      CallUntilAnswered(core::DrainWorker{worker}, ignore);
      world_.After(rng.Between(2, 20) * kSecond, [this, worker, ignore] {
        CallUntilAnswered(core::UndrainWorker{worker}, ignore);
      });
    }
  }
}

// A cancel that races the last step.
void Cluster::CancelAtTheEnd() {
  for (const auto& [id, job] : server_.state().jobs) {
    if (job.state != core::JobState::kRunning || job.progress.step + 4 < job.spec.max_steps)
      continue;
    CallUntilAnswered(core::CancelJob{id}, [this, id = id](const Server::Answer& answer) {
      if (answer.status.ok()) server_.checker().CancelAcked(id);
    });
    return;
  }
}

// The collector asks about everything that is there, referenced or not.
void Cluster::CollectGarbage() {
  core::ForgetBlobs forget;
  for (const auto& [sha256, content] : server_.blobs()) forget.sha256s.push_back(sha256);
  CallUntilAnswered(forget, [](const Server::Answer&) {});
}

// Once a simulated second of chaos.
void Cluster::FaultTick() {
  if (healing_) return;
  Random& rng = world_.rng();
  if (rng.Chance(faults_.server_crash) && server_.up()) {
    server_.Crash();
    world_.After(rng.Between(100, 8'000) * kMs, [this] { server_.Start(); });
  }
  if (rng.Chance(faults_.user_action)) UserAction();
  if (rng.Chance(faults_.user_action / 4) && server_.up()) CancelAtTheEnd();
  if (rng.Chance(0.05)) CollectGarbage();
  if (rng.Chance(faults_.all_sleep)) {
    const int64_t slept_us = rng.Between(16, 1'000) * kSecond;
    if (server_.up()) server_.checker().Sleeps(server_.state(), slept_us);
    world_.Trace("everything sleeps");
    world_.Sleep(slept_us);
  }
  if (rng.Chance(faults_.wall_clock)) world_.SetWallClock(rng.Between(-3600, 3600) * kSecond);
  for (size_t i = 0; i < hosts_.size(); ++i) {
    WorkerProc& worker = *workers_[i];
    if (rng.Chance(faults_.partition)) network_.Cut(hosts_[i].name, rng.Between(1, 40) * kSecond);
    if (!worker.alive()) {
      StartWorker(i);
      continue;
    }
    if (rng.Chance(faults_.worker_crash)) worker.Kill();
    if (rng.Chance(faults_.worker_freeze)) worker.Freeze(rng.Between(1, 40) * kSecond);
    if (rng.Chance(faults_.worker_drain)) worker.Terminate();
    if (rng.Chance(faults_.engine_crash)) worker.CrashEngine();
    if (rng.Chance(faults_.device_death)) worker.DieDevice(rng.Between(1, 40) * kSecond);
    if (rng.Chance(faults_.disk_full)) worker.FillDisk(rng.Between(1, 60) * kSecond);
    if (rng.Chance(faults_.second_process)) {
      Host elsewhere = hosts_[i];
      elsewhere.name += "-elsewhere";
      strangers_.push_back(std::make_shared<WorkerProc>(
          &world_, &network_, &server_, &faults_, elsewhere,
          elsewhere.worker_id + "-" + std::to_string(++incarnations_)));
      strangers_.back()->Start();
    }
  }
  if (to_create_ > 0 && rng.Chance(0.3)) {
    --to_create_;
    CreateJob();
  }
  world_.After(kSecond, [this] { FaultTick(); });
}

void Cluster::Watch(const std::string& job_id) {
  if (!watchers_.try_emplace(job_id).second) return;
  seen_["w-" + job_id] = 0;
  PollWatcher(job_id);
}

// A watcher as the RPC layer has it: reads what was before, then the hub; starts anew when cut.
void Cluster::PollWatcher(const std::string& job_id) {
  Watcher& watcher = watchers_[job_id];
  const std::string key = "w-" + job_id;
  const auto see = [&](const std::vector<core::EventRecord>& records) {
    for (const core::EventRecord& record : records) {
      if (record.sequence <= seen_[key]) continue;
      server_.checker().Watched(key, record);
      seen_[key] = record.sequence;
    }
  };
  if (server_.up()) {
    if (watcher.hub != server_.hub()) {
      watcher.hub = server_.hub();
      watcher.subscription = watcher.hub->Subscribe(job_id, nullptr);
      see(server_.disk().ReadEvents(job_id, seen_[key], 1'000).value());
    }
    const WatchHub::Taken taken = watcher.subscription->Take();
    see(taken.events);
    if (taken.cut) {
      marks_.insert("watcher cut");
      watcher.hub = nullptr;
    }
  }
  world_.After(world_.rng().Between(100, 3'000) * kMs, [this, job_id] { PollWatcher(job_id); });
}

void Cluster::Heal() {
  world_.Trace("heal");
  healing_ = true;
  faults_.Heal();
  network_.Heal();
  for (const auto& stranger : strangers_) stranger->Kill();
  for (; to_create_ > 0; --to_create_) CreateJob();
  PollHeal();
}

// The operator puts things right, again and again.
void Cluster::PollHeal() {
  server_.Start();
  for (size_t i = 0; i < hosts_.size(); ++i) {
    if (!workers_[i]->alive()) StartWorker(i);
    CallUntilAnswered(core::UndrainWorker{hosts_[i].worker_id}, [](const Server::Answer&) {});
  }
  for (const std::string& job : jobs_) {
    CallUntilAnswered(core::ResumeJob{job}, [](const Server::Answer&) {});
  }
  world_.After(10 * kSecond, [this] { PollHeal(); });
}

bool Cluster::AllDone() const {
  if (!server_.up() || !healing_) return false;
  const core::State& state = server_.state();
  if (!state.live_jobs.empty()) return false;
  for (const auto& [worker, held] : state.holding) {
    if (!held.empty()) return false;
  }
  for (const auto& [key, sequence] : seen_) {
    const core::Job* job = state.FindJob(key.substr(2));
    if (job != nullptr && job->last_sequence != sequence) return false;
  }
  return true;
}

std::string Cluster::WhatHangs() const {
  if (!server_.up()) return "the server is down";
  const core::State& state = server_.state();
  for (const std::string& id : state.live_jobs) {
    const core::Job& job = state.jobs.at(id);
    return id + " is " + std::string(core::JobStateName(job.state)) + " in attempt " +
           std::to_string(job.epoch) +
           (job.Current() != nullptr ? " on " + job.Current()->worker_id : "");
  }
  for (const auto& [worker, held] : state.holding) {
    if (!held.empty()) return "bytes of " + held.begin()->first + " are held by " + worker;
  }
  return "a watcher has not seen the end";
}

void Cluster::CollectMarks(RunResult& result) {
  result.marks = marks_;
  for (const core::EventRecord& record : server_.disk().events()) {
    result.marks.insert(record.type);
    const auto field = [&](const char* name) {
      const auto it = record.fields.find(name);
      return it == record.fields.end() ? std::string() : it->second;
    };
    if (record.type == "attempt.ended")
      result.marks.insert("attempt " + field("state") + " " + field("reason"));
    if (field("why").rfind("preempted: ", 0) == 0) result.marks.insert("preempted");
    if (record.type == "job.failed") result.marks.insert("failed " + field("reason"));
    const bool assigned = record.type == "attempt.assigned";
    if (assigned && field("continues_epoch") != "0") {
      result.marks.insert("went on in memory");
    } else if (assigned && field("resume_step") != "0") {
      result.marks.insert("resumed from a checkpoint");
    }
    if (record.type == "attempt.assigned" && field("run_alone") == "true")
      result.marks.insert("runs alone");
  }
}

RunResult Cluster::Run() {
  RunResult result;
  const auto stop = [this] { return Failed(); };
  const Faults drawn = faults_;
  faults_.Heal();
  server_.Start();
  SetUp();
  for (size_t i = 0; i < hosts_.size(); ++i) StartWorker(i);
  world_.RunUntil(world_.now_us() + kWarmUpUs, stop);
  faults_ = drawn;
  FaultTick();
  world_.RunUntil(world_.now_us() + kChaosUs, stop);
  if (!Failed()) Heal();
  const int64_t deadline_us = world_.now_us() + kHealUs;
  while (!Failed() && !AllDone() && world_.now_us() < deadline_us) {
    world_.RunUntil(world_.now_us() + kSecond, stop);
  }
  if (Failed()) {
    result.verdict = RunResult::Verdict::kSafety;
    result.message = server_.checker().violation();
  } else if (!AllDone()) {
    result.verdict = RunResult::Verdict::kLiveness;
    result.message = "I12: not done in time: " + WhatHangs();
  }
  CollectMarks(result);
  result.hash = world_.hash();
  result.steps = world_.steps();
  result.jobs = static_cast<int64_t>(jobs_.size());
  return result;
}

}  // namespace nibble::sim
