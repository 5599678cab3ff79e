// Workers and their devices: what they may say of themselves, drains, devices that die, fleets that vanish.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "base/error.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;

Reason ReasonOf(const absl::StatusOr<std::string>& answer) { return StatusReason(answer.status()); }

TEST(Drain, RunningJobsMoveWithoutLosingARetry) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  d.Must(DrainWorker{"w1"});
  d.AddWorker("w2");
  // It had not even heard of it: the listing says nothing is left.
  Synchronize sync = d.SyncOf("w1");
  sync.attempts.clear();
  d.Must(sync);
  EXPECT_EQ(d.job("j").attempts.at(1).state, AttemptState::kReleased);
  d.Place();
  EXPECT_EQ(d.job("j").attempts.at(2).worker_id, "w2");
  EXPECT_EQ(d.job("j").infra_retries, 0);
}

// A device its worker cannot open: nothing is placed there, before and after a restart, until it is back.
TEST(Devices, AWithdrawnOneTakesNoWorkUntilItAnswers) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("runs"));
  d.Place();
  const std::string device = d.state().workers.at("w1").devices.begin()->first;
  Synchronize sync = d.SyncOf("w1");
  sync.devices.push_back({device, 0, {}, "cuda:0 does not open"});
  d.Must(sync);
  EXPECT_EQ(d.state().workers.at("w1").devices.at(device).fault, "cuda:0 does not open");
  // Its worker lets go of what was on the way there; the job spends no retry.
  d.Must(ReportFailed{d.FenceOf("runs"), "DEVICE_FAULT", "withdrawn", true, true});
  d.Place();
  EXPECT_EQ(d.job("runs").state, JobState::kQueued);
  EXPECT_EQ(d.job("runs").infra_retries, 0);
  EXPECT_THAT(d.Why("runs"),
              HasSubstr("(cuda:0 does not open) is withdrawn"));
  // It still counts as a device that will be back: a job that fits it is taken, and waits.
  d.Must(Driver::JobOf("waits"));
  d.Place();
  EXPECT_EQ(d.job("waits").state, JobState::kQueued);
  // Another call says nothing new of it; the same process registers again with what it has.
  d.Must(sync);
  d.Must(Driver::WorkerOf("w1", d.state().workers.at("w1").incarnation, 1'000 * kMB));
  EXPECT_EQ(d.state().workers.at("w1").devices.at(device).fault, "cuda:0 does not open");
  sync.devices[0].fault = "";
  sync.attempts.clear();
  d.Must(sync);
  d.Place();
  EXPECT_EQ(d.job("runs").state, JobState::kStarting);
}

TEST(Workers, AJobThatWaitsForADrainingOneIsToldTheWayBack) {
  Driver d;
  d.AddWorker("w1");
  d.Must(DrainWorker{"w1"});
  d.Must(Driver::JobOf("waits"));
  d.Place();
  EXPECT_THAT(d.Why("waits"), HasSubstr("; workers/w1 drains (`nibble worker undrain w1` ends that)"));
  d.AddWorker("w2");
  d.Must(DrainWorker{"w2"});
  EXPECT_THAT(d.Why("waits"), HasSubstr("; workers/w1 and 1 more drain ("));
  d.Must(UndrainWorker{"w1"});
  d.Place();
  EXPECT_EQ(d.job("waits").state, JobState::kStarting);
}

TEST(Devices, ANewProcessHasOpenedWhatItOffers) {
  Driver d;
  d.AddWorker("w1");
  Synchronize sync = d.SyncOf("w1");
  sync.devices.push_back({d.state().workers.at("w1").devices.begin()->first, 0, {}, "dead"});
  d.Must(sync);
  d.Must(Driver::WorkerOf("w1", "another", 1'000 * kMB));
  d.Must(Driver::JobOf("j"));
  d.Place();
  EXPECT_EQ(d.job("j").state, JobState::kStarting);
}

// What a worker says of its devices, made absurd one figure at a time.
TEST(Devices, AbsurdOnesAreRefusedByFieldAndBound) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
  struct Case {
    std::function<void(RegisterWorker&)> spoil;
    const char* field;
    const char* bound;
  };
  const auto first = [](auto change) { return [change](RegisterWorker& c) { change(c.devices[0]); }; };
  const Case cases[] = {
      {[](auto& c) { c.devices.clear(); }, "devices", "1 to 64"},
      {[](auto& c) { c.devices.resize(65, c.devices[0]); }, "devices", "65 entries"},
      {[](auto& c) { c.devices.push_back(c.devices[0]); }, "devices[1].id", "twice"},
      {first([](Device& d) { d.id = ""; }), "devices[0].id", "1 to 63"},
      {first([](Device& d) { d.id = std::string(1 << 20, 'a'); }), "devices[0].id", "1 to 63"},
      {first([](Device& d) { d.id = "../gpu"; }), "devices[0].id", "1 to 63"},
      {first([](Device& d) { d.capacity_bytes = 0; }), "devices[0].capacity_bytes", "must be 1 to"},
      {first([](Device& d) { d.capacity_bytes = kLeast; }), "devices[0].capacity_bytes", "must be 1 to"},
      {first([](Device& d) { d.capacity_bytes = kMost; }), "devices[0].capacity_bytes", "1125899906842624"},
      {first([](Device& d) { d.profile.fixed_bytes = kMost; }), "devices[0].profile.fixed_bytes", "0 to"},
      {first([](Device& d) { d.profile.fixed_bytes = -1; }), "devices[0].profile.fixed_bytes", "got -1"},
      {first([](Device& d) { d.profile.host_capacity_bytes = kMost; }),
       "devices[0].profile.host_capacity_bytes", "0 to"},
      {first([](Device& d) { d.profile.pinned_capacity_bytes = kLeast; }),
       "devices[0].profile.pinned_capacity_bytes", "0 to"},
      {[](auto& c) { c.incarnation.clear(); }, "incarnation", "1 to 128 bytes, got 0"},
      {[](auto& c) { c.incarnation.assign(129, 'i'); }, "incarnation", "1 to 128 bytes, got 129"},
      {[](auto& c) { c.version.assign(513, 'v'); }, "version", "has 513 bytes; at most 512"},
      {first([](Device& d) { d.backend.assign(513, 'b'); }), "devices[0].backend", "at most 512"},
      {first([](Device& d) { d.body.assign(513, 'b'); }), "devices[0].body", "at most 512"},
      {first([](Device& d) { d.description.assign(999, 'd'); }), "devices[0].description", "has 999 bytes"},
      {first([](Device& d) { d.uuid.assign(513, 'u'); }), "devices[0].uuid", "at most 512"},
      {first([](Device& d) { d.profile_json.assign(4097, ' '); }), "devices[0].profile_json", "at most 4096"},
      {[](auto& c) { c.worker_id = "W"; }, "worker_id", "1 to 63"},
  };
  for (const Case& c : cases) {
    Driver d;
    RegisterWorker request = Driver::WorkerOf("w1", "i1", 1'000 * kMB);
    c.spoil(request);
    const absl::Status status = d.Do(request).status();
    ASSERT_FALSE(StatusViolations(status).empty()) << c.field << ": " << status;
    EXPECT_EQ(StatusViolations(status)[0].field, c.field);
    EXPECT_THAT(StatusViolations(status)[0].description, HasSubstr(c.bound)) << c.field;
    EXPECT_TRUE(d.state().workers.empty());
  }
}

// The largest that are let in: nothing of what is summed over them wraps.
TEST(Devices, AFleetAtTheBoundIsCounted) {
  Driver d;
  for (int i = 0; i < 3; ++i) {
    RegisterWorker request = Driver::WorkerOf("w" + std::to_string(i), "i1", int64_t{1} << 50);
    request.devices.resize(64, request.devices[0]);
    for (size_t k = 0; k < 64; ++k) {
      request.devices[k].id = "gpu" + std::to_string(k);
      request.devices[k].profile.linear_mflop_per_s = std::numeric_limits<int64_t>::max() >> (k % 40);
    }
    d.Must(request);
  }
  for (int i = 0; i < 100; ++i) d.Must(Driver::JobOf("j" + std::to_string(i)));
  d.Place();
  EXPECT_TRUE(d.state().queued_jobs.empty());
  const Board& board = d.state().board;
  EXPECT_GT(board.MeanMflops(), 0);
  EXPECT_GT(board.ShareOf(board.FindProject("default"), d.Now().monotonic_us, 0, 0), 0);
}

// All workers fall silent at once, with jobs on them and jobs waiting; what comes back is too small.
TEST(Fleet, MayVanishWhole) {
  Driver d;
  d.AddWorker("w1");
  d.AddWorker("w2");
  for (int i = 0; i < 20; ++i) d.Must(Driver::JobOf("j" + std::to_string(i)));
  d.Place();
  ASSERT_EQ(d.state().board.waiting().size(), 4u);  // eight on each
  d.Advance(d.core().options.lease_lost_us + kSecondUs);
  d.Must(Tick{});
  d.Place();
  EXPECT_EQ(d.state().board.waiting().size(), 20u);
  EXPECT_FALSE(d.Why("j0").empty());
  // Planned and created as before; it waits.
  d.Must(Driver::JobOf("later"));
  EXPECT_FALSE(d.Why("later").empty());
  // Other processes, with devices that can hold none of them.
  d.AddWorker("w1", 50 * kMB, "i2");
  d.AddWorker("w2", 50 * kMB, "i2");
  d.Advance(d.core().options.backoff_max_us);
  for (const char* id : {"w1", "w2"}) d.Must(Synchronize(d.SyncOf(id)));
  d.Place();
  EXPECT_EQ(d.state().board.waiting().size(), 21u);
  EXPECT_EQ(ReasonOf(d.Do(Driver::JobOf("refused"))), Reason::kExceedsDeviceMemory);
  EXPECT_FALSE(d.Why("j0").empty());
  d.AddWorker("w3");
  d.Place();
  EXPECT_EQ(d.state().board.waiting().size(), 13u);
}

TEST(DeleteWorker, OnlyOneThatIsLostForGood) {
  Driver d;
  d.AddWorker("w1");
  d.AddWorker("w2");
  EXPECT_EQ(ReasonOf(d.Do(DeleteWorker{"never"})), Reason::kWorkerNotFound);
  const auto refused = d.Do(DeleteWorker{"w1"});
  EXPECT_EQ(ReasonOf(refused), Reason::kResourceInUse);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("silent for 120 s"));
  d.Must(Driver::JobOf("j"));
  d.Place();
  const std::string there = d.job("j").attempts.at(1).worker_id;
  const std::string other = there == "w1" ? "w2" : "w1";
  d.Advance(d.core().options.lease_lost_us + 1);
  d.Must(d.SyncOf(other));
  d.Must(core::Tick{});
  EXPECT_EQ(ReasonOf(d.Do(DeleteWorker{other})), Reason::kResourceInUse);
  Synchronize late = d.SyncOf(there);
  late.attempts = {{"j", 1, "cpu0", Phase::kTraining, 5, 0, true}};
  d.Must(DeleteWorker{there});
  EXPECT_EQ(d.state().FindWorker(there), nullptr);
  EXPECT_FALSE(d.job("j").attempts.at(1).holds_bytes);
  EXPECT_EQ(d.state().board.FindDevice(there, "cpu0"), -1);
  // It was not dead after all: it is nobody the server knows, and its job is not its own any more.
  EXPECT_EQ(ReasonOf(d.Do(late)), Reason::kWorkerNotFound);
  d.AddWorker(there);
  d.Must(late);
  EXPECT_EQ(d.job("j").state, JobState::kQueued);
  d.Advance(d.core().options.backoff_max_us);
  d.Must(d.SyncOf(other));
  d.Must(d.SyncOf(there));
  d.Place();
  EXPECT_EQ(d.job("j").state, JobState::kStarting);
}

TEST(FullDisk, ItsWorkerGetsNoNewWorkUntilItHasRoom) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  const Fence fence = d.FenceOf("j");
  d.Must(ReportFailed{fence, "STORAGE_FULL", "no space left", true, false});
  EXPECT_EQ(d.state().workers.at("w1").no_room, "no space left");
  Synchronize sync = d.SyncOf("w1");
  sync.no_room = "no space left";
  d.Must(sync);
  d.Advance(d.core().options.backoff_max_us);
  d.Must(sync);
  d.Place();
  EXPECT_EQ(d.job("j").state, JobState::kQueued);
  EXPECT_THAT(d.Why("j"), HasSubstr("the disk of workers/w1 is full (no space left)"));
  // Another takes it; and this one, too, once it says that there is room.
  d.AddWorker("w2");
  d.Place();
  EXPECT_EQ(d.job("j").attempts.at(2).worker_id, "w2");
  d.Must(Driver::JobOf("k"));
  sync.no_room.clear();
  d.Must(sync);
  EXPECT_EQ(d.state().workers.at("w1").no_room, "");
  EXPECT_EQ(d.job("j").infra_retries, 0);
}

// Whoever waits for a pause, a preemption or a start that does not come about reads why.
TEST(StateReason, SaysWhatDoesNotGoThrough) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  const auto tell = [&](Phase phase, const std::string& trouble) {
    Synchronize sync = d.SyncOf("w1");
    sync.attempts.at(0).phase = phase;
    sync.attempts[0].trouble = trouble;
    d.Must(sync);
    return d.Why("j");
  };
  EXPECT_EQ(tell(Phase::kFetching, "its files do not come here: no route"),
            "workers/w1: FETCHING; workers/w1: its files do not come here: no route");
  ReportProgress progress{d.FenceOf("j"), {}};
  progress.head.step = 1;
  d.Must(progress);
  EXPECT_EQ(tell(Phase::kTraining, ""), "");
  EXPECT_EQ(tell(Phase::kTraining, "the checkpoint of step 8 does not go up: too large"),
            "workers/w1: the checkpoint of step 8 does not go up: too large");
  d.Must(PauseJob{"j"});
  EXPECT_EQ(tell(Phase::kUploading, "the checkpoint of step 8 does not go up: too large"),
            "waits for workers/w1 to save a checkpoint and let go; "
            "workers/w1: the checkpoint of step 8 does not go up: too large");
  EXPECT_THAT(tell(Phase::kPausedDisk, "the checkpoint of step 8 does not go up: 5 bytes are free"),
              AllOf(HasSubstr("let go; workers/w1 waits for room on a full disk"),
                    HasSubstr("5 bytes are free")));
  EXPECT_EQ(tell(Phase::kUploading, ""), "waits for workers/w1 to save a checkpoint and let go");
}

}  // namespace
}  // namespace nibble::core
