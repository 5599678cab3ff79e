// Which pieces of dynamic shared memory a thread of the running block wrote by a copy and has not
// yet made visible to the tensor cores (PTX: fence.proxy.async): a warpgroup's product must not
// read them (wgmma.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/emulate.h"
#include "kernels/cuda/emulate_sanitizers.h"

namespace nibble::kernels::cuda_emulated {

// Nothing but numbers that begin as zero: the threads of a block find it without a constructor having run,
// which would be one thread's write and the others' read.
class UnfencedWrites {
 public:
  // The calling thread has written sixteen bytes there.
  NIBBLE_UNSEEN void Note(const void* to) {
    const int64_t chunk = ChunkOf(to);
    if (chunk < 0 || chunk >= kChunks || writers_[chunk] == threadIdx.x + 1) return;
    if (writers_[chunk] != 0) Unlink(chunk);
    uint16_t& first = first_[threadIdx.x];
    if (first != 0) before_[first - 1] = static_cast<uint16_t>(chunk + 1);
    before_[chunk] = 0;
    behind_[chunk] = first;
    first = static_cast<uint16_t>(chunk + 1);
    writers_[chunk] = static_cast<uint16_t>(threadIdx.x + 1);
  }
  NIBBLE_UNSEEN void Fence() {
    for (uint16_t at = first_[threadIdx.x]; at != 0; at = behind_[at - 1]) writers_[at - 1] = 0;
    first_[threadIdx.x] = 0;
  }
  NIBBLE_UNSEEN bool Has(const void* at) const { return writers_[ChunkOf(at)] != 0; }

 private:
  static constexpr int64_t kChunks = 227 * 1024 / 16;
  static int64_t ChunkOf(const void* at) {
    return (static_cast<const char*>(at) - static_cast<const char*>(DynamicSharedBytes())) / 16;
  }
  // Out of the list of the thread that wrote it.
  NIBBLE_UNSEEN void Unlink(int64_t chunk) {
    const uint16_t before = before_[chunk], behind = behind_[chunk];
    (before != 0 ? behind_[before - 1] : first_[writers_[chunk] - 1]) = behind;
    if (behind != 0) before_[behind - 1] = before;
  }

  uint16_t writers_[kChunks];  // thread + 1; 0: none
  // Each thread's chunks as a list: the number of a chunk + 1; 0: none.
  uint16_t first_[1024], before_[kChunks], behind_[kChunks];
};

inline UnfencedWrites& Unfenced() {
  constinit static thread_local UnfencedWrites writes = {};
  return writes;
}

}  // namespace nibble::kernels::cuda_emulated
