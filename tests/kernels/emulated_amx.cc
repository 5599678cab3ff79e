// The amx body on emulated tile registers, for machines without real ones.
#define NIBBLE_BODY amx_emulated
#define NIBBLE_AMX
#define NIBBLE_AMX_EMULATED
#include "kernels/cpu/body/table.h"
#include "tests/kernels/emulated_amx.h"

namespace nibble::kernels::check {

const KernelTable& EmulatedAmxTable() {
  static const KernelTable table = cpu::amx_emulated::MakeTable("amx_emulated");
  return table;
}

}  // namespace nibble::kernels::check
