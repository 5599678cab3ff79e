#include "kernels/cpu/isa.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/tables.h"

namespace nibble::kernels::cpu {
namespace {

Isa ChosenWith(const std::string& wanted) {
  setenv("NIBBLE_CPU_ISA", wanted.c_str(), 1);
  const Isa chosen = ChosenIsa();
  unsetenv("NIBBLE_CPU_ISA");
  return chosen;
}

TEST(ChosenIsa, IsWhatTheEnvironmentSaysWhereTheMachineHasIt) {
  const Isa best = ChosenIsa();
  for (int isa = 0; isa <= static_cast<int>(Isa::kAmx); ++isa) {
    const Isa wanted = static_cast<Isa>(isa);
    EXPECT_EQ(ChosenWith(std::string(IsaName(wanted))), wanted <= DetectIsa() ? wanted : best)
        << IsaName(wanted);
  }
  EXPECT_EQ(ChosenWith("avx1024"), best);
  EXPECT_EQ(ChosenWith(""), best);
}

TEST(CpuBodies, AreEveryLesserOneBestFirst) {
  const auto bodies = CpuBodies();
  ASSERT_EQ(bodies.size(), static_cast<size_t>(DetectIsa()) + 1);
  for (const std::string_view body : bodies) EXPECT_EQ(CpuTableFor(body)->body, body);
  EXPECT_EQ(bodies.back(), "portable");
  for (int isa = 0; isa <= static_cast<int>(Isa::kAmx); ++isa) {
    EXPECT_TRUE(IsCpuBody(IsaName(static_cast<Isa>(isa))));
  }
  EXPECT_FALSE(IsCpuBody("avx"));
  EXPECT_FALSE(IsCpuBody(""));
  EXPECT_EQ(CpuTable().body, IsaName(ChosenIsa()));
}

}  // namespace
}  // namespace nibble::kernels::cpu
