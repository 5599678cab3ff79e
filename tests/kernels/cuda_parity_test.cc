// The CUDA kernels' own sources, emulated on the host (kernels/cuda/emulate.h), against the double reference:
// in bf16 and in fp16, in more than one order of blocks with equal bits. Shows that the arithmetic, the
// indices, the fragments, the barriers and the bounds are right; a GPU's speed, and what its own tensor cores
// and libraries do, it does not show.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/small.h"
#include "kernels/nf4.h"
#include "tests/kernels/device_table.h"
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
  const char* full = std::getenv("NIBBLE_FULL");
  const bool full_run = full != nullptr && std::string_view(full) == "1";
  int count = 0;
  for (const Case& c : AllCases()) {
    if (FirstWord(c.name) != op) continue;
    // Two chunks of the cpu's; the cuda tables have theirs with m=2100, and these take too long emulated.
    if (c.name.find("vocab=88000") != std::string::npos) continue;
    if (c.name.find("m=1100") != std::string::npos) continue;
    const Outcome one = RunCase(c, table, 2);
    if (!one.missing.empty()) GTEST_SKIP() << "missing: the cuda table has no " << one.missing;
    EXPECT_TRUE(one.ok()) << "nibble-kernel-check --table=cuda-emulated " << (fp16 ? "--fp16 '" : "'")
                          << c.name << "'\n"
                          << one.failure << " (" << one.error << " of the tolerance)";
    // Once more on another number of the host's threads, so in another order of blocks; all of them only when
    // there is time, as emulated tensor cores are slow.
    if (++count % 4 != 0 && !full_run) continue;
    EXPECT_EQ(RunCase(c, table, 3).digest, one.digest) << c.name << " a second time";
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, EmulatedCuda, testing::Combine(testing::ValuesIn(Ops()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) + (std::get<1>(info.param) ? "_fp16" : "_bf16");
                         });

// What a linear layer of few rows takes instead of decoding into memory.
bool was_small = false;

template <typename Act>
void ExpectSmallLinearIsParity(bool fp16) {
  KernelTable table = EmulatedCudaKernels(fp16);
  table.linear_forward = [](Context* ctx, void* y, const void* x, const LinearArgs& args) {
    was_small = cuda_emulated::LinearForwardSmall<Act>(ctx, y, x, args);
  };
  int taken = 0;
  for (const Case& c : LinearCases()) {
    if (FirstWord(c.name) != "linear_forward") continue;
    const Outcome outcome = RunCase(c, table, 2);
    if (!was_small) continue;
    EXPECT_TRUE(outcome.ok()) << c.name << "\n" << outcome.failure;
    ++taken;
  }
  EXPECT_GE(taken, 4);
}

TEST(EmulatedCudaSmallLinear, EqualsRefInBf16) { ExpectSmallLinearIsParity<BF16>(false); }
TEST(EmulatedCudaSmallLinear, EqualsRefInFp16) { ExpectSmallLinearIsParity<FP16>(true); }

// The way to a device's memory and back, with an emulated device whose memory the host must not touch.
TEST(EmulatedCudaBackend, RunsTheCasesInItsOwnMemory) {
  std::string why;
  const auto backend = OpenCuda({}, &why);
  ASSERT_NE(backend, nullptr) << why;
  const KernelTable table = TableForHostMemory(*backend);
  for (const Case& c : ElementwiseCases()) {
    const Outcome outcome = RunCase(c, table, 1);
    EXPECT_TRUE(outcome.ok()) << c.name << "\n" << outcome.failure << outcome.missing;
    EXPECT_EQ(TakeDeviceFailure(), "") << c.name;
  }
}

// Encoding on the device and nf4.h's: the same bytes.
struct Encoded {
  std::vector<uint8_t> codes, nested_codes;
  std::vector<float> absmax, nested_absmax;
  float offset = 0;
  bool operator==(const Encoded&) const = default;
};

TEST(EmulatedCudaQuantize, EqualsTheHostsBits) {
  Context ctx;
  for (const QuantType type : {QuantType::kNF4, QuantType::kFP4, QuantType::kINT4, QuantType::kINT8}) {
    for (const auto& [count, block] :
         {std::pair<int64_t, int64_t>{20001, 64}, {4096, 32}, {999, 62}, {9000, 4096}}) {
      const std::vector<double> normal = Normal(count, 3);
      std::vector<float> values(normal.begin(), normal.end());
      std::fill_n(values.begin() + block, std::min(block, count - block), 0.0f);  // a block of zeros
      // Ties: midpoints of the code book, in a block whose largest value is 1.
      const float* book = CodeBook(type);
      values[0] = 1;
      for (int i = 0; i < 15 && i + 2 < block; ++i)
        values[static_cast<size_t>(i + 1)] = (book[i] + book[i + 1]) / 2;
      const auto blocks = static_cast<size_t>(AbsmaxCount(count, block));
      Encoded want;
      want.codes.resize(static_cast<size_t>(WeightBytes(type, count)));
      want.absmax.resize(blocks);
      want.nested_codes.resize(blocks);
      want.nested_absmax.resize(static_cast<size_t>(NestedCount(static_cast<int64_t>(blocks))));
      Encoded got = want;
      QuantizeTensor(values.data(), count, type, block, want.codes.data(), want.absmax.data(), nullptr);
      QuantizeAbsmax(want.absmax.data(), static_cast<int64_t>(blocks), want.nested_codes.data(),
                     want.nested_absmax.data(), &want.offset);
      cuda_emulated::Quantize(&ctx, {values.data(), DType::kF32}, count, type, block, book, got.codes.data(),
                              got.absmax.data());
      cuda_emulated::QuantizeAbsmax(&ctx, got.absmax.data(), static_cast<int64_t>(blocks), SignedDynamicMap(),
                                    got.nested_codes.data(), got.nested_absmax.data(), &got.offset);
      EXPECT_EQ(got, want) << "type " << static_cast<int>(type) << ", " << count << " values in blocks of "
                           << block;
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::check
