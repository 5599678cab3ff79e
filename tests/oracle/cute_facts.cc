// Prints what NVIDIA's CuTe headers (CUTLASS, BSD-3-Clause; not part of this repository) say of the
// instructions that kernels/cuda issues, as the fixture tensor_cores.json: which (row, column) each
// lane's registers hold, where the elements of a tile lie in shared memory, and the descriptors its
// products are asked for with.
//
//   cute_facts OUT     built and run by make_tensor_core_fixture.sh; needs no GPU
//
// Everything printed comes out of CuTe's layouts as they are evaluated on the host. What we believe
// ourselves is not in here: that is what tensor_core_oracle_test.cc compares.
#include <cstdio>
#include <cstdlib>
#include <type_traits>

// clang-format off
#include <cute/tensor.hpp>  // before the others
#include <cute/atom/copy_atom.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cutlass/version.h>
// clang-format on

using namespace cute;  // NOLINT: this program is about nothing else

namespace {

FILE* out;
bool first_of_list;

void Open(const char* name) {
  fprintf(out, "%s\"%s\": [", first_of_list ? "" : ",\n", name);
  first_of_list = true;
}
void Comma(bool new_line) {
  if (!first_of_list) fprintf(out, new_line ? ",\n  " : ",");
  first_of_list = false;
}

// [thread][value] -> the layout's number, which is row + rows * column of the operand.
template <class L>
void Rows(const char* name, L layout) {
  Open(name);
  for (int thread = 0; thread < size<0>(layout); ++thread) {
    Comma(true);
    fprintf(out, "[");
    for (int value = 0; value < size<1>(layout); ++value)
      fprintf(out, "%s%d", value > 0 ? "," : "", static_cast<int>(layout(thread, value)));
    fprintf(out, "]");
  }
  fprintf(out, "]");
  first_of_list = false;
}

// Fragments of a product; they must be the same for the types of the other instructions named.
template <class Op, class... Same>
void WarpProduct(const char* name) {
  using T = MMA_Traits<Op>;
  static_assert((std::is_same_v<typename T::ALayout, typename MMA_Traits<Same>::ALayout> && ...));
  static_assert((std::is_same_v<typename T::BLayout, typename MMA_Traits<Same>::BLayout> && ...));
  static_assert((std::is_same_v<typename T::CLayout, typename MMA_Traits<Same>::CLayout> && ...));
  fprintf(out, "%s\"%s\": {\n", first_of_list ? "" : ",\n", name);
  first_of_list = true;
  Rows("a", typename T::ALayout{});
  Rows("b", typename T::BLayout{});
  Rows("c", typename T::CLayout{});
  fprintf(out, "}");
  first_of_list = false;
}

// Of a matrix load that gives every lane four registers: where each of its eight elements of 16
// bits comes from, lane * 8 + element of that lane's row.
template <class Op>
void MatrixLoad(const char* name) {
  using T = Copy_Traits<Op>;
  // Both layouts number the same bits.
  int lane_of[32 * 128], element_of[32 * 128];
  for (int lane = 0; lane < 32; ++lane)
    for (int bit = 0; bit < 128; ++bit) {
      const int at = typename T::SrcLayout{}(lane, bit);
      lane_of[at] = lane, element_of[at] = bit;
    }
  Open(name);
  for (int lane = 0; lane < 32; ++lane) {
    Comma(true);
    fprintf(out, "[");
    for (int value = 0; value < 8; ++value) {
      for (int bit = 0; bit < 16; ++bit) {
        const int at = typename T::DstLayout{}(lane, value * 16 + bit);
        const int before = typename T::DstLayout{}(lane, value * 16);
        if (element_of[at] % 16 != bit || lane_of[at] != lane_of[before]) abort();
      }
      const int at = typename T::DstLayout{}(lane, value * 16);
      fprintf(out, "%s%d", value > 0 ? "," : "", lane_of[at] * 8 + element_of[at] / 16);
    }
    fprintf(out, "]");
  }
  fprintf(out, "]");
  first_of_list = false;
}

// A warpgroup's product, both operands in shared memory or the left one in registers. Which
// operand's layout has which number of columns is the same for both types.
template <int kN, class Tiles, class Turned, class TilesHalf, class TurnedHalf>
void WarpgroupProduct() {
  using S = MMA_Traits<Tiles>;
  using R = MMA_Traits<Turned>;
  static_assert(std::is_same_v<typename S::CLayout, typename MMA_Traits<TilesHalf>::CLayout>);
  static_assert(std::is_same_v<typename S::CLayout, typename R::CLayout>);
  static_assert(std::is_same_v<typename R::ALayout, typename MMA_Traits<TurnedHalf>::ALayout>);
  static_assert(std::is_same_v<typename R::CLayout, typename MMA_Traits<TurnedHalf>::CLayout>);
  fprintf(out, "%s\"%d\": {\n", first_of_list ? "" : ",\n", kN);
  first_of_list = true;
  Rows("a", typename R::ALayout{});
  Rows("c", typename S::CLayout{});
  fprintf(out, "}");
  first_of_list = false;
}

void Words(const char* name, const GmmaDescriptor* descriptors, int count) {
  Open(name);
  for (int i = 0; i < count; ++i) {
    Comma(false);
    fprintf(out, "\"%016llx\"", static_cast<unsigned long long>(descriptors[i].desc_));
  }
  fprintf(out, "]");
  first_of_list = false;
}

// A tile of 16-bit elements, swizzled by 128 bytes: for each row and eight columns where they
// begin, in units of 16 bytes; and the descriptors, without the tile's address, of all steps of 16
// along the depth.
//   straight: rows are the product's (64 of its left operand at a time, kN of its right one),
//   columns its depth turned: rows are the depth, columns the product's
template <int kRows, int kColumns>
void TileFacts() {
  using T = bfloat16_t;
  constexpr auto kK = SM90::GMMA::Major::K, kMN = SM90::GMMA::Major::MN;
  static_assert(
      std::is_same_v<SM90::GMMA::Layout_K_SW128_Atom<T>, SM90::GMMA::Layout_K_SW128_Atom<half_t>>);
  static_assert(std::is_same_v<SM90::GMMA::Layout_MN_SW128_Atom<T>,
                               SM90::GMMA::Layout_MN_SW128_Atom<half_t>>);
  alignas(1024) static T memory[kRows * kColumns];
  const auto straight =
      tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<T>{}, Shape<Int<kRows>, Int<kColumns>>{});
  // Its first extent is the product's columns. The depth is stacked first, as the rows of a block
  // are.
  const auto turned = tile_to_shape(SM90::GMMA::Layout_MN_SW128_Atom<T>{},
                                    Shape<Int<kColumns>, Int<kRows>>{}, Step<_2, _1>{});
  fprintf(out, "%s{\"rows\": %d, \"columns\": %d,\n", first_of_list ? "" : ",\n", kRows, kColumns);
  first_of_list = true;
  const auto chunks = [](const char* name, auto at) {
    Open(name);
    for (int row = 0; row < kRows; ++row) {
      Comma(true);
      fprintf(out, "[");
      for (int column = 0; column < kColumns; column += 8) {
        const int begin = at(row, column);
        for (int i = 0; i < 8; ++i)
          if (begin % 8 != 0 || at(row, column + i) != begin + i) abort();
        fprintf(out, "%s%d", column > 0 ? "," : "", begin / 8);
      }
      fprintf(out, "]");
    }
    fprintf(out, "]");
    first_of_list = false;
  };
  // A tensor's pointer swizzles the address, its layout alone does not.
  const auto as_rows = make_tensor(make_smem_ptr(memory), straight);
  const auto as_depth = make_tensor(make_smem_ptr(memory), turned);
  chunks("straight",
         [&](int row, int column) { return static_cast<int>(&as_rows(row, column) - memory); });
  chunks("turned",
         [&](int row, int column) { return static_cast<int>(&as_depth(column, row) - memory); });

