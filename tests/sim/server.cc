#include "tests/sim/server.h"

#include <utility>

namespace nibble::sim {

core::SpecFunctions SimSpecFunctions() {
  core::SpecFunctions functions;
  functions.plan = [](const spec::ModelConfig& model, const spec::TrainSpec& spec,
                      const spec::DeviceProfile& profile) -> absl::StatusOr<spec::MemoryPlan> {
    spec::MemoryPlan plan;
    plan.base_bytes = SimBaseBytes(model);
    plan.persistent_bytes = spec.lora_r * kMB;
    const bool all_kept = spec.recompute == spec::Recompute::kNone;
    plan.step_bytes = int64_t{spec.sequence_len} * spec.micro_batch_size * kMB / 16 * (all_kept ? 3 : 1);
    plan.choices.recompute = spec.recompute;
    plan.fixed_bytes = profile.fixed_bytes;
    plan.lower_bound_bytes = plan.TotalBytes();
    return plan;
  };
  functions.choose_recompute =
      [plan = functions.plan](const spec::ModelConfig& model, const spec::TrainSpec& spec,
                              const std::vector<spec::DeviceProfile>& devices)
      -> absl::StatusOr<spec::Recomputation> {
    if (spec.recompute != spec::Recompute::kAuto) return spec::Recomputation{spec.recompute};
    spec::TrainSpec none = spec;
    none.recompute = spec::Recompute::kNone;
    for (const spec::DeviceProfile& device : devices) {
      if (plan(model, none, device)->TotalBytes() > device.capacity_bytes)
        return spec::Recomputation{spec::Recompute::kFull};
    }
    return spec::Recomputation{spec::Recompute::kNone};
  };
  functions.resolve = [](spec::TrainSpec spec,
                         const spec::ModelConfig&) -> absl::StatusOr<spec::TrainSpec> {
    return spec;
  };
  return functions;
}

int64_t SimBaseBytes(const spec::ModelConfig& model) { return model.layers * 100 * kMB; }

Server::Server(World* world, Network* network, const Faults* faults,
               const core::CoreOptions& options, Mutant mutant)
    : world_(*world),
      network_(*network),
      faults_(*faults),
      options_(options),
      mutant_(mutant),
      disk_(world, mutant),
      checker_(world, options, &disk_) {
  disk_.SetFaults([this] {
    if (dying_) return store::MemoryStore::Fault::kFailBefore;
    if (!world_.rng().Chance(faults_.commit_fails)) return store::MemoryStore::Fault::kNone;
    return world_.rng().Chance(0.5) ? store::MemoryStore::Fault::kFailBefore
                                    : store::MemoryStore::Fault::kFailAfter;
  });
}

void Server::Start() {
  if (loop_ != nullptr) return;
  ++life_;
  world_.Trace("server starts");
  ControlLoop::Options options;
  options.core = options_;
  options.batch_us = 0;
  options.tick_us = kSecond;
  options.timeline = "timeline-of-the-run";
  options.decide = MutantDecide(mutant_);
  options.on_commit = [this](const std::vector<core::EventRecord>& records,
                             const core::State& state) {
    for (const core::EventRecord& record : records) {
      if (record.type != "blob.forgotten" || state.blobs.count(record.fields.at("id")) > 0)
        continue;
      blobs_.erase(record.fields.at("id"));
      checker_.BlobForgotten(record.fields.at("id"));
    }
  };
  hubs_.push_back(std::make_unique<WatchHub>(64, 64));
  auto loop = std::make_unique<ControlLoop>(std::move(options), SimSpecFunctions(), &disk_, hub(),
                                            &world_.clock());
  if (!loop->Start().ok()) {  // an injected commit failure; the supervisor starts it again
    const int64_t life = life_;
    world_.After(kSecond, [this, life] {
      if (life == life_ && loop_ == nullptr) Start();
    });
    return;
  }
  loop_ = std::move(loop);
  turn_at_us_ = 0;
  checker_.AfterTurn(loop_->state());
  ScheduleTurn(kSecond);
}

// Nobody is there any more for what the loop would answer at its end.
Server::~Server() {
  ++life_;
  dying_ = true;
  loop_.reset();
}

void Server::Crash() {
  if (loop_ == nullptr) return;
  world_.Trace("server crashes");
  ++life_;
  hub()->Close();
  // What is left in the mailbox dies with the process: its destructor can commit nothing, answer
  // nobody.
  dying_ = true;
  loop_.reset();
  dying_ = false;
}

void Server::Request(const std::string& peer, std::function<void()> handle) {
  network_.Send(peer, [this, handle = std::move(handle)] { Arrived(handle); });
}

void Server::RequestStuck(const std::string& peer, int64_t delay_us, std::function<void()> handle) {
  network_.SendStuck(peer, delay_us, [this, handle = std::move(handle)] { Arrived(handle); });
}

void Server::Arrived(const std::function<void()>& handle) {
  if (loop_ == nullptr) return;
  handle();
  // Some company may come before the turn.
  ScheduleTurn(world_.rng().Between(0, 2'000));
}

void Server::Reply(const std::string& peer, std::function<void()> deliver) {
  network_.Send(Network::Back(peer), [this, life = life_, deliver = std::move(deliver)] {
    if (life == life_) deliver();
  });
}

void Server::Call(const std::string& peer, core::CommandBody body,
                  std::function<void(const Answer&)> done,
                  std::function<void(const absl::Status&)> at_server) {
  const int64_t life = life_;
  const bool posted =
      loop_->Post(std::move(body), [this, peer, life, done, at_server](
                                       absl::Status status, const ControlLoop::Outcome& outcome) {
        if (life != life_) return;
        if (at_server) at_server(status);
        Reply(peer, [done, answer = Answer{std::move(status), outcome.id}] { done(answer); });
      });
  if (!posted) checker_.Fail("the mailbox is full");
}

void Server::Synchronize(
    const std::string& peer, core::Synchronize request,
    std::function<void(const absl::Status&, const ControlLoop::Outcome&)> at_server) {
  static_cast<void>(peer);
  const int64_t life = life_;
  const bool posted = loop_->PostSynchronize(
      std::move(request),
      [this, life, at_server](absl::Status status, const ControlLoop::Outcome& outcome) {
        if (life == life_) at_server(status, outcome);
      });
  if (!posted) checker_.Fail("the mailbox is full");
}

void Server::ScheduleTurn(int64_t delay_us) {
  const int64_t at_us = world_.now_us() + delay_us;
  if (turn_at_us_ != 0 && turn_at_us_ <= at_us) return;
  turn_at_us_ = at_us;
  world_.After(delay_us, [this, life = life_, at_us] {
    if (life != life_ || turn_at_us_ != at_us) return;
    turn_at_us_ = 0;
    Turn();
  });
}

void Server::Turn() {
  loop_->RunOnce(0);
  if (!loop_->serving()) return Crash();  // exit code 74; the supervisor starts it again
  checker_.AfterTurn(loop_->state());
  ScheduleTurn(std::max<int64_t>(1, loop_->NextDueUs() - world_.now_us()));
}

}  // namespace nibble::sim
