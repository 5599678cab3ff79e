// The emulated kernels; what they do not have comes from the portable loops.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/emulated.h"
#include "kernels/tables.h"

namespace nibble::kernels {
namespace {

KernelTable MakeTable(bool fp16) {
  KernelTable table = EmulatedCudaKernels(fp16);
  const KernelTable& portable = *CpuTableFor("portable");
  const auto fill = [&](auto op) {
    if (table.*op == nullptr) table.*op = portable.*op;
  };
  fill(&KernelTable::decode_weight);
  fill(&KernelTable::linear_forward);
  fill(&KernelTable::linear_backward);
  fill(&KernelTable::rmsnorm_forward);
  fill(&KernelTable::rmsnorm_backward);
  fill(&KernelTable::attention_forward);
  fill(&KernelTable::attention_backward);
  fill(&KernelTable::attention_decode);
  fill(&KernelTable::cross_entropy);
  fill(&KernelTable::logits);
  fill(&KernelTable::adamw);
  fill(&KernelTable::adamw8);
  fill(&KernelTable::sum_squares);
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
