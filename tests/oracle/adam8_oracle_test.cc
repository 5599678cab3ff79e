// 8-bit AdamW against bitsandbytes' block-wise optimizer (fixtures/adam8.safetensors): six steps over
// gradients of six decades.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/nf4.h"
#include "kernels/tables.h"
#include "tests/oracle/fixture.h"

namespace nibble::oracle {
namespace {

using kernels::KernelTable;

const Fixture& Adam8() {
  static const Fixture fixture = Fixture::Open(FixturePath("adam8.safetensors"));
  return fixture;
}

TEST(Adam8Tables, EqualBitsandbytes) {
  const auto expect = [](const char* name, const float* ours) {
    const std::vector<float> theirs = Adam8().Floats(name);
    ASSERT_EQ(theirs.size(), 256u);
    for (size_t i = 0; i < 256; ++i)
      EXPECT_EQ(std::bit_cast<uint32_t>(ours[i]), std::bit_cast<uint32_t>(theirs[i])) << name << " " << i;
  };
  expect("dynamic_map", kernels::SignedDynamicMap());
  expect("unsigned_dynamic_map", kernels::UnsignedDynamicMap());
}

class Adam8Oracle : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() != "ref" && kernels::CpuTableFor(GetParam()) == nullptr)
      GTEST_SKIP() << "this machine's processor has no " << GetParam();
  }
  static const KernelTable& Table() {
    return GetParam() == "ref" ? kernels::RefTable() : *kernels::CpuTableFor(GetParam());
  }
};

// The peer rounds some sums once where we round twice, so a value next to a midpoint may get the
// neighbouring code, and then takes another path: few may, and only by one.
void ExpectCodes(const std::vector<uint8_t>& ours, const std::vector<uint8_t>& theirs, const char* what) {
  int different = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    different += ours[i] != theirs[i] ? 1 : 0;
    EXPECT_LE(std::abs(int{ours[i]} - int{theirs[i]}), 1) << what << " " << i;
  }
  EXPECT_LE(different, 5) << what;
}

TEST_P(Adam8Oracle, SixSteps) {
  std::vector<float> p = Adam8().Floats("p.0");
  const size_t count = p.size(), blocks = (count + 255) / 256;
  std::vector<uint8_t> m(count, 0), v(count, 0);
  std::vector<float> m_absmax(blocks, 0), v_absmax(blocks, 0);
  const kernels::Adam8State state{m.data(),        v.data(), m_absmax.data(), v_absmax.data(),
                                  kernels::SignedDynamicMap(), kernels::UnsignedDynamicMap()};
  kernels::Context ctx;
  kernels::AdamWArgs args;
  args.count = static_cast<int64_t>(count);
  args.learning_rate = 2e-3;
  args.weight_decay = 0.1;
  args.gradient_scale = 0.7;
  for (args.step = 1; args.step <= 6; ++args.step) {
    const std::string step = "." + std::to_string(args.step);
    Table().adamw8(&ctx, p.data(), Adam8().Floats("g" + step).data(), state, args);
    ExpectCodes(m, Adam8().Bytes("m" + step), "m");
    ExpectCodes(v, Adam8().Bytes("v" + step), "v");
    const std::vector<float> their_p = Adam8().Floats("p" + step);
    for (size_t i = 0; i < count; ++i) ASSERT_NEAR(p[i], their_p[i], 2e-6 * std::fabs(their_p[i]) + 1e-5);
    const std::vector<float> their_m = Adam8().Floats("m_absmax" + step),
                             their_v = Adam8().Floats("v_absmax" + step);
    for (size_t b = 0; b < blocks; ++b) {
      EXPECT_NEAR(m_absmax[b], their_m[b], 1e-6f * their_m[b]);
      EXPECT_NEAR(v_absmax[b], their_v[b], 1e-6f * their_v[b]);
    }
  }
}

std::vector<std::string> Bodies() {
  std::vector<std::string> names = {"ref"};
  for (const std::string_view body : kernels::AllCpuBodies()) names.emplace_back(body);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Bodies, Adam8Oracle, testing::ValuesIn(Bodies()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace nibble::oracle
