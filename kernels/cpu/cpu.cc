#include "kernels/cpu/isa.h"
#include "kernels/ref/table.h"
#include "kernels/tables.h"

namespace nibble::kernels {
namespace {

const KernelTable& PortableTable() {
  static constexpr KernelTable table =
      ref::MakeTable<BF16, float>("cpu", "portable", DType::kBF16, DType::kF32);
  return table;
}

}  // namespace

const KernelTable& CpuTable() {
  static const KernelTable& table = PortableTable();
  return table;
}

const KernelTable* CpuTableFor(std::string_view body) {
  if (body == "portable") return &PortableTable();
  return nullptr;
}

std::vector<std::string_view> CpuBodies() { return {"portable"}; }

}  // namespace nibble::kernels
