// The cuda kernel tables.
#pragma once

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// For a device of compute capability `capability` (major * 10 + minor), 75 or more. Activations are bf16, or
// fp16 when asked for and below 80, where there is no other choice. Its body says which code runs and in
// which type ("sm_90", "sm_75", "sm_90 fp16"): part of the numerics id. From nibble_cuda_kernels.
const KernelTable& CudaTable(int capability, bool fp16);

// The same kernels compiled for the host under kernels/cuda/emulate.h, named "cuda-emulated". From
// nibble_cuda_kernels_emulated.
const KernelTable& EmulatedCudaKernels(bool fp16);

}  // namespace nibble::kernels
