// AMX: eight tile registers of 16 rows x 64 bytes, and one instruction that multiplies two of them.
//
// Tiles 0 to 3 hold 32 x 32 sums, 4 and 5 two blocks of 16 rows, 6 and 7 two blocks of 16 columns. A step
// here is 16 pairs of depth. Written in assembly because the compiler's own intrinsics (GCC 12) name neither
// all memory they read nor the memory order they need. With NIBBLE_AMX_EMULATED the same interface runs on
// any machine, for the tests.
#pragma once

#include "kernels/cpu/body/simd.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// Tile shapes for `rows` rows (1 .. 32) of the left-hand side.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t count) {
    const int64_t first = count < 16 ? count : 16, second = count - first;
    Set(0, first), Set(1, first), Set(2, second), Set(3, second);
    Set(4, first), Set(5, second), Set(6, 16), Set(7, 16);
  }

 private:
  void Set(int tile, int64_t count) {
    rows[tile] = static_cast<uint8_t>(count);
    row_bytes[tile] = count > 0 ? 64 : 0;
  }
};

#if defined(NIBBLE_AMX_EMULATED)

struct EmulatedTiles {
  int64_t rows[8];
  float values[8][16][16];
};
static thread_local EmulatedTiles tiles;

static void Configure(const TileConfig& config) {
  for (int i = 0; i < 8; ++i) tiles.rows[i] = config.rows[i];
}
template <int kTile>
static void LoadTile(const void* from, int64_t stride_bytes) {
  for (int64_t r = 0; r < tiles.rows[kTile]; ++r)
    std::memcpy(tiles.values[kTile][r], static_cast<const char*>(from) + r * stride_bytes, 64);
}
template <int kTile>
static void StoreTile(void* to, int64_t stride_bytes) {
  for (int64_t r = 0; r < tiles.rows[kTile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride_bytes, tiles.values[kTile][r], 64);
}
template <int kTile>
static void ZeroTile() {
  std::memset(tiles.values[kTile], 0, sizeof tiles.values[kTile]);
}
template <int kSums, int kRows, int kColumns>
static void MultiplyTiles() {
  for (int64_t r = 0; r < tiles.rows[kSums]; ++r) {
    F32 sums = Load(tiles.values[kSums][r]);
    for (int64_t k = 0; k < 16; ++k)
      sums = MulAdd(Set1(tiles.values[kRows][r][k]), Load(tiles.values[kColumns][k]), sums);
    Store(tiles.values[kSums][r], sums);
  }
}

#else

static void Configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
template <int kTile>
NIBBLE_INLINE void LoadTile(const void* from, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride_bytes), "i"(kTile) : "memory");
}
template <int kTile>
NIBBLE_INLINE void StoreTile(void* to, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride_bytes), "i"(kTile) : "memory");
}
template <int kTile>
NIBBLE_INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSums, int kRows, int kColumns>
NIBBLE_INLINE void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kRows), "i"(kColumns));
}

#endif

// c[rows, columns] (+)= lhs * one tile of a panel; rows <= 32, columns <= 32, steps a multiple of 16.
template <bool kTwoRows, bool kTwoColumns>
static void TileKernel(const char* lhs, int64_t lhs_stride, const float* tile, int64_t steps, float* c,
                       int64_t c_stride, bool accumulate) {
  const int64_t c_bytes = 4 * c_stride;
  if (accumulate) {
    LoadTile<0>(c, c_bytes);
    if (kTwoColumns) LoadTile<1>(c + 16, c_bytes);
    if (kTwoRows) LoadTile<2>(c + 16 * c_stride, c_bytes);
    if (kTwoRows && kTwoColumns) LoadTile<3>(c + 16 * c_stride + 16, c_bytes);
  } else {
    ZeroTile<0>();
    if (kTwoColumns) ZeroTile<1>();
    if (kTwoRows) ZeroTile<2>();
    if (kTwoRows && kTwoColumns) ZeroTile<3>();
  }
  for (int64_t s = 0; s < steps; s += 16) {
    // All loads before all products: the two then overlap better.
    LoadTile<4>(lhs + 4 * s, lhs_stride);
    if (kTwoRows) LoadTile<5>(lhs + 16 * lhs_stride + 4 * s, lhs_stride);
    LoadTile<6>(tile + s * 32, 128);
    if (kTwoColumns) LoadTile<7>(tile + s * 32 + 16, 128);
    MultiplyTiles<0, 4, 6>();
    if (kTwoColumns) MultiplyTiles<1, 4, 7>();
    if (kTwoRows) MultiplyTiles<2, 5, 6>();
    if (kTwoRows && kTwoColumns) MultiplyTiles<3, 5, 7>();
  }
  StoreTile<0>(c, c_bytes);
  if (kTwoColumns) StoreTile<1>(c + 16, c_bytes);
  if (kTwoRows) StoreTile<2>(c + 16 * c_stride, c_bytes);
  if (kTwoRows && kTwoColumns) StoreTile<3>(c + 16 * c_stride + 16, c_bytes);
}

static void MultiplyWithTiles(const char* lhs, int64_t lhs_stride, const float* tile, int64_t steps,
                              int64_t rows, int64_t columns, float* c, int64_t c_stride, bool accumulate) {
  // The tile shapes stay with the thread; nothing else in the process uses tiles.
  static thread_local int64_t configured = 0;
  if (configured != rows) {
    const TileConfig config(rows);
    Configure(config);
    configured = rows;
  }
  const auto kernel = rows > 16 ? (columns > 16 ? &TileKernel<true, true> : &TileKernel<true, false>)
                                : (columns > 16 ? &TileKernel<false, true> : &TileKernel<false, false>);
  kernel(lhs, lhs_stride, tile, steps, c, c_stride, accumulate);
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
