// The amx body on emulated tile registers. Needs a machine with AVX-512 bf16.
#pragma once

#include "kernels/kernel_table.h"

namespace nibble::kernels::check {

const KernelTable& EmulatedAmxTable();

}  // namespace nibble::kernels::check
