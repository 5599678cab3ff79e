// Quantization on the device, while a base is loaded: the same bits as kernels/nf4.h's QuantizeTensor and
// QuantizeAbsmax. All pointers are the backend's; nothing needs workspace.
//
// One header for both worlds, for callers that are in neither.
#pragma once

#include "kernels/kernel_table.h"

// `count` values of a tensor that begins at a block; codes and absmax as QuantizeTensor has them. code_book
// is CodeBook(type), on the device. `block` is even.
//
// QuantizeAbsmax: signed_map is SignedDynamicMap(), on the device; *offset is a float there, too.
#define NIBBLE_DECLARE_QUANTIZE                                                                   \
  void Quantize(Context* ctx, ParamView values, int64_t count, QuantType type, int64_t block,     \
                const float* code_book, uint8_t* codes, float* absmax);                           \
  void QuantizeAbsmax(Context* ctx, const float* absmax, int64_t blocks, const float* signed_map, \
                      uint8_t* codes, float* nested_absmax, float* offset);

namespace nibble::kernels::cuda {
NIBBLE_DECLARE_QUANTIZE
}  // namespace nibble::kernels::cuda

namespace nibble::kernels::cuda_emulated {
NIBBLE_DECLARE_QUANTIZE
}  // namespace nibble::kernels::cuda_emulated

#undef NIBBLE_DECLARE_QUANTIZE
