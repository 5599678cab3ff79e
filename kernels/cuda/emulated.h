// The CUDA sources compiled for the host: what stands in for a device where there is none. Tests only.
//
// EmulatedCudaTable is the table alone. OpenCuda of the library nibble_kernels_cuda_emulated puts it behind
// device memory of its own: pages that are inaccessible except while an op or a copy runs, so a host that
// follows a device pointer faults at once, and copies out that arrive at Synchronize and no earlier.
#pragma once

#include <string>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// Activations bf16, or fp16, and the attention that NIBBLE_CUDA_ATTENTION asks for (cuda.h). Named
// "cuda-emulated". Null: `why` says what is wrong with that word.
const KernelTable* EmulatedCudaTable(bool fp16, std::string* why);

// Bytes that all emulated devices of this process hold now, of Allocate and of AllocatePinned; and what
// recordings are said to take beside them.
struct EmulatedBytes {
  int64_t device = 0;
  int64_t pinned = 0;
  int64_t recordings = 0;
};
EmulatedBytes EmulatedCudaBytes();

// Of all emulated devices of this process: recordings (backend.h) that are held now, how often one was
// replayed, how many pieces of weights were encoded, and kernels started.
struct EmulatedCounts {
  int64_t recordings = 0;
  int64_t replays = 0;
  int64_t encodings = 0;
  int64_t launches = 0;
};
EmulatedCounts EmulatedCudaCounts();

// Makes the next emulated device fail after this many more ops, as a device does that falls off the bus,
// or find its memory, or the host's page-locked memory, taken at the next Allocate. For tests of what the
// engine makes of it.
void EmulatedCudaFailAfter(int64_t ops);
void EmulatedCudaRefuseNextAllocate();
void EmulatedCudaRefuseNextPinned();
// So many bytes a recording takes for each thing it holds.
constexpr int64_t kEmulatedLaunchBytes = int64_t{8} << 10;
void EmulatedCudaLaunchBytes(int64_t bytes);

}  // namespace nibble::kernels
