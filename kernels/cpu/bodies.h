// The compiled bodies. Call one only when isa.h says that the machine can run it.
#pragma once

#include "kernels/kernel_table.h"

namespace nibble::kernels::cpu {

const KernelTable& Avx2Table();
const KernelTable& Avx512Table();
const KernelTable& Avx512VnniTable();
const KernelTable& Avx512Bf16Table();
const KernelTable& AmxTable();

}  // namespace nibble::kernels::cpu
