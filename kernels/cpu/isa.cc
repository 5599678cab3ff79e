#include "kernels/cpu/isa.h"

#include <cstdlib>

namespace nibble::kernels::cpu {

Isa DetectIsa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The compiler's run time checks that the operating system saves the registers, too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
#else
  return Isa::kPortable;
#endif
}

Isa ChosenIsa() {
  const Isa best = DetectIsa();
  const char* wanted = std::getenv("NIBBLE_CPU_ISA");
  if (wanted == nullptr) return best;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    if (isa < best && IsaName(isa) == wanted) return isa;
  return best;
}

}  // namespace nibble::kernels::cpu
