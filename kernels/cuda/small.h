// Linear layers for a handful of rows, as generation has them: the weight is decoded in registers and
// multiplied there, so that its codes are all that is read.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

constexpr int64_t kSmallRows = 8;

// The whole of linear_forward, or false when it is not for this: more than kSmallRows rows, dropout, a weight
// that is neither 4-bit nor of the activation type, or shapes that 16-byte accesses do not suit. Needs no
// workspace.
template <typename Act>
bool LinearForwardSmall(Context* ctx, void* y, const void* x, const LinearArgs& args);

}  // namespace nibble::kernels::NIBBLE_CUDA
