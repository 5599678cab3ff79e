#define NIBBLE_BODY amx
#define NIBBLE_AMX
#include "kernels/cpu/body/table.h"
#include "kernels/cpu/bodies.h"

namespace nibble::kernels::cpu {

const KernelTable& AmxTable() {
  static const KernelTable table = amx::MakeTable("amx");
  return table;
}

}  // namespace nibble::kernels::cpu
