// The CUDA kernels' own sources, emulated on the host (kernels/cuda/emulate.h), against the double reference:
// in bf16 and in fp16, in more than one order of blocks with equal bits. Shows that the arithmetic, the
// indices, the fragments, the barriers and the bounds are right; a GPU's speed, and what its own tensor cores
// and libraries do, it does not show.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/emulate_death.h"
#include "kernels/cuda/emulated.h"
#include "kernels/cuda/panels.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/small.h"
#include "kernels/nf4.h"
#include "tests/kernels/device_table.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/weights.h"

namespace nibble::kernels::check {
namespace {

std::string FirstWord(const std::string& name) { return name.substr(0, name.find(' ')); }

std::set<std::string> Ops() {
  std::set<std::string> ops;
  for (const Case& c : AllCases()) ops.insert(FirstWord(c.name));
  return ops;
}

struct Parameter {
  std::string op;
  bool fp16;
  CudaAttention attention = CudaAttention::kEverywhere;
};
class EmulatedCuda : public testing::TestWithParam<Parameter> {};

TEST_P(EmulatedCuda, EqualsRef) {
  const auto& [op, fp16, attention] = GetParam();
  const KernelTable& table = EmulatedCudaKernels(fp16, attention);
  const char* full = std::getenv("NIBBLE_FULL");
  const bool full_run = full != nullptr && std::string_view(full) == "1";
  int count = 0;
  for (const Case& c : AllCases()) {
    if (FirstWord(c.name) != op) continue;
    // Two chunks of the cpu's; the cuda tables have theirs with m=2100, and these take too long emulated.
    if (c.name.find("vocab=88000") != std::string::npos) continue;
    if (c.name.find("m=1100") != std::string::npos) continue;
    const Outcome one = RunCase(c, table, 2);
    ASSERT_EQ(one.missing, "") << "an op that the cuda table does not have";
    EXPECT_TRUE(one.ok()) << (attention == CudaAttention::kWgmma ? "NIBBLE_CUDA_ATTENTION=wgmma " : "")
                          << "nibble-kernel-check --table=cuda-emulated " << (fp16 ? "--fp16 '" : "'")
                          << c.name << "'\n"
                          << one.failure << " (" << one.error << " of the tolerance)";
    // Once more on another number of the host's threads, so in another order of blocks; all of them only when
    // there is time, as emulated tensor cores are slow.
    if (++count % 4 != 0 && !full_run) continue;
    EXPECT_EQ(RunCase(c, table, 3).digest, one.digest) << c.name << " a second time";
  }
  EXPECT_GT(count, 0);
}

std::vector<Parameter> Parameters() {
  std::vector<Parameter> all;
  for (const bool fp16 : {false, true}) {
    for (const std::string& op : Ops()) all.push_back({op, fp16});
    for (const char* op : {"attention_forward", "attention_backward"})
      all.push_back({op, fp16, CudaAttention::kWgmma});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Ops, EmulatedCuda, testing::ValuesIn(Parameters()), [](const auto& info) {
  return info.param.op + (info.param.attention == CudaAttention::kWgmma ? "_wgmma" : "") +
         (info.param.fp16 ? "_fp16" : "_bf16");
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
    was_small = false;
    const Outcome outcome = RunCase(c, table, 2);
    if (!was_small) continue;
    EXPECT_TRUE(outcome.ok()) << c.name << "\n" << outcome.failure;
    ++taken;
  }
  EXPECT_GE(taken, 4);
}

TEST(EmulatedCudaSmallLinear, EqualsRefInBf16) { ExpectSmallLinearIsParity<BF16>(false); }
TEST(EmulatedCudaSmallLinear, EqualsRefInFp16) { ExpectSmallLinearIsParity<FP16>(true); }

bool SameBits(const BF16* a, const BF16* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(BF16)) == 0;
}

// A panel of matrices one below the other is the rows of each, in one launch or in several, and the same
// whether it was decoded before or is now.
TEST(EmulatedCudaPanels, AreTheRowsOfEachMatrix) {
  using cuda_emulated::DecodePanel;
  constexpr int64_t kK = 192, kRows[] = {48, 16, 24};
  for (const bool alike : {true, false}) {
    std::vector<std::unique_ptr<TestWeight>> weights;
    std::vector<BF16> all;
    cuda_emulated::Stack stack;
    WeightView views[kMostGrouped];
    Context ctx;
    for (int i = 0; i < 3; ++i) {
      const QuantType type = alike || i != 1 ? QuantType::kNF4 : QuantType::kINT8;
      weights.push_back(std::make_unique<TestWeight>(type, kRows[i], kK, 64, true, 5 + i));
      views[i] = weights.back()->view();
      std::vector<BF16> rows(static_cast<size_t>(kRows[i] * kK));
      DecodePanel<BF16>(&ctx, rows.data(), views[i], 0, kRows[i], 0, kK);
      all.insert(all.end(), rows.begin(), rows.end());
    }
    stack = cuda_emulated::StackOf(views, 3);
    ASSERT_EQ(stack.n, 88);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 88}, {40, 30}, {48, 16}, {70, 18}}) {
      std::vector<BF16> got(static_cast<size_t>(count * kK));
      DecodePanel<BF16>(&ctx, got.data(), stack.w, 3, first, count, 0, kK);
      EXPECT_TRUE(SameBits(got.data(), all.data() + first * kK, count * kK)) << first;
    }
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 64}, {64, 128}, {67, 3}}) {
      std::vector<BF16> got(static_cast<size_t>(count * stack.n));
      DecodePanel<BF16>(&ctx, got.data(), stack.w, 3, 0, stack.n, first, count);
      for (int64_t i = 0; i < stack.n * count; ++i)
        ASSERT_TRUE(SameBits(got.data() + i, all.data() + i / count * kK + first + i % count, 1));
    }
    // Ahead: what was begun is taken, anything else is decoded then.
    std::vector<BF16> tiles[2];
    DecodeAhead ahead;
    ctx.ahead = &ahead;
    ahead.tile_bytes = stack.n * kK * 2;
    for (int i = 0; i < 2; ++i) {
      tiles[i].resize(static_cast<size_t>(stack.n * kK));
      ahead.tile[i] = tiles[i].data();
    }
    ahead.next[0] = views[2];
    ahead.next_count = 1;
    const BF16* at = cuda_emulated::TakePanel<BF16>(&ctx, stack, false, 0, 88, nullptr);
    EXPECT_EQ(at, tiles[0].data());
    EXPECT_TRUE(SameBits(all.data(), at, stack.n * kK));
    EXPECT_EQ(ahead.pending.data, views[2].data);
    EXPECT_TRUE(SameBits(all.data() + 64 * kK, tiles[1].data(), 24 * kK));
    tiles[1][0] = ToBF16(77);  // shows that it is not decoded once more
    ahead.next_count = 0;
    at = cuda_emulated::TakePanel<BF16>(&ctx, cuda_emulated::StackOf(views + 2, 1), false, 0, 24, nullptr);
    EXPECT_EQ(at, tiles[1].data());
    EXPECT_EQ(ToFloat(at[0]), 77);
    EXPECT_EQ(ahead.pending.data, nullptr);
    ahead.next_count = 1;
    cuda_emulated::TakePanel<BF16>(&ctx, stack, true, 0, kK, nullptr);
    EXPECT_EQ(ahead.pending.data, views[2].data);
    cuda_emulated::LeavePanel(&ctx);
    EXPECT_EQ(ahead.pending.data, nullptr);
    ahead.next_count = 0;
    ahead.turn = 0;
    at = cuda_emulated::TakePanel<BF16>(&ctx, stack, true, 0, kK, nullptr);
    EXPECT_EQ(at, tiles[0].data());
    EXPECT_TRUE(SameBits(all.data(), at, stack.n * kK));
  }
}

