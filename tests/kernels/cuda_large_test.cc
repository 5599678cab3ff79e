// The CUDA kernels where indices do not fit 32 bits: emulated, in memory of which next to nothing
// is there. Each op gets the same values close together and gigabytes apart, and must make the same
// bits of them.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/decode.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/workspace.h"
#include "kernels/nf4.h"

namespace nibble::kernels::cuda_emulated {
namespace {

constexpr int64_t kFar = (int64_t{1} << 31) + 64;

// Zeros; what nobody writes to takes no memory.
template <typename T>
class Sparse {
 public:
  explicit Sparse(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    at_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
               -1, 0);
    KERNEL_CHECK(at_ != MAP_FAILED);
  }
  ~Sparse() { munmap(at_, bytes_); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  T* data() { return static_cast<T*>(at_); }
  // Small numbers that tell places apart.
  void Number(int64_t first, int64_t count, int salt) {
    for (int64_t i = 0; i < count; ++i)
      Put(data() + first + i, static_cast<float>((i * 37 + salt * 11) % 61 - 30) / 8);
  }

 private:
  size_t bytes_;
  void* at_;
};

std::vector<uint16_t> Bits(const BF16* from, int64_t count) {
  std::vector<uint16_t> bits;
  for (int64_t i = 0; i < count; ++i) bits.push_back(from[i].bits);
  return bits;
}

TEST(CudaLargeIndices, Embedding) {
  constexpr int64_t kDim = 8192, kLast = kFar / kDim + 1;
  Sparse<BF16> table((kLast + 1) * kDim), out(2 * kDim);
  table.Number(0, kDim, 1);
  table.Number(kLast * kDim, kDim, 2);
  const int32_t ids[2] = {static_cast<int32_t>(kLast), 0};
  Context ctx;
  EmbeddingForward<BF16>(&ctx, out.data(), ids, {table.data(), DType::kBF16}, 2, kDim, 1);
  EXPECT_EQ(Bits(out.data(), kDim), Bits(table.data() + kLast * kDim, kDim));
  EXPECT_EQ(Bits(out.data() + kDim, kDim), Bits(table.data(), kDim));
}

TEST(CudaLargeIndices, GatedActivations) {
  constexpr int64_t kWidth = 24;
  std::vector<std::vector<uint16_t>> made;
  for (const int64_t stride : {int64_t{32}, kFar}) {
    Sparse<BF16> gate(stride + kWidth), up(stride + kWidth), dout(2 * kWidth), out(2 * kWidth),
        dgate(stride + kWidth), dup(stride + kWidth);
    for (const int64_t row : {0, 1}) {
      gate.Number(row * stride, kWidth, static_cast<int>(row) + 1);
      up.Number(row * stride, kWidth, static_cast<int>(row) + 3);
    }
    dout.Number(0, 2 * kWidth, 5);
    GatedArgs args{};
    args.rows = 2;
    args.width = kWidth;
    args.stride = stride;
    Context ctx;
    GatedForward<BF16>(&ctx, out.data(), gate.data(), up.data(), args);
    GatedBackward<BF16>(&ctx, dgate.data(), dup.data(), dout.data(), gate.data(), up.data(), args);
    std::vector<uint16_t> bits = Bits(out.data(), 2 * kWidth);
    for (Sparse<BF16>* array : {&dgate, &dup}) {
      for (const int64_t row : {0, 1}) {
        const auto more = Bits(array->data() + row * stride, kWidth);
        bits.insert(bits.end(), more.begin(), more.end());
      }
    }
    made.push_back(bits);
  }
  EXPECT_EQ(made[0], made[1]);
}

TEST(CudaLargeIndices, Products) {
  constexpr int64_t kM = 2, kN = 24, kK = 16;
  for (const bool transposed : {false, true}) {
    const int64_t b_rows = transposed ? kK : kN, b_columns = transposed ? kN : kK;
    std::vector<std::vector<uint16_t>> made;
    // The last row of b lies beyond 2^31 elements, too.
    for (const auto& [far, b_far] :
         {std::pair{int64_t{32}, int64_t{32}}, std::pair{kFar, int64_t{1} << 28}}) {
      Sparse<BF16> a((kM - 1) * far + kK), b((b_rows - 1) * b_far + b_columns),
          c((kM - 1) * far + kN);
      for (int64_t row = 0; row < kM; ++row) a.Number(row * far, kK, static_cast<int>(row) + 1);
      for (int64_t row = 0; row < b_rows; ++row)
        b.Number(row * b_far, b_columns, static_cast<int>(row) + 7);
      MatMulArgs args;
      args.m = kM;
      args.n = kN;
      args.k = kK;
      args.a = a.data();
      args.b = b.data();
      args.c = c.data();
      args.a_stride = args.c_stride = far;
      args.b_stride = b_far;
      args.b_transposed = transposed;
      Context ctx;
      MatMul<BF16>(&ctx, args, nullptr);
      std::vector<uint16_t> bits = Bits(c.data(), kN);
      const auto more = Bits(c.data() + far, kN);
      bits.insert(bits.end(), more.begin(), more.end());
      made.push_back(bits);
    }
    EXPECT_EQ(made[0], made[1]) << transposed;
  }
}

TEST(CudaLargeIndices, DecodedWeights) {
  constexpr int64_t kK = 8192, kBlocks = kK / 64;
  std::vector<std::vector<uint16_t>> made;
  const int64_t far = kFar / kK + 1;
  for (const int64_t row : {int64_t{1}, far, 2 * far + 1}) {
    Sparse<uint8_t> codes((row + 1) * kK / 2);
    Sparse<float> absmax((row + 1) * kBlocks);
    for (int64_t i = 0; i < kK / 2; ++i)
      codes.data()[row * kK / 2 + i] = static_cast<uint8_t>(i * 29 + 3);
    absmax.Number(row * kBlocks, kBlocks, 5);
    Sparse<BF16> out(kK);
    WeightView w;
    w.n = row + 1;
    w.k = kK;
    w.data = codes.data();
    w.absmax = absmax.data();
    w.code_book = CodeBook(QuantType::kNF4);
    Context ctx;
    DecodePanel<BF16>(&ctx, out.data(), w, row, 1, 0, kK);
    made.push_back(Bits(out.data(), kK));
    DecodePanel<BF16>(&ctx, out.data(), w, row, 1, 3, 21);  // a weight to each thread
    made.push_back(Bits(out.data(), 21));
  }
  for (size_t i = 2; i < made.size(); ++i) EXPECT_EQ(made[i], made[i % 2]) << i;
}

TEST(CudaLargeIndices, DecodingAttention) {
  constexpr int64_t kHeads = 4, kDim = 128, kRow = 2 * kDim, kWindow = 40;
  std::vector<std::vector<uint16_t>> made;
  for (const int64_t length : {kWindow, kFar / kRow + kWindow}) {
    Sparse<BF16> q(kHeads * kDim), keys(length * kRow), values(length * kRow), out(kHeads * kDim);
    q.Number(0, kHeads * kDim, 1);
    for (int64_t i = 0; i < kWindow; ++i) {
      keys.Number((length - kWindow + i) * kRow, kRow, static_cast<int>(i));
      values.Number((length - kWindow + i) * kRow, kRow, static_cast<int>(i) + 50);
    }
    AttentionArgs args{};
    args.m = 1;
    args.heads = kHeads;
    args.kv_heads = 2;
    args.head_dim = kDim;
    args.scale = 0.01f;
    args.window = kWindow;
    std::vector<std::byte> workspace(
        static_cast<size_t>(cuda_workspace::AttentionDecodeWorkspaceBytes(kWindow, kHeads, kDim)));
    Context ctx;
    ctx.workspace = workspace.data();
    ctx.workspace_bytes = static_cast<int64_t>(workspace.size());
    AttentionDecode<BF16>(&ctx, out.data(), q.data(), keys.data(), values.data(), length, args);
    made.push_back(Bits(out.data(), kHeads * kDim));
  }
  EXPECT_EQ(made[0], made[1]);
}

}  // namespace
}  // namespace nibble::kernels::cuda_emulated
