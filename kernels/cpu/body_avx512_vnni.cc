#define NIBBLE_BODY avx512_vnni
#include "kernels/cpu/body/table.h"
#include "kernels/cpu/bodies.h"

namespace nibble::kernels::cpu {

const KernelTable& Avx512VnniTable() {
  static const KernelTable table = avx512_vnni::MakeTable("avx512_vnni");
  return table;
}

}  // namespace nibble::kernels::cpu
