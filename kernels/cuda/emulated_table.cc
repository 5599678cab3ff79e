// The emulated kernels; what they do not have comes from the portable loops.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/emulated.h"
#include "kernels/each_op.h"
#include "kernels/tables.h"

namespace nibble::kernels {
namespace {

KernelTable MakeTable(bool fp16) {
  KernelTable table = EmulatedCudaKernels(fp16);
  const KernelTable& portable = *CpuTableFor("portable");
#define NIBBLE_FILL(op) \
  if (table.op == nullptr) table.op = portable.op;
  NIBBLE_EACH_OP(NIBBLE_FILL)
#undef NIBBLE_FILL
  return table;
}

}  // namespace

const KernelTable& EmulatedCudaTable(bool fp16) {
  // The portable loops know bf16 only.
  static const KernelTable table = MakeTable(false);
  (void)fp16;
  return table;
}

}  // namespace nibble::kernels
