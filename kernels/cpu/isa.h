// Which instructions the cpu bodies may use on this machine.
//
// A body is named by its weakest requirement: "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2",
// "portable". The environment variable NIBBLE_CPU_ISA=<body> chooses another one that the machine has. One
// that it has not leaves the choice as it is, and so does a word that names none, which an engine refuses
// before it asks.
#pragma once

#include <string_view>

namespace nibble::kernels::cpu {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3, kAvx512Bf16 = 4, kAmx = 5 };

constexpr std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAmx: return "amx";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAvx512Vnni: return "avx512_vnni";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kPortable: break;
  }
  return "portable";
}

// The most that the processor and the operating system support; every lesser one works, too. Asks the
// system for AMX's tile registers where there are any.
Isa DetectIsa();
// The fastest, or what NIBBLE_CPU_ISA says. Not always the most: Intel's processors do bf16 dot products at
// half the rate of fp32 multiply-adds, so without AMX they run avx512_vnni.
Isa ChosenIsa();

// How many lines that lie a multiple of 4 KiB apart the first-level cache holds; 8 where the system does
// not say.
int FirstLevelWays();

}  // namespace nibble::kernels::cpu
