// Which pieces of dynamic shared memory a thread of the running block wrote by a copy and has not
// yet made visible to the tensor cores (PTX: fence.proxy.async): a warpgroup's product must not
// read them (wgmma.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/emulate.h"
#include "kernels/cuda/emulate_sanitizers.h"

namespace nibble::kernels::cuda_emulated {

class UnfencedWrites {
 public:
  // The calling thread has written sixteen bytes there.
  NIBBLE_UNSEEN void Note(const void* to) {
    const int64_t chunk = ChunkOf(to);
    const auto thread = static_cast<uint16_t>(threadIdx.x + 1);
    if (chunk < 0 || chunk >= kChunks || writers_[chunk] == thread) return;
    writers_[chunk] = thread;
    of_thread_[threadIdx.x].push_back(static_cast<uint16_t>(chunk));
  }
  NIBBLE_UNSEEN void Fence() {
    std::vector<uint16_t>& mine = of_thread_[threadIdx.x];
    for (const uint16_t chunk : mine)
      if (writers_[chunk] == threadIdx.x + 1) writers_[chunk] = 0;
    mine.clear();
  }
  NIBBLE_UNSEEN bool Has(const void* at) const { return writers_[ChunkOf(at)] != 0; }

 private:
  static constexpr int64_t kChunks = 227 * 1024 / 16;
  static int64_t ChunkOf(const void* at) {
    return (static_cast<const char*>(at) - static_cast<const char*>(DynamicSharedBytes())) / 16;
  }
  uint16_t writers_[kChunks] = {};  // thread + 1; 0: none
  std::vector<uint16_t> of_thread_[1024];
};

inline UnfencedWrites& Unfenced() {
  static thread_local UnfencedWrites writes;
  return writes;
}

}  // namespace nibble::kernels::cuda_emulated
