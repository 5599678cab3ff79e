#define NIBBLE_BODY avx512_bf16
#include "kernels/cpu/body/table.h"
#include "kernels/cpu/bodies.h"

namespace nibble::kernels::cpu {

const KernelTable& Avx512Bf16Table() {
  static const KernelTable table = avx512_bf16::MakeTable("avx512_bf16");
  return table;
}

}  // namespace nibble::kernels::cpu
