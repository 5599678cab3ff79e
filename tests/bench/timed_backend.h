// A backend that waits for every op and says how long each kind of op took: where a step's time goes. Steps
// are slower than without, and nothing is recorded or runs beside something else.
//
// One at a time, on one thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/backend.h"

namespace nibble::bench {

class TimedBackend final : public kernels::Backend {
 public:
  explicit TimedBackend(std::unique_ptr<kernels::Backend> inner)
      : inner_(std::move(inner)), table_(inner_->table()) {
    current_ = this;
    WrapAll(std::make_index_sequence<std::size(kOps)>());
  }
  ~TimedBackend() override { current_ = nullptr; }

  // Forgets what was measured so far.
  void Restart() { times_ = {}; }
  // {"linear_forward": {"calls": 12, "us": 3456}, ...} of those that were called.
  nlohmann::json Times() const {
    nlohmann::json out = nlohmann::json::object();
    for (size_t i = 0; i < times_.size(); ++i) {
      if (times_[i].calls > 0) out[kOps[i]] = {{"calls", times_[i].calls}, {"us", times_[i].ns / 1000}};
    }
    return out;
  }

  const kernels::KernelTable& table() const override { return table_; }
  kernels::Context& context() override { return inner_->context(); }
  bool is_host() const override { return inner_->is_host(); }
  void* Allocate(int64_t bytes) override { return inner_->Allocate(bytes); }
  void Release(void* device) override { inner_->Release(device); }
  void* AllocatePinned(int64_t bytes) override { return inner_->AllocatePinned(bytes); }
  void ReleasePinned(void* host) override { inner_->ReleasePinned(host); }
  void CopyIn(kernels::Lane lane, void* device, const void* host, int64_t bytes) override {
    inner_->CopyIn(lane, device, host, bytes);
  }
  void CopyOut(kernels::Lane lane, void* host, const void* device, int64_t bytes) override {
    inner_->CopyOut(lane, host, device, bytes);
  }
  void CopyWithin(kernels::Lane lane, void* to, const void* from, int64_t bytes) override {
    inner_->CopyWithin(lane, to, from, bytes);
  }
  void Fill(void* device, uint8_t byte, int64_t bytes) override { inner_->Fill(device, byte, bytes); }
  void Wait(kernels::Lane waiting, kernels::Lane awaited) override { inner_->Wait(waiting, awaited); }
  bool Synchronize() override { return inner_->Synchronize(); }
  kernels::Fault fault() const override { return inner_->fault(); }
  const char* error() const override { return inner_->error(); }
  int64_t fixed_bytes() const override { return inner_->fixed_bytes(); }
  int64_t late_bytes() const override { return inner_->late_bytes(); }
  int64_t free_bytes() const override { return inner_->free_bytes(); }
  kernels::DecodeAhead* ahead() override { return inner_->ahead(); }
  const kernels::Encoders* encoders() const override { return inner_->encoders(); }

 private:
  using Table = kernels::KernelTable;
  static constexpr const char* kOps[] = {
      "decode_weight",       "linear_forward",     "linear_backward",    "linear_group_forward",
      "linear_group_backward", "rmsnorm_forward",  "rmsnorm_backward",   "add",
      "rope",                "attention_forward",  "attention_backward", "gated_forward",
      "gated_backward",      "split_columns",      "join_columns",       "embedding_forward",
      "cross_entropy",       "adamw",
      "adamw8",              "sum_squares",        "to_act"};
  static constexpr auto kMembers = std::make_tuple(
      &Table::decode_weight, &Table::linear_forward, &Table::linear_backward, &Table::linear_group_forward,
      &Table::linear_group_backward, &Table::rmsnorm_forward, &Table::rmsnorm_backward, &Table::add,
      &Table::rope, &Table::attention_forward, &Table::attention_backward, &Table::gated_forward,
      &Table::gated_backward, &Table::split_columns, &Table::join_columns, &Table::embedding_forward,
      &Table::cross_entropy, &Table::adamw, &Table::adamw8, &Table::sum_squares, &Table::to_act);
  static_assert(std::size(kOps) == std::tuple_size_v<decltype(kMembers)>);

  template <size_t kOp, typename... A>
  static void Call(kernels::Context* ctx, A... arguments) {
    using Clock = std::chrono::steady_clock;
    current_->inner_->Synchronize();
    const Clock::time_point began = Clock::now();
    (current_->inner_->table().*std::get<kOp>(kMembers))(ctx, arguments...);
    current_->inner_->Synchronize();
    Time& time = current_->times_[kOp];
    ++time.calls;
    time.ns += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began).count();
  }
  template <size_t kOp, typename... A>
  void Wrap(void (*Table::*member)(kernels::Context*, A...)) {
    if (table_.*member != nullptr) table_.*member = &Call<kOp, A...>;
  }
  template <size_t... kOp>
  void WrapAll(std::index_sequence<kOp...>) {
    (Wrap<kOp>(std::get<kOp>(kMembers)), ...);
  }

  struct Time {
    int64_t calls = 0, ns = 0;
  };
  static inline TimedBackend* current_ = nullptr;
  const std::unique_ptr<kernels::Backend> inner_;
  Table table_;
  std::array<Time, std::size(kOps)> times_{};
};

}  // namespace nibble::bench
