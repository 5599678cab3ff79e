// A core full of jobs for the benchmarks: workers, data that has been read, jobs that wait.
//
// Plans are small stand-ins, so that a device holds eight jobs; all else is the real core.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/core/apply.h"
#include "server/core/decide.h"
#include "server/core/state.h"
#include "server/core/views.h"

namespace nibble::bench {

inline constexpr int64_t kGb = 1'000'000'000;
inline constexpr int32_t kSlots = 8;  // jobs a device can hold

// Processor time of this thread: what others do on the machine does not count.
double ThreadSeconds();

core::SpecFunctions SmallPlans();
core::CoreOptions BenchOptions();

// `kinds` models, data sets that a CHECK has read, workers with one device each.
struct Setup {
  int32_t workers = 1'000;
  int32_t kinds = 4;
  int32_t datasets = 50;
};
std::string WorkerId(int32_t index);
core::RegisterWorker Registration(int32_t index);
std::vector<core::CommandBody> Things(const Setup& setup);
// Job `number`; its model, data and length follow from the number.
core::CreateJob NewJob(int64_t number, const Setup& setup);

// What has the data of all such jobs read.
std::vector<core::ValidateDataset> Reads(const Setup& setup);

// The core alone: Decide and Apply.
class CoreDriver {
 public:
  explicit CoreDriver(const Setup& setup);
  void Do(core::CommandBody body);
  // One pass of the scheduler and what it changes; the placements it made. Its ThreadSeconds are
  // added to *spent_s.
  std::vector<core::AttemptKey> Place(double* spent_s);
  // Ends them: finished, no longer listed, and forgotten.
  void Finish(const std::vector<core::AttemptKey>& attempts);
  core::State& state() { return state_; }
  core::QueueLook Look() { return core::QueueLook(state_, core_, now_us_); }
  void AdvanceUs(int64_t us) { now_us_ += us; }
  // Of all placements so far, in order: two schedulers that decide the same have the same.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  core::State state_;
  core::Core core_;
  std::vector<core::EventRecord> records_;
  int64_t now_us_ = 1'000'000;
  uint64_t fingerprint_ = 0xcbf29ce484222325;  // FNV-1a
};

core::Fence FenceOf(const core::CoreOptions& options, const core::State& state,
                    const core::AttemptKey& key);
// What the worker says after it let go of `gone`.
core::Synchronize ListingWithout(const core::State& state, const std::string& worker,
                                 const std::set<core::AttemptKey>& gone);
const std::string& BlobSha();

}  // namespace nibble::bench
