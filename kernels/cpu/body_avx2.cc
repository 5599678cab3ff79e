#define NIBBLE_BODY avx2
#include "kernels/cpu/body/table.h"
#include "kernels/cpu/bodies.h"

namespace nibble::kernels::cpu {

const KernelTable& Avx2Table() {
  static const KernelTable table = avx2::MakeTable("avx2");
  return table;
}

}  // namespace nibble::kernels::cpu
