// Every op of every table this machine can run, against the double reference, on 1 to 4 threads with
// equal bits.
#include <gtest/gtest.h>

#include "kernels/tables.h"
#include "tests/kernels/emulated_amx.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

void RunAll(const KernelTable& table) {
  for (const Case& c : AllCases()) {
    const Outcome one = c.run(table, 1);
    EXPECT_TRUE(one.ok()) << "nibble-kernel-check --body " << table.body << " '" << c.name << "'\n"
                          << one.failure << " (" << one.error << " of the tolerance)";
    for (const int threads : {2, 3, 4}) {
      const Outcome more = c.run(table, threads);
      EXPECT_EQ(more.digest, one.digest) << c.name << " on " << threads << " threads";
      EXPECT_TRUE(more.ok()) << c.name << " on " << threads << " threads: " << more.failure;
    }
  }
}

TEST(Parity, Ref) { RunAll(RefTable()); }

#if defined(__x86_64__)
TEST(Parity, EmulatedAmx) {
  if (CpuTableFor("avx512_bf16") == nullptr) GTEST_SKIP() << "this machine has no AVX-512 bf16";
  RunAll(EmulatedAmxTable());
}
#endif

class CpuParity : public testing::TestWithParam<std::string_view> {};

TEST_P(CpuParity, EqualsRef) { RunAll(*CpuTableFor(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Bodies, CpuParity, testing::ValuesIn(CpuBodies()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::kernels::check