  // Both operands of a product like this one; only one of them is looked at.
  using Columns = std::conditional_t<kRows == 64, SM90_64x64x16_F32BF16BF16_SS<kK, kK>,
                                     SM90_64x128x16_F32BF16BF16_SS<kK, kK>>;
  using Depths = std::conditional_t<kColumns == 64, SM90_64x64x16_F32BF16BF16_RS<kK, kMN>,
                                    SM90_64x128x16_F32BF16BF16_RS<kK, kMN>>;
  const auto product = make_tiled_mma(Columns{}).get_slice(0);
  const auto left = product.make_fragment_A(product.partition_A(as_rows));
  const auto right = product.make_fragment_B(product.partition_B(as_rows));
  const auto turned_product = make_tiled_mma(Depths{}).get_slice(0);
  const auto depth = turned_product.make_fragment_B(turned_product.partition_B(as_depth));
  GmmaDescriptor words[64];
  int count = 0;
  for (int row = 0; row < size<1>(left); ++row)
    for (int k = 0; k < size<2>(left); ++k) words[count++] = left(Int<0>{}, row, k);
  Words("left", words, count);  // 64 rows after the other, of each all of the depth
  count = 0;
  if (size<1>(right) != 1) abort();
  for (int k = 0; k < size<2>(right); ++k) words[count++] = right(Int<0>{}, 0, k);
  Words("right", words, count);
  count = 0;
  if (size<1>(depth) != 1) abort();
  for (int k = 0; k < size<2>(depth); ++k) words[count++] = depth(Int<0>{}, 0, k);
  Words("depth", words, count);
  fprintf(out, "}");
  first_of_list = false;
}

}  // namespace

