// How fast a device does what a training step mostly does: linear layers on a quantized base. Measured once,
// when a worker starts, for `nibble-engine profile`; the scheduler compares devices by it.
#pragma once

#include <cstdint>

#include "engine/spec/memory_plan.h"
#include "kernels/backend.h"

namespace nibble::engine {

// Millions of floating-point operations (a multiply-add is two) a second of linear_forward on NF4 weights, of
// a size that takes the device about a millisecond; all threads of the backend. Takes some 50 ms. 0 when the
// device has no memory to try.
int64_t MeasureLinearMflopPerS(kernels::Backend& backend, const spec::DeviceProfile& profile);

}  // namespace nibble::engine
