// A KernelTable that notes which memory each op is handed, worked out from the op's own shapes, and then
// calls the real one. It knows no plan: what it has seen is what a plan must have reserved.
//
// One recording at a time in a process; one thread drives it. Notes go to fixed memory: no allocation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace nibble::engine::testing {

// The same ops as `inner`, recorded. Valid until the next call.
const kernels::KernelTable& RecordingTable(const kernels::KernelTable& inner);

// Starts watching two pieces of memory; the marks begin at zero.
void Watch(const void* first, int64_t first_bytes, const void* second, int64_t second_bytes);
// The end of the highest argument inside the piece (0 or 1), in bytes from its start.
int64_t HighWater(int piece);
// Arguments that begin inside a piece and end behind it.
int64_t Overruns();
int64_t OpsSeen();

}  // namespace nibble::engine::testing
