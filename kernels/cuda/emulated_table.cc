// Until the CUDA sources themselves run here: the portable loops under the emulation's name.
#include "kernels/cuda/emulated.h"
#include "kernels/tables.h"

namespace nibble::kernels {

const KernelTable& EmulatedCudaTable(bool fp16) {
  static const KernelTable bf16_table = [] {
    KernelTable table = *CpuTableFor("portable");
    table.name = "cuda-emulated";
    table.body = "sm_90";
    return table;
  }();
  static const KernelTable fp16_table = bf16_table;
  return fp16 ? fp16_table : bf16_table;
}

}  // namespace nibble::kernels
