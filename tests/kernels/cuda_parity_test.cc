// The CUDA kernels' own sources, emulated on the host (kernels/cuda/emulate.h), against the double reference:
// in bf16 and in fp16, on 1 to 3 host threads with equal bits. Shows that the arithmetic, the indices, the
// barriers and the bounds are right; a GPU's speed, and its tensor cores, it does not show.
#include <gtest/gtest.h>

#include <set>

#include "kernels/cuda/cuda.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

std::string FirstWord(const std::string& name) { return name.substr(0, name.find(' ')); }

std::set<std::string> Ops() {
  std::set<std::string> ops;
  for (const Case& c : AllCases()) ops.insert(FirstWord(c.name));
  return ops;
}

using Parameter = std::tuple<std::string, bool>;
class EmulatedCuda : public testing::TestWithParam<Parameter> {};

TEST_P(EmulatedCuda, EqualsRef) {
  const auto& [op, fp16] = GetParam();
  const KernelTable& table = EmulatedCudaKernels(fp16);
  for (const Case& c : AllCases()) {
    if (FirstWord(c.name) != op) continue;
    const Outcome one = RunCase(c, table, 1);
    if (!one.missing.empty()) GTEST_SKIP() << "missing: the cuda table has no " << one.missing;
    EXPECT_TRUE(one.ok()) << "nibble-kernel-check --table=cuda-emulated " << (fp16 ? "--fp16 '" : "'")
                          << c.name << "'\n"
                          << one.failure << " (" << one.error << " of the tolerance)";
    for (const int threads : {2, 3})
      EXPECT_EQ(RunCase(c, table, threads).digest, one.digest) << c.name << " on " << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, EmulatedCuda, testing::Combine(testing::ValuesIn(Ops()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) + (std::get<1>(info.param) ? "_fp16" : "_bf16");
                         });

}  // namespace
}  // namespace nibble::kernels::check
