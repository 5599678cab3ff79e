#include "kernels/ref/table.h"
#include "kernels/tables.h"

namespace nibble::kernels {

const KernelTable& RefTable() {
  static constexpr KernelTable table =
      ref::MakeTable<float, float>("ref", "scalar", DType::kF32, DType::kF32);
  return table;
}

const KernelTable& Ref64Table() {
  static constexpr KernelTable table =
      ref::MakeTable<double, double>("ref64", "scalar", DType::kF64, DType::kF64);
  return table;
}

}  // namespace nibble::kernels
