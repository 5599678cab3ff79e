#include "kernels/cuda/cuda.h"
#include "kernels/cuda/emulated.h"

namespace nibble::kernels {

const KernelTable& EmulatedCudaTable(bool fp16) { return EmulatedCudaKernels(fp16); }

}  // namespace nibble::kernels