// A group's workspace is made for one rank: partial sums of a lower one may be more.
class EmulatedCudaGroupDeath : public cuda_emulated::WantedDeathTest {};
TEST_F(EmulatedCudaGroupDeath, AdaptersOfTwoRanksInOneGroup) {
  const TestWeight weight(QuantType::kNF4, 16, 64, 64, true, 1);
  const DType act = DType::kBF16;
  const Tensor x(act, Normal(64, 1)), a(act, Normal(8 * 64, 2)), b(act, Normal(16 * 8, 3)), u(act, 8),
      y(act, 16);
  LoraArgs lora[2];
  LinearGroup group;
  group.count = 2;
  for (int i = 0; i < 2; ++i) {
    lora[i].r = i == 0 ? 8 : 4;
    lora[i].a = a.data();
    lora[i].b = b.data();
    lora[i].u = u.data();
    group.linear[i].m = 1;
    group.linear[i].w = weight.view();
    group.linear[i].lora = &lora[i];
    group.y[i] = y.data();
  }
  TestContext ctx(1, 1 << 20);
  EXPECT_DEATH(EmulatedCudaKernels(false).linear_group_forward(ctx.get(), x.data(), group), "lora->r == s.r");
}

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

class EmulatedCudaCopyDeath : public cuda_emulated::WantedDeathTest {};

