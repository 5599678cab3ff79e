#include "engine/data/packing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"
#include "engine/spec/round.h"
#include "kernels/counter.h"

namespace nibble::engine {
namespace {

// The stream of CounterBits that orders examples; each use of randomness has one of its own.
constexpr uint64_t kOrderStream = 0x6F72646572000000ull;

int64_t RowsPerStep(const spec::TrainSpec& spec) {
  return int64_t{spec.micro_batch_size} * spec.gradient_accumulation_steps;
}

}  // namespace

std::vector<int32_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t count) {
  // Sorting by a keyed hash is a permutation with no state but the key.
  std::vector<std::pair<uint64_t, int32_t>> keyed(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    keyed[i] = {kernels::CounterBits(seed, kOrderStream + static_cast<uint64_t>(epoch),
                                     static_cast<uint64_t>(i)),
                static_cast<int32_t>(i)};
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<int32_t> order(keyed.size());
  for (size_t i = 0; i < keyed.size(); ++i) order[i] = keyed[i].second;
  return order;
}

EpochRows PackRows(std::span<const int32_t> lengths, std::span<const int32_t> order,
                   int32_t sequence_len, bool packing) {
  EpochRows rows;
  if (!packing) {
    rows.examples.reserve(order.size());
    rows.starts.reserve(order.size() + 1);
    for (const int32_t example : order) {
      rows.examples.push_back(example);
      rows.starts.push_back(static_cast<int64_t>(rows.examples.size()));
    }
    return rows;
  }
  struct OpenRow {
    int32_t row;
    int32_t room;
  };
  std::vector<int32_t> row_of;  // as `order`; two passes, so that a row needs no array of its own
  row_of.reserve(order.size());
  std::vector<OpenRow> open;  // in order of opening
  for (const int32_t example : order) {
    const int32_t length = lengths[example];
    CHECK(length <= sequence_len);
    auto fit = std::find_if(open.begin(), open.end(),
                            [&](const OpenRow& row) { return row.room >= length; });
    if (fit == open.end()) {
      if (open.size() == kOpenRows) open.erase(open.begin());
      fit = open.insert(open.end(), {static_cast<int32_t>(rows.count()), sequence_len});
      rows.starts.push_back(0);
    }
    row_of.push_back(fit->row);
    ++rows.starts[static_cast<size_t>(fit->row) + 1];  // its length, for now
    fit->room -= length;
    if (fit->room == 0) open.erase(fit);
  }
  std::partial_sum(rows.starts.begin(), rows.starts.end(), rows.starts.begin());
  rows.examples.resize(order.size());
  std::vector<int64_t> next(rows.starts.begin(), rows.starts.end() - 1);
  for (size_t i = 0; i < order.size(); ++i) {
    rows.examples[static_cast<size_t>(next[static_cast<size_t>(row_of[i])]++)] = order[i];
  }
  return rows;
}

StepSchedule::StepSchedule(std::vector<int32_t> lengths, const spec::TrainSpec& spec)
    : lengths_(std::move(lengths)), spec_(spec) {
  CHECK(!lengths_.empty());
  steps_per_epoch_ = StepsOf(0);
  if (spec_.max_steps > 0) {
    total_steps_ = spec_.max_steps;
    return;
  }
  const auto whole = static_cast<int64_t>(std::floor(spec_.num_epochs));
  const double part = spec_.num_epochs - static_cast<double>(whole);
  for (int64_t epoch = 0; epoch < whole; ++epoch) total_steps_ += StepsOf(epoch);
  if (part > 0) {
    total_steps_ += static_cast<int64_t>(std::ceil(part * static_cast<double>(StepsOf(whole))));
  }
  total_steps_ = std::max<int64_t>(total_steps_, 1);
}

const EpochRows& StepSchedule::RowsOf(int64_t epoch) {
  if (cached_epoch_ != epoch) {
    const auto order = EpochOrder(spec_.seed, epoch, static_cast<int64_t>(lengths_.size()));
    cached_ = PackRows(lengths_, order, spec_.sequence_len, spec_.sample_packing);
    cached_epoch_ = epoch;
  }
  return cached_;
}

int64_t StepSchedule::StepsOf(int64_t epoch) {
  // Without packing every epoch has as many; with packing it depends on the order.
  if (!spec_.sample_packing) {
    return spec::CeilDiv(static_cast<int64_t>(lengths_.size()), RowsPerStep(spec_));
  }
  while (static_cast<int64_t>(last_step_.size()) <= epoch) {
    const auto next = static_cast<int64_t>(last_step_.size());
    const int64_t before = next == 0 ? 0 : last_step_.back();
    last_step_.push_back(before + spec::CeilDiv(RowsOf(next).count(), RowsPerStep(spec_)));
  }
  return last_step_[epoch] - (epoch == 0 ? 0 : last_step_[epoch - 1]);
}

StepSchedule::Step StepSchedule::At(int64_t step) {
  CHECK(step >= 1 && step <= total_steps_);
  Step result;
  int64_t first = 1;  // step of the epoch
  if (spec_.sample_packing) {
    while (last_step_.back() < step) StepsOf(static_cast<int64_t>(last_step_.size()));
    result.epoch =
        std::lower_bound(last_step_.begin(), last_step_.end(), step) - last_step_.begin();
    if (result.epoch > 0) first = last_step_[result.epoch - 1] + 1;
  } else {
    result.epoch = (step - 1) / steps_per_epoch_;
    first = result.epoch * steps_per_epoch_ + 1;
  }
  const EpochRows& rows = RowsOf(result.epoch);
  const int64_t in_epoch = step - first;
  result.epoch_done =
      static_cast<double>(result.epoch) +
      static_cast<double>(in_epoch + 1) / static_cast<double>(StepsOf(result.epoch));
  const int64_t begin = in_epoch * RowsPerStep(spec_);
  const int64_t end = std::min(begin + RowsPerStep(spec_), rows.count());
  for (int64_t row = begin; row < end; ++row) {
    if ((row - begin) % spec_.micro_batch_size == 0) result.batches.emplace_back();
    const auto examples = rows.Row(row);
    result.batches.back().emplace_back(examples.begin(), examples.end());
  }
  return result;
}

}  // namespace nibble::engine
