// The cuda kernel tables.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// For a device of compute capability `capability` (major * 10 + minor), 75 or more. Activations are bf16, or
// fp16 when asked for and below 80, where there is no other choice. Its body says which code runs and in
// which type ("sm_90", "sm_75", "sm_90 fp16"): part of the numerics id. From nibble_cuda_kernels.
const KernelTable& CudaTable(int capability, bool fp16);

// The vendor's library of products (libraries.h), behind ctx->libraries from then on; ctx has its stream,
// and its device is the current one. Multiplies a little in `act`, so that the library's code is loaded.
// Returns its version, or 0: `why` then says in a sentence what is missing; everything works without, and
// slower.
int64_t OpenCudaLibraries(Context* ctx, DType act, std::string* why);
void CloseCudaLibraries(Context* ctx);

// The same kernels compiled for the host under kernels/cuda/emulate.h, named "cuda-emulated". From
// nibble_cuda_kernels_emulated.
const KernelTable& EmulatedCudaKernels(bool fp16);

}  // namespace nibble::kernels
