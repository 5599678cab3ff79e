// The kernel tables this build has.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// The definition, in float (act = real = float) and in double.
const KernelTable& RefTable();
const KernelTable& Ref64Table();

// The best cpu body for this machine; NIBBLE_CPU_ISA can lower the choice (kernels/cpu/isa.h). Activations
// are bf16. The choice is made once per process.
const KernelTable& CpuTable();
// By name, as in numerics ids ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"); null when this
// machine cannot run it or the name is unknown.
const KernelTable* CpuTableFor(std::string_view body);
// Names of the bodies there are, on whatever machine, best first; and whether one is called so.
std::vector<std::string_view> AllCpuBodies();
bool IsCpuBody(std::string_view name);
// Names of the bodies this machine can run, best first.
std::vector<std::string_view> CpuBodies();

}  // namespace nibble::kernels
