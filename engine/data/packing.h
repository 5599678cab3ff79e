// In which order, and in which company, examples are trained on.
//
// All of it is a pure function of (examples' lengths, spec): the permutation of an epoch is keyed
// by (seed, epoch), so a resumed job needs nothing but its step number.
//
// A row is what fills one place of a micro-batch: one example, or with packing as many as fit into
// sequence_len tokens. An optimizer step takes gradient_accumulation_steps micro-batches of
// micro_batch_size rows; the last step of an epoch takes what is left. StepSchedule keeps one epoch
// in memory and is used by one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/spec/train_spec.h"

namespace nibble::engine {

// The numbers 0 .. count-1 in the order of epoch `epoch` (from 0).
std::vector<int32_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t count);

// Rows of example indices, flat: row i is examples[starts[i]] .. examples[starts[i + 1] - 1].
struct EpochRows {
  std::vector<int32_t> examples;
  std::vector<int64_t> starts{0};

  int64_t count() const { return static_cast<int64_t>(starts.size()) - 1; }
  std::span<const int32_t> Row(int64_t i) const {
    return std::span(examples).subspan(starts[i], starts[i + 1] - starts[i]);
  }
};

// Greedy first fit in the given order with at most kOpenRows unfinished rows; rows come out in the
// order in which they were opened. Lengths are tokens, each <= sequence_len.
inline constexpr int kOpenRows = 64;
EpochRows PackRows(std::span<const int32_t> lengths, std::span<const int32_t> order,
                   int32_t sequence_len, bool packing);

class StepSchedule {
 public:
  // `lengths`: tokens of each training example, not empty.
  StepSchedule(std::vector<int32_t> lengths, const spec::TrainSpec& spec);

  // By max_steps, else by num_epochs; at least 1.
  int64_t total_steps() const { return total_steps_; }
  // Steps of the first epoch: what eval_steps and save_steps defaults are measured by.
  int64_t steps_per_epoch() const { return steps_per_epoch_; }

  struct Step {
    int64_t epoch = 0;                                       // from 0
    double epoch_done = 0;                                   // epochs finished after it, e.g. 0.25
    std::vector<std::vector<std::vector<int32_t>>> batches;  // micro-batch, row, example index
  };
  // Step `step`, from 1 to total_steps().
  Step At(int64_t step);

 private:
  const EpochRows& RowsOf(int64_t epoch);
  int64_t StepsOf(int64_t epoch);

  std::vector<int32_t> lengths_;
  spec::TrainSpec spec_;
  std::vector<int64_t> last_step_;  // of each epoch looked at, with packing
  int64_t total_steps_ = 0;
  int64_t steps_per_epoch_ = 0;
  int64_t cached_epoch_ = -1;
  EpochRows cached_;
};

}  // namespace nibble::engine
