#include "kernels/nf4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/counter.h"
#include "kernels/parallel.h"

namespace nibble::kernels {
namespace {

uint32_t Crc32(const void* data, size_t size) {
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; ++i) {
    crc ^= static_cast<const uint8_t*>(data)[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

std::vector<float> Normal(int64_t count, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const double u = CounterUniform(seed, 0, 2 * i) + 0x1p-25, v = CounterUniform(seed, 0, 2 * i + 1);
    values[i] = static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
  }
  return values;
}

WeightView View(QuantType type, const std::vector<uint8_t>& codes, const std::vector<float>& absmax,
                int64_t count, int64_t block) {
  WeightView w;
  w.type = type;
  w.n = 1;
  w.k = count;
  w.data = codes.data();
  w.block = block;
  w.absmax = absmax.data();
  w.code_book = CodeBook(type);
  return w;
}

TEST(Nf4, CodeBookBits) {
  const uint32_t expected[16] = {0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F,
                                 0xBDBA7871, 0x00000000, 0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A,
                                 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000};
  for (int i = 0; i < 16; ++i)
    EXPECT_EQ(std::bit_cast<uint32_t>(CodeBook(QuantType::kNF4)[i]), expected[i]) << i;
}

TEST(Nf4, ThresholdsTieToTheLowerCode) {
  const uint32_t thresholds[15] = {0xBF591CD8, 0xBF1C5270, 0xBEEB8480, 0xBEADEA76, 0xBE703CEC,
                                   0xBE0D38BC, 0xBD3A7871, 0x3D22FAFF, 0x3DF64862, 0x3E5067E0,
                                   0x3E9582D4, 0x3EC753F9, 0x3F006D04, 0x3F248DAF, 0x3F5C89DA};
  for (int i = 0; i < 15; ++i) {
    const float tie = std::bit_cast<float>(thresholds[i]);
    const float values[4] = {1.0f, tie, std::nextafter(tie, 2.0f), std::nextafter(tie, -2.0f)};
    uint8_t codes[2];
    float absmax;
    QuantizeTensor(values, 4, QuantType::kNF4, 64, codes, &absmax, nullptr);
    EXPECT_EQ(absmax, 1.0f);
    EXPECT_EQ(codes[0] & 15, i);
    EXPECT_EQ(codes[1] >> 4, i + 1);
    EXPECT_EQ(codes[1] & 15, i);
  }
}

TEST(Nf4, ZeroAndShortBlocks) {
  std::vector<float> values(64 + 3, 0.0f);
  values[64] = -2.0f;
  values[66] = 1.0f;
  std::vector<uint8_t> codes(static_cast<size_t>(WeightBytes(QuantType::kNF4, 67)));
  std::vector<float> absmax(2);
  QuantizeTensor(values.data(), 67, QuantType::kNF4, 64, codes.data(), absmax.data(), nullptr);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(codes[i], 0x77);
  EXPECT_EQ(absmax[0], 0.0f);
  EXPECT_EQ(absmax[1], 2.0f);
  EXPECT_EQ(codes[32], 0x07);
  EXPECT_EQ(codes[33] >> 4, 12);  // 0.5 < 0.50166
  EXPECT_EQ(codes[33] & 15, 7);   // the missing partner is zero
}

TEST(Nf4, SignedDynamicMapIsTheKnownOne) {
  const float* map = SignedDynamicMap();
  EXPECT_EQ(Crc32(map, 1024), 0x1b137aebu);
  EXPECT_EQ(map[127], 0.0f);
  EXPECT_EQ(map[255], 1.0f);
}

TEST(Nf4, CodesAreTheNearestEntries) {
  for (const QuantType type : {QuantType::kNF4, QuantType::kFP4, QuantType::kINT4, QuantType::kINT8}) {
    const int entries = type == QuantType::kINT8 ? 256 : 16;
    const auto values = Normal(1001, 7);
    std::vector<uint8_t> codes(static_cast<size_t>(WeightBytes(type, 1001)));
    std::vector<float> absmax(static_cast<size_t>(AbsmaxCount(1001, 64)));
    QuantizeTensor(values.data(), 1001, type, 64, codes.data(), absmax.data(), nullptr);
    std::vector<float> back(1001);
    DequantizeRange(View(type, codes, absmax, 1001, 64), 0, 1001, back.data());
    for (int i = 0; i < 1001; ++i) {
      float best = INFINITY;
      for (int c = 0; c < entries; ++c)
        best = std::min(best, std::fabs(CodeBook(type)[c] * absmax[i / 64] - values[i]));
      EXPECT_LE(std::fabs(back[i] - values[i]), best * 1.0001f + 1e-6f) << i;
    }
  }
}

TEST(Nf4, PartsEqualTheWholeOnAnyThreads) {
  const int64_t count = 300 * 1000;
  const auto values = Normal(count, 3);
  std::vector<uint8_t> whole(count / 2), parts(count / 2);
  std::vector<float> absmax(static_cast<size_t>(AbsmaxCount(count, 64))), absmax_parts = absmax;
  ThreadPool pool(3);
  QuantizeTensor(values.data(), count, QuantType::kNF4, 64, whole.data(), absmax.data(), &pool);
  const int64_t cut = 64 * 1001;
  QuantizeTensor(values.data(), cut, QuantType::kNF4, 64, parts.data(), absmax_parts.data(), nullptr);
  QuantizeTensor(values.data() + cut, count - cut, QuantType::kNF4, 64, parts.data() + cut / 2,
                 absmax_parts.data() + 1001, nullptr);
  EXPECT_EQ(whole, parts);
  EXPECT_EQ(absmax, absmax_parts);
}

TEST(Nf4, DoubleQuantizationStaysClose) {
  auto absmax = Normal(1000, 5);
  for (float& a : absmax) a = std::fabs(a) + 0.5f;
  std::vector<uint8_t> codes(1000);
  std::vector<float> nested(static_cast<size_t>(NestedCount(1000)));
  float offset;
  QuantizeAbsmax(absmax.data(), 1000, codes.data(), nested.data(), &offset);
  WeightView w;
  w.absmax_codes = codes.data();
  w.nested_absmax = nested.data();
  w.nested_map = SignedDynamicMap();
  w.offset = offset;
  for (int64_t b = 0; b < 1000; ++b) {
    // Half of the map's widest gap in the upper decade.
    EXPECT_NEAR(WeightAbsmax(w, b), absmax[b], nested[b / 256] * 0.0075f) << b;
  }
}

TEST(Nf4, EqualAbsmaxIsExact) {
  const std::vector<float> absmax(300, 0.25f);
  std::vector<uint8_t> codes(300);
  float nested[2], offset;
  QuantizeAbsmax(absmax.data(), 300, codes.data(), nested, &offset);
  EXPECT_EQ(offset, 0.25f);
  EXPECT_EQ(nested[1], 0.0f);
  EXPECT_EQ(codes[299], 127);
}

// By the words of kernel_table.h: groups of rows, in them blocks, in them rows.
TEST(Tiles, AreGroupsOfRowsBlockByBlock) {
  for (const int64_t n : {1, 7, 16, 17, 40, 48}) {
    constexpr int64_t kRowBlocks = 5;
    for (const int64_t unit : {1, 4, 32, 64}) {
      std::vector<uint8_t> flat(static_cast<size_t>(n * kRowBlocks * unit));
      for (size_t i = 0; i < flat.size(); ++i) flat[i] = static_cast<uint8_t>(i * 2654435761u >> 11);
      std::vector<uint8_t> want, got(flat.size()), back(flat.size());
      for (int64_t group = 0; group < n; group += 16) {
        for (int64_t block = 0; block < kRowBlocks; ++block) {
          for (int64_t row = group; row < std::min(group + 16, n); ++row) {
            EXPECT_EQ(TileIndex(row * kRowBlocks + block, n, kRowBlocks),
                      static_cast<int64_t>(want.size()) / unit);
            const auto at = flat.begin() + (row * kRowBlocks + block) * unit;
            want.insert(want.end(), at, at + unit);
          }
        }
      }
      ToTiles(flat.data(), n, kRowBlocks, unit, got.data());
      EXPECT_EQ(got, want);
      FromTiles(got.data(), n, kRowBlocks, unit, 0, n * kRowBlocks, back.data());
      EXPECT_EQ(back, flat);
      // A part that begins and ends inside of rows.
      if (n < 16) continue;
      std::vector<uint8_t> part(static_cast<size_t>(61 * unit));
      FromTiles(got.data(), n, kRowBlocks, unit, 13, 61, part.data());
      EXPECT_TRUE(std::equal(part.begin(), part.end(), flat.begin() + 13 * unit));
      // A part of whole groups is as long, and at the same place, in both orders.
      ToTiles(flat.data(), 16, kRowBlocks, unit, got.data());
      EXPECT_EQ(got, want);
    }
  }
}

TEST(Tiles, AreForBlocksOf64InWholeRows) {
  EXPECT_TRUE(SuitsTiles(QuantType::kNF4, 192, 64));
  EXPECT_TRUE(SuitsTiles(QuantType::kINT8, 64, 64));
  EXPECT_FALSE(SuitsTiles(QuantType::kNF4, 200, 64));
  EXPECT_FALSE(SuitsTiles(QuantType::kNF4, 256, 128));
  EXPECT_FALSE(SuitsTiles(QuantType::kBF16, 192, 64));
}

}  // namespace
}  // namespace nibble::kernels
