// Which instructions the cpu bodies may use on this machine.
//
// A body is named by its weakest requirement: "amx" (reserved), "avx512_bf16", "avx512", "avx2", "portable".
// The environment variable NIBBLE_CPU_ISA=<body> lowers the choice, never raises it; a word that names no
// body is ignored.
#pragma once

#include <string_view>

namespace nibble::kernels::cpu {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

constexpr std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kPortable: break;
  }
  return "portable";
}

// What the processor and the operating system support.
Isa DetectIsa();
// DetectIsa, lowered by NIBBLE_CPU_ISA.
Isa ChosenIsa();

}  // namespace nibble::kernels::cpu
