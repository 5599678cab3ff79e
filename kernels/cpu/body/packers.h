// What a product (gemm.h) packs its panels with, and the format it is held in.
#pragma once

#include "kernels/cpu/body/fixed_nibbles.h"
#include "kernels/cpu/body/fixed_product.h"
#include "kernels/cpu/body/tile_product.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(NIBBLE_FIXED)
template <bool kWeight>
struct ChooseFormat {
  using Type = OperandFormat;
};
template <>
struct ChooseFormat<true> {
  using Type = FixedFormat;
};
template <bool kWeight>
using FormatOf = typename ChooseFormat<kWeight>::Type;
#else
template <bool kWeight>
using FormatOf = OperandFormat;
#endif

// In fixed point where that is faster and the source is a weight.
template <typename Source, typename HeldIn = FormatOf<Source::kLoads>>
struct RowPacker {
  using Format = HeldIn;
  Source source;
  void operator()(int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) const {
#if defined(NIBBLE_FIXED)
    if constexpr (Format::kFixed) {
      if (NibbleBlocks(source.w))
        return PackFixedNibbleRows(source.w, column, columns, first, depth, panel);
      return PackFixedRows(source, column, columns, first, depth, panel);
    }
#else
    if constexpr (Source::kLoads) {
      if (NibbleBlocks(source.w) && column % kLanes == 0 && (first | depth) % 32 == 0)
        return PackNibbleRows(source.w, column, columns, first, depth, panel);
    }
#endif
    PackRows(source, column, columns, first, depth, panel);
  }
};
template <typename Source, typename HeldIn = FormatOf<Source::kLoads>>
struct ColumnPacker {
  using Format = HeldIn;
  Source source;
  void operator()(int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) const {
#if defined(NIBBLE_FIXED)
    if constexpr (Format::kFixed) {
      if (NibbleBlocks(source.w))
        return PackFixedNibbleColumns(source.w, first, depth, column, columns, panel);
      return PackFixedColumns(source, first, depth, column, columns, panel);
    }
#else
    if constexpr (Source::kLoads) {
      if (NibbleBlocks(source.w) && (column | columns) % 32 == 0 && (first | depth) % kDepthPerStep == 0)
        return PackNibbleColumns(source.w, first, depth, column, columns, panel);
    }
#endif
    PackColumns(source, first, depth, column, columns, panel);
  }
};

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
