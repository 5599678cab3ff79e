// Counts calls of the C allocation functions (operator new comes down to them) in a test binary that compiles
// this in. A sanitizer has a malloc of its own; then MallocCountWorks() is false.
#pragma once

#include <cstdint>

namespace nibble::engine::testing {

bool MallocCountWorks();
void StartMallocCount();
// Calls since Start, by all threads.
int64_t StopMallocCount();

}  // namespace nibble::engine::testing
