#include <algorithm>
#include <iterator>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/isa.h"
#include "kernels/ref/table.h"
#include "kernels/tables.h"

namespace nibble::kernels {
namespace {

using cpu::Isa;

constexpr Isa kBestFirst[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512Vnni, Isa::kAvx512,
                               Isa::kAvx2, Isa::kPortable};

// The reference ops with bf16 activations: correct everywhere, fast nowhere.
const KernelTable& PortableTable() {
  static constexpr KernelTable table =
      ref::MakeTable<BF16, float>("cpu", "portable", DType::kBF16, DType::kF32);
  return table;
}

const KernelTable& TableOf(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAmx: return cpu::AmxTable();
    case Isa::kAvx512Bf16: return cpu::Avx512Bf16Table();
    case Isa::kAvx512Vnni: return cpu::Avx512VnniTable();
    case Isa::kAvx512: return cpu::Avx512Table();
    case Isa::kAvx2: return cpu::Avx2Table();
    case Isa::kPortable: break;
  }
#endif
  (void)isa;
  return PortableTable();
}

}  // namespace

const KernelTable& CpuTable() {
  static const KernelTable& table = TableOf(cpu::ChosenIsa());
  return table;
}

const KernelTable* CpuTableFor(std::string_view body) {
  const Isa best = cpu::DetectIsa();
  for (const Isa isa : kBestFirst)
    if (isa <= best && cpu::IsaName(isa) == body) return &TableOf(isa);
  return nullptr;
}

std::vector<std::string_view> AllCpuBodies() {
  std::vector<std::string_view> names;
  for (const Isa isa : kBestFirst) names.push_back(cpu::IsaName(isa));
  return names;
}

bool IsCpuBody(std::string_view name) {
  return std::any_of(std::begin(kBestFirst), std::end(kBestFirst),
                     [&](Isa isa) { return cpu::IsaName(isa) == name; });
}

std::vector<std::string_view> CpuBodies() {
  std::vector<std::string_view> names;
  for (const Isa isa : kBestFirst)
    if (isa <= cpu::DetectIsa()) names.push_back(cpu::IsaName(isa));
  return names;
}

}  // namespace nibble::kernels
