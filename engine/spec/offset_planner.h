// Places buffers with known lifetimes in one region: like a heap, but with the future known.
//
// Pure and deterministic: equal input, equal offsets, on every machine. Not optimal (that is
// NP-complete): the best of a few greedy orders, each putting a buffer at the lowest offset where
// nothing that lives at the same time stands.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble::spec {

struct LiveBuffer {
  int64_t size_bytes = 0;
  int32_t first_use = 0;  // operation numbers, inclusive
  int32_t last_use = 0;
};

struct OffsetPlan {
  std::vector<int64_t> offsets;  // one per buffer, multiples of `alignment`
  int64_t total_bytes = 0;
  int64_t lower_bound_bytes = 0;  // the most that is alive at once
  int32_t peak_use = 0;           // an operation where that is so: the first
};

// Ends at the first order whose total is the same multiple of `enough` bytes, rounded up, as the lower bound,
// which no order can undercut. 1: nothing but the best will do. More: total_bytes, rounded up to a multiple
// of it, is what it would be with 1; the offsets may be another order's.
OffsetPlan PlanOffsets(const std::vector<LiveBuffer>& buffers, int64_t alignment, int64_t enough = 1);

}  // namespace nibble::spec
