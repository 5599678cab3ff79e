// Every op of every table this machine can run, against the double reference, on 1 to 4 threads with
// equal bits.
#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "kernels/tables.h"
#include "tests/kernels/emulated_amx.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

#if defined(__SANITIZE_THREAD__)
// Who touches what is the same in every body; a tenfold of this test's time would show no more.
constexpr bool kOnlyRaces = true;
#else
constexpr bool kOnlyRaces = false;
#endif
#if defined(__SANITIZE_ADDRESS__)
// A piece has its bounds whoever does it: one number of threads besides one halves what takes longest.
constexpr int kManyThreads[] = {3};
#else
constexpr int kManyThreads[] = {2, 3, 4};
#endif

void RunAll(const KernelTable& table) {
  for (const Case& c : AllCases()) {
    if (kOnlyRaces) {
      EXPECT_TRUE(c.run(table, 4).ok()) << c.name;
      continue;
    }
    const Outcome one = c.run(table, 1);
    EXPECT_TRUE(one.ok()) << "nibble-kernel-check --body " << table.body << " '" << c.name << "'\n"
                          << one.failure << " (" << one.error << " of the tolerance)";
    for (const int threads : kManyThreads) {
      const Outcome more = c.run(table, threads);
      EXPECT_EQ(more.digest, one.digest) << c.name << " on " << threads << " threads";
      EXPECT_TRUE(more.ok()) << c.name << " on " << threads << " threads: " << more.failure;
    }
  }
}

TEST(Parity, Ref) {
  if (kOnlyRaces) GTEST_SKIP() << "under the thread sanitizer the best body is enough";
  RunAll(RefTable());
}

#if defined(__x86_64__)
TEST(Parity, EmulatedAmx) {
  if (kOnlyRaces) GTEST_SKIP() << "under the thread sanitizer the best body is enough";
  if (CpuTableFor("avx512_bf16") == nullptr) GTEST_SKIP() << "this machine has no AVX-512 bf16";
  RunAll(EmulatedAmxTable());
}
#endif

class CpuParity : public testing::TestWithParam<std::string_view> {};

TEST_P(CpuParity, EqualsRef) { RunAll(*CpuTableFor(GetParam())); }

std::vector<std::string_view> Bodies() {
  std::vector<std::string_view> bodies = CpuBodies();  // the best one first
  if (kOnlyRaces) bodies.resize(1);
  return bodies;
}

INSTANTIATE_TEST_SUITE_P(Bodies, CpuParity, testing::ValuesIn(Bodies()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::kernels::check
