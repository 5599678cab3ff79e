#include "kernels/cpu/isa.h"

#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace nibble::kernels::cpu {
namespace {

// Tiles need the system's leave: their state makes a thread's context 8 KiB larger.
bool RequestAmx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16Bit = 1u << 22, kTileBit = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kBf16Bit) == 0 || (d & kTileBit) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa Detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The compiler's run time checks that the operating system saves the registers, too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Vnni;
  return RequestAmx() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kPortable;
#endif
}

bool IsIntel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

Isa DetectIsa() {
  static const Isa isa = Detect();
  return isa;
}

Isa ChosenIsa() {
  const Isa most = DetectIsa();
  if (const char* wanted = std::getenv("NIBBLE_CPU_ISA"); wanted != nullptr) {
    for (int isa = 0; isa <= static_cast<int>(most); ++isa)
      if (IsaName(static_cast<Isa>(isa)) == wanted) return static_cast<Isa>(isa);
  }
  return most == Isa::kAvx512Bf16 && IsIntel() ? Isa::kAvx512Vnni : most;
}

int FirstLevelWays() {
  static const int ways = [] {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    if (bytes >= 4096) return static_cast<int>(bytes / 4096);
#endif
    return 8;
  }();
  return ways;
}

}  // namespace nibble::kernels::cpu
