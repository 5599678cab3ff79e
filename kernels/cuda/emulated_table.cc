#include "kernels/cuda/cuda.h"
#include "kernels/cuda/emulated.h"

namespace nibble::kernels {

const KernelTable* EmulatedCudaTable(bool fp16, std::string* why) {
  const CudaAttention* attention = ChosenAttention(true, why);
  return attention == nullptr ? nullptr : &EmulatedCudaKernels(fp16, *attention);
}

}  // namespace nibble::kernels
