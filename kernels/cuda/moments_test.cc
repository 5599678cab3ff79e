// Codes of 8-bit moments without a search, and quotients without a division: the same bits as with them.
#include "kernels/cuda/moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/nf4.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cuda_emulated {
namespace {

constexpr int kThreads = 64;

template <bool kSigned>
__global__ void CodesKernel(const float* from, const float* values, int* codes, int count) {
  __shared__ Map<kSigned> map;
  LoadMap<kThreads>(map, from);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads)
    codes[i] = static_cast<int>(CodeOf(map, values[i]));
}

template <bool kSigned>
void ExpectNearest(const float* map) {
  std::array<float, 255> middle;
  for (size_t i = 0; i < 255; ++i) middle[i] = (map[i] + map[i + 1]) / 2;
  std::vector<float> values = {0.0f, 1.0f, 0x1p-149f, 0x1p-126f, 0x1p-23f};
  if (kSigned) values.push_back(-0.0f);
  const auto around = [&](float value) {
    for (const float toward : {-2.0f, 2.0f}) {
      float at = value;
      for (int i = 0; i < 3; ++i, at = std::nextafter(at, toward))
        if (std::fabs(at) <= 1 && (kSigned || !std::signbit(at))) values.push_back(at);
    }
  };
  for (const float at : middle) around(at);
  for (unsigned i = 1; i < Map<kSigned>::kBuckets; ++i)
    for (const float sign : {1.0f, -1.0f}) around(sign * EdgeOf<kSigned>(i));
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-26, 0), sign(-1, 1);
  for (int i = 0; i < 200000; ++i)
    values.push_back(std::copysign(std::exp2(exponent(random)), kSigned ? sign(random) : 1.0f));
  std::vector<int> codes(values.size());
  ThreadPool pool(1);
  Context ctx;
  ctx.pool = &pool;
  Launch(&ctx, 1, kThreads, 0, CodesKernel<kSigned>, map, values.data(), codes.data(),
         static_cast<int>(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(codes[i], std::lower_bound(middle.begin(), middle.end(), values[i]) - middle.begin())
        << values[i];
}

TEST(Moments, SignedCodesAreTheNearest) { ExpectNearest<true>(SignedDynamicMap()); }
TEST(Moments, UnsignedCodesAreTheNearest) { ExpectNearest<false>(UnsignedDynamicMap()); }

TEST(Moments, QuotientsAreRoundedAsADivisions) {
  std::mt19937 random(2);
  std::uniform_int_distribution<uint32_t> mantissa(0, (1u << 23) - 1);
  std::uniform_int_distribution<int> exponent(-78, 98), below(0, 22);
  const uint32_t hard[] = {0, 1, 2, (1u << 23) - 1, (1u << 23) - 2, 1u << 22, (1u << 22) - 1, (1u << 22) + 1};
  const auto one_of = [&](int i) { return i % 3 == 0 ? hard[random() % 8] : mantissa(random); };
  for (int i = 0; i < 2000000; ++i) {
    const int of_divisor = exponent(random);
    const float divisor = std::ldexp(1 + static_cast<float>(one_of(i)) * 0x1p-23f, of_divisor);
    const float value =
        std::ldexp(1 + static_cast<float>(one_of(i / 3)) * 0x1p-23f, of_divisor - below(random));
    if (value > divisor) continue;
    ASSERT_EQ(Divide(value, divisor, 1 / divisor), value / divisor) << value << " / " << divisor;
    ASSERT_EQ(Divide(-value, divisor, 1 / divisor), -value / divisor);
  }
  EXPECT_EQ(Divide(0.0f, 3.0f, 1 / 3.0f), 0.0f);
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
