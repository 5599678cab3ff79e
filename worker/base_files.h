// The quantized bases that engines made (cache/base). Each can be made again from its model, so
// when they are more than the bound, or the disk is full, the least recently used go.
//
// One that an engine has open (a shared flock on it) or is making (an exclusive one) stays. Nothing
// is kept between calls; thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::worker {

// Removes what is beyond `max_bytes`, and what a maker that died has left; returns the bytes that
// stay.
int64_t ShrinkBases(const std::string& directory, int64_t max_bytes);

}  // namespace nibble::worker