int main(int argc, char** argv) {
  out = argc == 2 ? fopen(argv[1], "w") : nullptr;
  if (out == nullptr) return 2;
  constexpr auto kK = SM90::GMMA::Major::K, kMN = SM90::GMMA::Major::MN;
  fprintf(out, "{\"made_by\": \"cute_facts.cc with CUTLASS %d.%d.%d\",\n\"mma\": {", CUTLASS_MAJOR,
          CUTLASS_MINOR, CUTLASS_PATCH);
  first_of_list = true;
  WarpProduct<SM80_16x8x16_F32BF16BF16F32_TN, SM80_16x8x16_F32F16F16F32_TN>("m16n8k16");
  WarpProduct<SM75_16x8x8_F32F16F16F32_TN>("m16n8k8");
  fprintf(out, "},\n\"ldmatrix\": {");
  first_of_list = true;
  MatrixLoad<SM75_U32x4_LDSM_N>("plain");
  MatrixLoad<SM75_U16x8_LDSM_T>("transposed");
  fprintf(out, "},\n\"wgmma\": {");
  first_of_list = true;
  WarpgroupProduct<64, SM90_64x64x16_F32BF16BF16_SS<kK, kK>, SM90_64x64x16_F32BF16BF16_RS<kK, kMN>,
                   SM90_64x64x16_F32F16F16_SS<kK, kK>, SM90_64x64x16_F32F16F16_RS<kK, kMN>>();
  WarpgroupProduct<128, SM90_64x128x16_F32BF16BF16_SS<kK, kK>,
                   SM90_64x128x16_F32BF16BF16_RS<kK, kMN>, SM90_64x128x16_F32F16F16_SS<kK, kK>,
                   SM90_64x128x16_F32F16F16_RS<kK, kMN>>();
  fprintf(out, "},\n\"turned_operand\": %d,\n\"tiles\": [", static_cast<int>(kMN));
  first_of_list = true;
  TileFacts<64, 64>();
  TileFacts<64, 128>();
  TileFacts<128, 64>();
  TileFacts<128, 128>();
  fprintf(out, "]}\n");
  return fclose(out) == 0 ? 0 : 1;
}
