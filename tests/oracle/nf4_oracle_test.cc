// kernels/nf4 against what bitsandbytes made of the same tensors (fixtures/nf4.safetensors).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/nf4.h"
#include "kernels/tables.h"
#include "tests/oracle/fixture.h"

namespace nibble::oracle {
namespace {

using kernels::QuantType;

constexpr int64_t kBlock = 64;

const Fixture& Nf4() {
  static const Fixture fixture = Fixture::Open(FixturePath("nf4.safetensors"));
  return fixture;
}

std::vector<std::string> Cases() {
  return nlohmann::json::parse(ReadFileOrDie(FixturePath("nf4.json"))).at("cases");
}

struct Quantized {
  std::vector<float> values;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Quantized Quantize(const std::string& name, QuantType type) {
  Quantized q;
  q.values = Nf4().Floats(name + ".input");
  const int64_t count = static_cast<int64_t>(q.values.size());
  q.codes.resize(kernels::WeightBytes(type, count));
  q.absmax.resize(kernels::AbsmaxCount(count, kBlock));
  kernels::QuantizeTensor(q.values.data(), count, type, kBlock, q.codes.data(), q.absmax.data(),
                          nullptr);
  return q;
}

int CodeAt(const std::vector<uint8_t>& codes, size_t i) {
  return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

// bitsandbytes divides in a short last block where it multiplies by the reciprocal elsewhere, and gives
// a block of zeros another code for the same values: those are exempt from bit equality.
bool Exempt(const Quantized& q, size_t i) {
  const size_t full = q.values.size() / kBlock * kBlock;
  return i >= full || q.absmax[i / kBlock] == 0;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

class Nf4Oracle : public testing::TestWithParam<std::string> {};

// FP4: bitsandbytes' backends disagree among themselves on which of the two zeros to write, and on
// negative values exactly between two codes.
void ExpectEqualCodes(const Quantized& ours, const std::vector<uint8_t>& theirs, QuantType type) {
  const float* book = kernels::CodeBook(type);
  ASSERT_EQ(ours.codes.size(), theirs.size());
  for (size_t i = 0; i < ours.values.size(); ++i) {
    const int a = CodeAt(ours.codes, i), b = CodeAt(theirs, i);
    if (book[a] == 0 && book[b] == 0) continue;
    if (type == QuantType::kNF4 && !Exempt(ours, i)) {
      ASSERT_EQ(a, b) << "element " << i << " of value " << ours.values[i];
    } else if (ours.absmax[i / kBlock] != 0 && a != b) {
      // Only a value on the fence between two codes may differ.
      const float x = ours.values[i] / ours.absmax[i / kBlock];
      ASSERT_NEAR(std::abs(x - book[a]), std::abs(x - book[b]), 1e-6) << "element " << i;
    }
  }
}

TEST_P(Nf4Oracle, CodesAndAbsmaxAreEqual) {
  const Quantized ours = Quantize(GetParam(), QuantType::kNF4);
  ExpectEqualCodes(ours, Nf4().Bytes(GetParam() + ".codes"), QuantType::kNF4);
  EXPECT_EQ(Bits(ours.absmax), Bits(Nf4().Floats(GetParam() + ".absmax")));
}

TEST_P(Nf4Oracle, Fp4CodesAreEqual) {
  const Quantized ours = Quantize(GetParam(), QuantType::kFP4);
  ExpectEqualCodes(ours, Nf4().Bytes(GetParam() + ".fp4_codes"), QuantType::kFP4);
}

// Decodes bitsandbytes' own codes and scales; bit for bit after the one rounding to bf16.
void ExpectDecodes(const std::string& name, const std::string& expected, kernels::WeightView w) {
  const std::vector<int64_t> shape = Nf4().Shape(name + ".input");
  w.n = shape[0];
  w.k = shape[1];
  w.block = kBlock;
  w.code_book = kernels::CodeBook(w.type);
  std::vector<float> decoded(w.n * w.k);
  kernels::DequantizeRange(w, 0, w.n * w.k, decoded.data());
  const std::vector<uint16_t> theirs = Nf4().BF16Bits(name + "." + expected);
  for (size_t i = 0; i < decoded.size(); ++i) {
    if (w.type == QuantType::kFP4 && decoded[i] == 0) {   // of either sign
      ASSERT_EQ(FloatOfBF16(theirs[i]), 0) << "element " << i;
    } else {
      ASSERT_EQ(BF16OfFloat(decoded[i]), theirs[i]) << expected << ", element " << i;
    }
  }
}

TEST_P(Nf4Oracle, DequantizedIsEqual) {
  const std::string& name = GetParam();
  const std::vector<float> absmax = Nf4().Floats(name + ".absmax");
  const std::vector<uint8_t> codes = Nf4().Bytes(name + ".codes");
  const std::vector<uint8_t> fp4_codes = Nf4().Bytes(name + ".fp4_codes");
  ExpectDecodes(name, "dequant",
                {.type = QuantType::kNF4, .data = codes.data(), .absmax = absmax.data()});
  ExpectDecodes(name, "fp4_dequant",
                {.type = QuantType::kFP4, .data = fp4_codes.data(), .absmax = absmax.data()});
}

// Every cpu body this machine can run, whole matrices and a part; where the shape allows tiles, bitsandbytes'
// codes laid out so, too.
TEST_P(Nf4Oracle, EveryBodyDecodesEqually) {
  const std::string& name = GetParam();
  const std::vector<uint8_t> codes = Nf4().Bytes(name + ".codes");
  const std::vector<uint8_t> absmax_codes = Nf4().Bytes(name + ".absmax_codes");
  const std::vector<float> nested = Nf4().Floats(name + ".nested_absmax");
  const std::vector<int64_t> shape = Nf4().Shape(name + ".input");
  const kernels::WeightView w{.type = QuantType::kNF4,
                              .n = shape[0],
                              .k = shape[1],
                              .data = codes.data(),
                              .block = kBlock,
                              .absmax_codes = absmax_codes.data(),
                              .nested_absmax = nested.data(),
                              .nested_map = kernels::SignedDynamicMap(),
                              .offset = Nf4().Floats(name + ".offset")[0],
                              .code_book = kernels::CodeBook(QuantType::kNF4)};
  const int64_t row_blocks = w.k / kBlock;
  std::vector<uint8_t> tiled_codes(codes.size()), tiled_absmax(absmax_codes.size());
  std::vector<kernels::WeightView> views = {w};
  if (kernels::SuitsTiles(w.type, w.k, w.block)) {
    kernels::ToTiles(codes.data(), w.n, row_blocks, kBlock / 2, tiled_codes.data());
    kernels::ToTiles(absmax_codes.data(), w.n, row_blocks, 1, tiled_absmax.data());
    views.push_back(w);
    views.back().order = kernels::WeightOrder::kTiles;
    views.back().data = tiled_codes.data();
    views.back().absmax_codes = tiled_absmax.data();
  }
  const std::vector<uint16_t> theirs = Nf4().BF16Bits(name + ".dequant_nested");
  std::vector<std::byte> workspace(1 << 20);
  kernels::Context context{.workspace = workspace.data(), .workspace_bytes = 1 << 20};
  for (const std::string_view body : kernels::CpuBodies()) {
    const kernels::KernelTable& table = *kernels::CpuTableFor(body);
    ASSERT_EQ(table.act, kernels::DType::kBF16);
    const int64_t first = w.n / 3;
    for (const kernels::WeightView& view : views) {
      for (const int64_t n0 : {int64_t{0}, first}) {
        std::vector<uint16_t> decoded((w.n - n0) * w.k);
        table.decode_weight(&context, decoded.data(), view, n0, w.n - n0);
        EXPECT_THAT(decoded, testing::ElementsAreArray(theirs.begin() + n0 * w.k, theirs.end()))
            << body << (view.order == kernels::WeightOrder::kTiles ? ", in tiles" : "");
      }
    }
  }
}

TEST_P(Nf4Oracle, DoubleQuantizedIsReadEqually) {
  const std::string& name = GetParam();
  const std::vector<uint8_t> codes = Nf4().Bytes(name + ".codes");
  const std::vector<uint8_t> absmax_codes = Nf4().Bytes(name + ".absmax_codes");
  const std::vector<float> nested = Nf4().Floats(name + ".nested_absmax");
  kernels::WeightView w{.type = QuantType::kNF4,
                        .data = codes.data(),
                        .absmax_codes = absmax_codes.data(),
                        .nested_absmax = nested.data(),
                        .nested_map = kernels::SignedDynamicMap(),
                        .offset = Nf4().Floats(name + ".offset")[0]};
  ExpectDecodes(name, "dequant_nested", w);
  const std::vector<float> theirs = Nf4().Floats(name + ".absmax_nested");
  for (size_t b = 0; b < theirs.size(); ++b) {
    ASSERT_EQ(std::bit_cast<uint32_t>(kernels::WeightAbsmax(w, b)),
              std::bit_cast<uint32_t>(theirs[b]))
        << "block " << b;
  }
}

// Which code is nearest to a scale differs inside bitsandbytes itself (its CPU search is a coarse table),
// and the mean's last bits depend on torch's order of summation. What must hold: our choice is as near to
// the true scale as theirs, within 2^-15 of the nested scale.
TEST_P(Nf4Oracle, FreshDoubleQuantizationIsAsNear) {
  const std::string& name = GetParam();
  const std::vector<float> absmax = Nf4().Floats(name + ".absmax");
  const int64_t blocks = static_cast<int64_t>(absmax.size());
  std::vector<uint8_t> codes(blocks);
  std::vector<float> nested(kernels::NestedCount(blocks));
  float offset = 0;
  kernels::QuantizeAbsmax(absmax.data(), blocks, codes.data(), nested.data(), &offset);
  const float their_offset = Nf4().Floats(name + ".offset")[0];
  const std::vector<float> their_nested = Nf4().Floats(name + ".nested_absmax");
  const std::vector<float> their_absmax = Nf4().Floats(name + ".absmax_nested");
  const float largest = *std::max_element(absmax.begin(), absmax.end());
  EXPECT_NEAR(offset, their_offset, 4e-7f * largest);
  const kernels::WeightView w{.type = QuantType::kNF4,
                              .absmax_codes = codes.data(),
                              .nested_absmax = nested.data(),
                              .nested_map = kernels::SignedDynamicMap(),
                              .offset = offset};
  ASSERT_EQ(nested.size(), their_nested.size());
  for (int64_t b = 0; b < blocks; ++b) {
    const float scale = their_nested[b / kernels::kNestedBlock];
    ASSERT_NEAR(nested[b / kernels::kNestedBlock], scale, 4e-7f * largest);
    const double ours = std::abs(double{kernels::WeightAbsmax(w, b)} - absmax[b]);
    const double theirs = std::abs(double{their_absmax[b]} - absmax[b]);
    ASSERT_NEAR(ours, theirs, std::ldexp(scale, -15) + 1e-6 * largest) << "block " << b;
  }
}

std::string CaseName(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Cases, Nf4Oracle, testing::ValuesIn(Cases()), CaseName);

TEST(Nf4Tables, EqualBitsandbytes) {
  const auto expect = [](const char* name, const float* ours) {
    const std::vector<float> theirs = Nf4().Floats(name);
    EXPECT_EQ(Bits(std::vector<float>(ours, ours + theirs.size())), Bits(theirs)) << name;
  };
  expect("nf4_code_book", kernels::CodeBook(QuantType::kNF4));
  expect("dynamic_map", kernels::SignedDynamicMap());
  const float* fp4 = kernels::CodeBook(QuantType::kFP4);
  EXPECT_THAT(std::vector<float>(fp4, fp4 + 16),
              testing::Pointwise(testing::Eq(), Nf4().Floats("fp4_code_book")));   // 0 equals -0
}

}  // namespace
}  // namespace nibble::oracle
