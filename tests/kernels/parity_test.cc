// Every op of every table this machine can run, against the double reference, on 1 to 4 threads with
// equal bits.
#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "kernels/tables.h"
#include "tests/kernels/emulated_amx.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/linear_setup.h"

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

class CpuParity : public testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    if (kOnlyRaces && GetParam() != CpuBodies().front())
      GTEST_SKIP() << "under the thread sanitizer the best body is enough";
    if (CpuTableFor(GetParam()) == nullptr) GTEST_SKIP() << "this machine's processor has no " << GetParam();
  }
};

TEST_P(CpuParity, EqualsRef) { RunAll(*CpuTableFor(GetParam())); }

// A few rows of the highest rank beside many without an adapter, and a depth that is cut: panels of the
// weight and of the branch have to share a thread's memory, and the rows leave little of the workspace
// besides. On one thread a panel is as wide as can be.
TEST_P(CpuParity, OnePartOfTheHighestRankFitsTheWorkspace) {
  if (GetParam() == "portable") GTEST_SKIP() << "has no panels, and is slow";
  const KernelTable& table = *CpuTableFor(GetParam());
  const LinearShape shapes[] = {{328, 2560, 900, 0}, {2, 2560, 900, 256}};
  const TestWeight weight = WeightOf(shapes[0], false);
  const check::Setup together[] = {{table, shapes[0], weight, table.act},
                                   {table, shapes[1], weight, table.act}};
  std::vector<LinearPart> parts;
  std::vector<WorkspaceShape> needs;
  for (const check::Setup& part : together) {
    parts.push_back({part.y.data(), false, part.x.data(), nullptr, part.args});
    needs.push_back(part.workspace);
  }
  TestContext ctx(1, LinearPartsWorkspaceBytes(needs.data(), 2));
  table.linear_forward_parts(ctx.get(), parts.data(), 2);
  EXPECT_TRUE(ctx.Intact());
  for (int i = 0; i < 2; ++i) {
    const check::Setup apart(table, shapes[i], weight, table.act);
    TestContext alone(1, apart.WorkspaceBytes(1));
    table.linear_forward(alone.get(), apart.y.data(), apart.x.data(), apart.args);
    EXPECT_EQ(together[i].y.Values(), apart.y.Values()) << "part " << i;
  }
}

// All there are: a machine that cannot run one says so.
INSTANTIATE_TEST_SUITE_P(Bodies, CpuParity, testing::ValuesIn(AllCpuBodies()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble::kernels::check