// Who copies beside the compute lane begins behind what that was given.
TEST_F(EmulatedCudaCopyDeath, CopyLanesThatDoNotWait) {
  std::string why;
  const auto backend = OpenCuda({}, &why);
  void* const device = backend->Allocate(64);
  void* const host = backend->AllocatePinned(64);
  backend->Fill(device, 1, 64);
  EXPECT_DEATH(backend->CopyOut(Lane::kOut, host, device, 64), "the_compute_lane_was_waited_for");
  backend->Wait(Lane::kOut, Lane::kCompute);
  backend->CopyOut(Lane::kOut, host, device, 64);
  EXPECT_DEATH(backend->CopyIn(Lane::kIn, device, host, 64), "the_compute_lane_was_waited_for");
  backend->Wait(Lane::kIn, Lane::kOut);
  backend->CopyIn(Lane::kIn, device, host, 64);
  EXPECT_TRUE(backend->Synchronize());
  backend->ReleasePinned(host);
  backend->Release(device);
}

// A copy from page-locked memory may be read any time until the device was waited for.
TEST_F(EmulatedCudaCopyDeath, PageLockedMemoryWrittenTooEarly) {
  std::string why;
  const auto backend = OpenCuda({}, &why);
  void* const device = backend->Allocate(64);
  auto* const host = static_cast<char*>(backend->AllocatePinned(64));
  std::memset(host, 1, 64);
  const auto copy = [&] { backend->CopyIn(Lane::kCompute, device, host, 64); };
  copy();
  EXPECT_TRUE(backend->Synchronize());
  host[7] = 2;
  EXPECT_TRUE(backend->Synchronize());
  copy();
  EXPECT_DEATH(backend->ReleasePinned(host), "nothing_is_on_its_way");
  EXPECT_DEATH(
      {
        host[7] = 3;
        backend->Synchronize();
      },
      "memory_is_as_it_was_copied");
  EXPECT_TRUE(backend->Synchronize());
  backend->ReleasePinned(host);
  backend->Release(device);
}

// A device that fails in the middle of a case fails it, and those behind it, and nothing else.
TEST(EmulatedCudaBackend, FailsTheCasesOfADeviceThatFailed) {
  std::string why;
  const auto backend = OpenCuda({}, &why);
  ASSERT_NE(backend, nullptr) << why;
  const KernelTable table = TableForHostMemory(*backend);
  const int64_t held = EmulatedCudaBytes().device;
  EmulatedCudaFailAfter(1);  // the backward that follows a forward
  int failed = 0;
  for (const Case& c : ElementwiseCases()) {
    const Outcome outcome = RunCase(c, table, 1);
    const std::string failure = TakeDeviceFailure();
    EXPECT_EQ(failure.empty(), outcome.ok()) << c.name << ": " << outcome.failure << failure;
    failed += !outcome.ok();
  }
  EXPECT_GT(failed, 1);
  EXPECT_EQ(backend->fault(), Fault::kDevice);
  EXPECT_EQ(EmulatedCudaBytes().device, held);
  EmulatedCudaFailAfter(-1);
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
