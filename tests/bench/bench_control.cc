// nibble-bench-control decisions|fleet|durable: how fast the control plane decides.
//
//   decisions  the core alone: 1,000 devices, 100,000 jobs waiting; from empty to full, then with
//              ends and starts in turn; the cost of a placement in each tenth of the filling
//   reads      the same queue: what it costs to say where a job stands and why it waits
//   excerpt    what the loop waits for where a plan is asked for: all that holds a full fleet, copied
//   recover    what a commit that failed costs, with that many finished jobs in the database
//   fleet      a million placements on 5,000 workers, with everything a job's life tells the core
//   durable    the control loop over SQLite: placements that are on the disk
//
// Times are processor time of the one thread that decides; where the disk is waited for, the time on
// the clock stands beside it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/status.h"
#include "server/control_loop.h"
#include "server/core/excerpt.h"
#include "server/core/job_explanation.h"
#include "server/core/schedule_sync.h"
#include "server/store/sqlite_store.h"
#include "tests/bench/core_driver.h"

namespace nibble::bench {
namespace {

using Keys = std::vector<core::AttemptKey>;

// Sums of what passed between Begin and End.
class Lap {
 public:
  void Begin() {
    begin_ = std::chrono::steady_clock::now();
    begin_s_ = ThreadSeconds();
  }
  void End() {
    thread_s_ += ThreadSeconds() - begin_s_;
    clock_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  double thread_s() const { return thread_s_; }
  double clock_s() const { return clock_s_; }

 private:
  std::chrono::steady_clock::time_point begin_;
  double begin_s_ = 0, thread_s_ = 0, clock_s_ = 0;
};

double PeakMb() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  char line[256];
  double mb = 0;
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr) {
    long kb = 0;
    if (std::sscanf(line, "VmHWM: %ld kB", &kb) == 1) mb = static_cast<double>(kb) / 1024;
  }
  if (file != nullptr) std::fclose(file);
  return mb;
}

// Takes `count` at random out of `keys`.
Keys Draw(Keys& keys, size_t count, Random& rng) {
  Keys drawn;
  while (drawn.size() < count && !keys.empty()) {
    std::swap(keys[rng.Below(keys.size())], keys.back());
    drawn.push_back(std::move(keys.back()));
    keys.pop_back();
  }
  return drawn;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// From empty to full, in tenths: as many jobs come as the tenth holds, so that each pass does the same work.
// The first filling is not counted, since its memory is fresh; of the others each tenth's median.
Keys Fill(CoreDriver& core, const Setup& setup, int fillings, int64_t& number) {
  const int64_t tenth = int64_t{setup.workers} * kSlots / 10;
  std::vector<std::vector<double>> us(10);
  Keys running;
  for (int filling = 0; filling < fillings; ++filling) {
    core.Finish(running);
    running.clear();
    for (std::vector<double>& part : us) {
      for (int64_t i = 0; i < tenth; ++i) core.Do(NewJob(number++, setup));
      double spent_s = 0;
      const Keys placed = core.Place(&spent_s);
      if (filling > 0) part.push_back(1e6 * spent_s / static_cast<double>(placed.size()));
      running.insert(running.end(), placed.begin(), placed.end());
    }
  }
  std::printf("empty to full, %d devices of %d slots, %d fillings: us per placement in each tenth:",
              setup.workers, kSlots, fillings - 1);
  std::vector<double> medians;
  for (const std::vector<double>& part : us) {
    medians.push_back(Median(part));
    std::printf(" %.2f", medians.back());
  }
  std::printf("\n  %zu placed; last tenth over first: %.2f\n", running.size(), medians[9] / medians[0]);
  return running;
}

// Asked one by one, as CreateJob and GetJob do; jobs all over the queue.
void Ask(int32_t workers, int64_t queued) {
  Setup setup;
  setup.workers = workers;
  CoreDriver core(setup);
  const int64_t slots = int64_t{workers} * kSlots;
  const int64_t first = 1'000'000;
  for (int64_t i = 0; i < queued + slots; ++i) core.Do(NewJob(first + i, setup));
  double unused_s = 0;
  while (!core.Place(&unused_s).empty()) {
  }
  Random rng(1);
  std::vector<double> place_us, reason_us;
  for (int i = 0; i < 200; ++i) {
    const core::Job& job = core.state().jobs.at(
        NewJob(first + static_cast<int64_t>(rng.Below(static_cast<uint64_t>(queued + slots))), setup).job_id);
    if (job.state != core::JobState::kQueued) continue;
    core::QueueLook look = core.Look();
    const double begin_s = ThreadSeconds();
    CHECK(look.PlaceOf(job) > 0);
    const double placed_s = ThreadSeconds();
    CHECK(!core::StateReason(job, look).empty());
    place_us.push_back(1e6 * (placed_s - begin_s));
    reason_us.push_back(1e6 * (ThreadSeconds() - placed_s));
  }
  std::printf("%lld jobs waiting, %d devices full: its place p50 %.0f us, worst %.0f us; why it waits p50 "
              "%.0f us, worst %.0f us\n",
              static_cast<long long>(core.state().queued_jobs.size()), workers, Median(place_us),
              *std::max_element(place_us.begin(), place_us.end()), Median(reason_us),
              *std::max_element(reason_us.begin(), reason_us.end()));
}

void Decisions(int32_t workers, int64_t queued, int fillings) {
  Setup setup;
  setup.workers = workers;
  CoreDriver core(setup);
  Random rng(1);
  int64_t number = 1'000'000;
  Keys running = Fill(core, setup, fillings, number);
  for (int64_t i = 0; i < queued; ++i) core.Do(NewJob(number++, setup));
  double spent_s = 0;
  int64_t placements = 0;
  std::vector<double> passes;
  for (int round = 0; round < 200; ++round) {
    core.AdvanceUs(1'000'000);
    core.Finish(Draw(running, 256, rng));
    double pass_s = 0;
    const Keys placed = core.Place(&pass_s);
    placements += static_cast<int64_t>(placed.size());
    spent_s += pass_s;
    passes.push_back(pass_s);
    running.insert(running.end(), placed.begin(), placed.end());
    for (size_t i = 0; i < placed.size(); ++i) core.Do(NewJob(number++, setup));
  }
  std::sort(passes.begin(), passes.end());
  std::printf(
      "full, %lld jobs waiting: %lld placements in %.3f s of deciding: %.0f a second; "
      "passes of 256 ends: p50 %.2f ms, p99 %.2f ms; peak %.0f MB; decisions %016llx\n",
      static_cast<long long>(queued), static_cast<long long>(placements), spent_s,
      static_cast<double>(placements) / spent_s, 1e3 * passes[passes.size() / 2],
      1e3 * passes[passes.size() * 99 / 100], PeakMb(),
      static_cast<unsigned long long>(core.fingerprint()));
}

void Fleet(int32_t workers, int64_t wanted) {
  Setup setup;
  setup.workers = workers;
  CoreDriver core(setup);
  Random rng(1);
  Lap all;
  all.Begin();
  int64_t number = 1'000'000;
  int64_t placements = 0;
  double place_s = 0;
  Keys running;
  while (placements < wanted) {
    core.AdvanceUs(1'000'000);
    while (core.state().queued_jobs.size() < 20'000) core.Do(NewJob(number++, setup));
    const Keys placed = core.Place(&place_s);
    placements += static_cast<int64_t>(placed.size());
    running.insert(running.end(), placed.begin(), placed.end());
    core.Finish(Draw(running, 4'000, rng));
  }
  all.End();
  std::printf(
      "%lld placements on %d workers in %.1f s (%.1f s of it placing, %.1f s on the clock): %.0f a "
      "second; peak %.0f MB; decisions %016llx\n",
      static_cast<long long>(placements), workers, all.thread_s(), place_s, all.clock_s(),
      static_cast<double>(placements) / all.thread_s(), PeakMb(),
      static_cast<unsigned long long>(core.fingerprint()));
}

// The loop on this thread, over state.db in a fresh folder.
class DurableLoop {
 public:
  explicit DurableLoop(const std::string& dir) {
    store_ = store::OpenSqliteStore(dir).value();
    ControlLoop::Options options;
    options.core = BenchOptions();
    options.batch_us = 0;
    options.tick_us = int64_t{1} << 50;
    options.timeline = "bench";
    options.on_commit = [this](const std::vector<core::EventRecord>& records, const core::State&) {
      for (const core::EventRecord& record : records) {
        if (record.type == "attempt.assigned") placed_.emplace_back(record.job_id, 0);
      }
    };
    loop_ = std::make_unique<ControlLoop>(std::move(options), SmallPlans(), store_.get(), &hub_,
                                          &RealClock::Get());
    CHECK_OK(loop_->Start());
  }
  void Post(core::CommandBody body) {
    while (!loop_->Post(body,
                        [](absl::Status status, const ControlLoop::Outcome&) { CHECK_OK(status); }))
      Run();
  }
  void Run() {
    while (loop_->mailbox_size() > 0) loop_->RunOnce(0);
  }
  // Placed and committed since the last call.
  Keys Taken() {
    Keys taken;
    for (const core::AttemptKey& key : placed_)
      taken.emplace_back(key.first, loop_->state().jobs.at(key.first).epoch);
    placed_.clear();
    return taken;
  }
  size_t placed() const { return placed_.size(); }
  const core::State& state() const { return loop_->state(); }
  core::Core& core() { return loop_->core(); }

 private:
  std::unique_ptr<store::Store> store_;
  WatchHub hub_;
  std::unique_ptr<ControlLoop> loop_;
  Keys placed_;
};

void ReadAll(DurableLoop& loop, const Setup& setup) {
  for (const core::ValidateDataset& c : Reads(setup)) loop.Post(c);
  loop.Run();
  for (int64_t steps = 500; !loop.state().queued_jobs.empty() || loop.placed() > 0; ++steps) {
    for (const core::AttemptKey& key : loop.Taken()) {
      const core::Fence fence = FenceOf(loop.core().options, loop.state(), key);
      loop.Post(core::ReportCheck{fence, "{}", steps});
      loop.Run();
      loop.Post(ListingWithout(loop.state(), fence.worker_id, {key}));
      loop.Run();
    }
  }
}

void Durable(const std::string& root, int32_t workers) {
  const std::string dir = absl::StrCat(root, "/nibble-bench-", getpid());
  std::filesystem::create_directories(dir);
  Setup setup;
  setup.workers = workers;
  DurableLoop loop(dir);
  for (core::CommandBody& c : Things(setup)) loop.Post(std::move(c));
  loop.Run();
  ReadAll(loop, setup);
  // Placements alone: the fleet is full, as many jobs wait, and then a thousand devices come free.
  const int64_t slots = int64_t{setup.workers} * kSlots;
  int64_t number = 1'000'000;
  for (int64_t i = 0; i < 2 * slots; ++i) loop.Post(NewJob(number++, setup));
  loop.Run();
  Keys running = loop.Taken();
  std::printf("%zu running, %zu waiting\n", running.size(), loop.state().queued_jobs.size());
  Random rng(1);
  int64_t placements = 0;
  Lap all, turn;
  for (int round = 0; round < 40; ++round) {
    const Keys ended = Draw(running, 200, rng);
    std::map<std::string, std::set<core::AttemptKey>> by_worker;
    all.Begin();
    for (const core::AttemptKey& key : ended) {
      const core::Fence fence = FenceOf(loop.core().options, loop.state(), key);
      by_worker[fence.worker_id].insert(key);
      loop.Post(core::ReportFinished{fence, 1, {{"adapter", BlobSha(), 1}}, "max_steps"});
    }
    loop.Run();
    for (const auto& [worker, gone] : by_worker)
      loop.Post(ListingWithout(loop.state(), worker, gone));
    turn.Begin();
    loop.Run();  // the devices are free: places, commits
    turn.End();
    all.End();
    const Keys placed = loop.Taken();
    placements += static_cast<int64_t>(placed.size());
    running.insert(running.end(), placed.begin(), placed.end());
    for (size_t i = 0; i < placed.size(); ++i) loop.Post(NewJob(number++, setup));
    loop.Run();
  }
  std::printf(
      "%lld placements on disk in %.3f s of turns that place (%.3f s on the clock): %.0f a second "
      "(%.0f); with the ends that made room: %.0f a second (%.0f); peak %.0f MB\n",
      static_cast<long long>(placements), turn.thread_s(), turn.clock_s(),
      static_cast<double>(placements) / turn.thread_s(),
      static_cast<double>(placements) / turn.clock_s(),
      static_cast<double>(placements) / all.thread_s(),
      static_cast<double>(placements) / all.clock_s(), PeakMb());
  std::filesystem::remove_all(dir);
}

// Devices that an answer shows where it is not asked for more.
constexpr size_t kShown = 100;

// As PlanJob and ExplainJob do; each part is a turn of the loop.
void CopyFleet(int32_t workers) {
  Setup setup;
  setup.workers = workers;
  CoreDriver core(setup);
  for (int64_t i = 0; i < int64_t{workers} * kSlots + 8; ++i) core.Do(NewJob(1'000'000 + i, setup));
  double unused_s = 0;
  while (!core.Place(&unused_s).empty()) {
  }
  const core::Model& model = core.state().models.begin()->second;
  const auto spent_ms = [](double& begin_s) {
    const double now_s = ThreadSeconds(), passed_s = now_s - begin_s;
    begin_s = now_s;
    return 1e3 * passed_s;
  };
  std::vector<double> at_once_ms, part_ms, take_ms, explain_ms;
  for (int round = 0; round < 10; ++round) {
    double begin_s = ThreadSeconds();
    core::Excerpt whole(model);
    CHECK(whole.Copy(core.state(), SIZE_MAX));
    at_once_ms.push_back(spent_ms(begin_s));
    core::Excerpt excerpt(model);
    for (bool all = false; !all; part_ms.push_back(spent_ms(begin_s))) all = excerpt.Copy(core.state());
    const core::State fleet = std::move(excerpt).Take(1'000'000);
    CHECK(fleet.workers.size() == static_cast<size_t>(workers));
    take_ms.push_back(spent_ms(begin_s));
    core::QueueLook look = core.Look();
    const core::Job& waits = core.state().jobs.at(*core.state().queued_jobs.begin());
    CHECK(core::ExplainJob(waits, look, kShown).devices.size() == static_cast<size_t>(workers));
    explain_ms.push_back(spent_ms(begin_s));
  }
  std::printf(
      "%d devices, %zu jobs on them: copied at once %.1f ms; in %zu parts p50 %.2f ms, worst %.2f ms; "
      "indexed %.0f ms; why one waits, device by device, %.1f ms\n",
      workers, core.state().jobs.size(), Median(at_once_ms), part_ms.size() / 10, Median(part_ms),
      *std::max_element(part_ms.begin(), part_ms.end()), Median(take_ms), Median(explain_ms));
}

// A disk that is full for one commit: what the loop does before it answers, and what a start costs.
void RecoverAfterFailure(const std::string& root, int64_t jobs) {
  const std::string dir = absl::StrCat(root, "/nibble-bench-", getpid());
  std::filesystem::create_directories(dir);
  const auto store = store::OpenSqliteStore(dir).value();
  Setup setup;
  setup.workers = 10;
  CoreDriver core(setup);
  // One job that ended, many times.
  core.Do(NewJob(1, setup));
  const core::Job like = core.state().jobs.begin()->second;
  core::State& state = core.state();
  for (int64_t i = 0; i < jobs; ++i) {
    core::Job job = like;
    job.id = job.uid = absl::StrCat("done-", i);
    job.number = 1'000 + i;
    job.state = core::JobState::kSucceeded;
    job.end_unix_us = 1;
    core::Attempt& attempt = job.attempts[1];
    attempt.job_id = job.id;
    attempt.epoch = job.epoch = 1;
    attempt.state = core::AttemptState::kDone;
    attempt.holds_bytes = false;
    state.touched.jobs.insert(job.id);
    state.touched.attempts.insert({job.id, 1});
    state.jobs[job.id] = std::move(job);
  }
  state.touched.meta = true;
  for (const auto& [id, row] : state.workers) state.touched.workers.insert(id);
  for (const auto& [id, row] : state.models) state.touched.models.insert(id);
  for (const auto& [id, row] : state.datasets) state.touched.datasets.insert(id);
  CHECK_OK(store->Commit(state, {}));
  state.touched = {};
  double begin_s = ThreadSeconds();
  core::State fresh = store->Load().value();
  const double load_s = ThreadSeconds() - begin_s;
  fresh.touched.jobs = {"done-0", "done-1"};
  fresh.touched.attempts = {{"done-0", 1}};
  begin_s = ThreadSeconds();
  CHECK_OK(store->Reread(fresh));
  const double reread_s = ThreadSeconds() - begin_s;
  begin_s = ThreadSeconds();
  fresh.BuildIndexes();
  core::RebuildBoard(&fresh, 1);
  std::printf("%lld finished jobs: all of the database read in %.2f s, two rows read again in %.5f s and the "
              "indexes made anew in %.2f s; peak %.0f MB\n",
              static_cast<long long>(jobs), load_s, reread_s, ThreadSeconds() - begin_s, PeakMb());
  std::filesystem::remove_all(dir);
}

int Main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const auto number = [&](int at, int64_t fallback) {
    int64_t value = fallback;
    if (argc > at && !absl::SimpleAtoi(absl::string_view(argv[at]), &value)) value = fallback;
    return value;
  };
  if (what == "decisions") {
    Decisions(static_cast<int32_t>(number(2, 1'000)), number(3, 100'000),
              std::max(2, static_cast<int>(number(4, 10))));
  } else if (what == "reads") {
    Ask(static_cast<int32_t>(number(2, 1'000)), number(3, 100'000));
  } else if (what == "excerpt") {
    CopyFleet(static_cast<int32_t>(number(2, 5'000)));
  } else if (what == "recover") {
    RecoverAfterFailure(argc > 3 ? argv[3] : std::filesystem::temp_directory_path().string(),
                        number(2, 100'000));
  } else if (what == "fleet") {
    Fleet(static_cast<int32_t>(number(2, 5'000)), number(3, 1'000'000));
  } else if (what == "durable") {
    Durable(argc > 2 ? argv[2] : std::filesystem::temp_directory_path().string(),
            static_cast<int32_t>(number(3, 1'000)));
  } else {
    std::fprintf(stderr,
                 "usage: nibble-bench-control decisions [DEVICES [WAITING [FILLINGS]]]\n"
                 "       nibble-bench-control reads [DEVICES [WAITING]]\n"
                 "       nibble-bench-control excerpt [WORKERS]\n"
                 "       nibble-bench-control recover [JOBS [DIR]]\n"
                 "       nibble-bench-control fleet [WORKERS [PLACEMENTS]]\n"
                 "       nibble-bench-control durable [DIR [WORKERS]]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
