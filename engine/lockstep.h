// The micro-batches of several jobs at once, each with its own adapter, activations and dropout, so that
// every frozen weight is decoded once for all of them.
//
// Each executor goes as far as its next product with a frozen weight and waits there. The products that are
// first in the order all jobs of a base have in common (step_program.h) are done as one call of
// linear_forward_parts or linear_backward_parts, and who took part goes on. A job that does not recompute, or
// has fewer targets or micro-batches than the others, is not at all the same places; it waits where it is.
// Every result has the bits of the job alone, since a part has (kernels/kernel_table.h).
//
// On the host, over one table and base. Allocates nothing. One thread drives it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/kernel_executor.h"
#include "kernels/backend.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

class Lockstep {
 public:
  static constexpr size_t kMost = 16;  // jobs

  struct Member {
    KernelExecutor* executor = nullptr;  // PrepareInPieces was called
    std::span<const MicroBatch> batches;
    double gradient_scale = 0;
    int64_t step = 0;
  };

  // `workspace` serves every operation of the members and the products of all of them together. It is where
  // their executors' step region begins.
  Lockstep(kernels::Backend& backend, const kernels::KernelTable& table, std::byte* workspace,
           int64_t workspace_bytes)
      : context_(backend.context()),
        table_(table),
        workspace_(workspace),
        workspace_bytes_(workspace_bytes) {}

  // Forward and backward of all micro-batches, at most kMost members; less when the first one's StepStopped.
  void Run(std::span<const Member> members);

 private:
  struct At {
    int64_t micro_batch = 0;
    int32_t place = -1;
    bool done = false;
  };

  // To the next product, of this micro-batch or the next.
  void Advance(const Member& member, At& at);
  // The products of those that are at this place.
  void Multiply(std::span<const Member> members, const At& first);

  kernels::Context& context_;
  const kernels::KernelTable& table_;
  std::byte* const workspace_;
  const int64_t workspace_bytes_;
  std::array<At, kMost> at_;
  std::array<kernels::LinearPart, kMost> parts_;
  std::array<kernels::LoraArgs, kMost> loras_;
};

}  // namespace nibble::engine
