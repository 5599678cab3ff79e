#define NIBBLE_BODY avx512
#include "kernels/cpu/body/table.h"
#include "kernels/cpu/bodies.h"

namespace nibble::kernels::cpu {

const KernelTable& Avx512Table() {
  static const KernelTable table = avx512::MakeTable("avx512");
  return table;
}

}  // namespace nibble::kernels::cpu
