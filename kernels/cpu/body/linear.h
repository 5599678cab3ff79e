// Linear layers over frozen weights with a LoRA branch. The branch is folded into the products: its scaled
// sum is where the sums of the main product start, so nothing of [rows, outputs] is written twice.
//
// The main product is written for several parts (LinearPart): a panel of the weight is decoded once and swept
// by the rows of each, which start from the sums of its own adapter. One linear is one part.
#pragma once

#include "kernels/cpu/body/gemm.h"
#include "kernels/cpu/body/gemv.h"
#include "kernels/cpu/body/partial.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kMostParts = 16;  // of one product; more than that are multiplied in turn

static void CheckParts(Context* ctx, const LinearPart* parts, int64_t count) {
  WorkspaceShape shapes[kMostParts];
  for (int64_t i = 0; i < count; ++i) {
    const LinearArgs& args = parts[i].args;
    KERNEL_CHECK(args.m >= 0 && args.w.n > 0 && args.w.k > 0);
    KERNEL_CHECK(args.w.data == parts[0].args.w.data && args.w.n == parts[0].args.w.n);
    KERNEL_CHECK(args.w.order == parts[0].args.w.order);
    KERNEL_CHECK(args.bias.data == nullptr || IsReadable(args.bias));
    shapes[i].m = args.m;
    shapes[i].k = args.w.k;
    shapes[i].n = args.w.n;
    shapes[i].r = args.lora != nullptr ? args.lora->r : 0;
    shapes[i].threads = PoolThreads(ctx->pool);
  }
  KERNEL_CHECK(ctx->workspace_bytes >= LinearPartsWorkspaceBytes(shapes, count));
}

static bool HasBranch(const LinearArgs& args) { return args.lora != nullptr && args.lora->r > 0; }

static void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
  KERNEL_CHECK(n0 >= 0 && rows >= 0 && n0 + rows <= w.n);
  const int64_t piece_rows = 65536 / w.k + 1;
  RunPieces(ctx->pool, (rows + piece_rows - 1) / piece_rows, [&](int64_t piece, int) {
    const int64_t first = piece * piece_rows;
    const int64_t count = rows - first < piece_rows ? rows - first : piece_rows;
    BF16* const to = static_cast<BF16*>(out) + first * w.k;
    if (w.order == WeightOrder::kFlat) return DecodeSpan(w, (n0 + first) * w.k, count * w.k, to);
    for (int64_t row = 0; row < count; ++row) DecodeTiledRow(w, n0 + first + row, 0, w.k, to + row * w.k);
  });
}

// sums (+ bias) (+ what is there) to bf16 rows of `width` columns.
struct StoreRows {
  BF16* out = nullptr;
  int64_t out_stride = 0;
  ParamView bias;
  bool accumulate = false;
  float scale = 1;

  void operator()(int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums,
                  int64_t stride) const {
    for (int64_t v = 0; v < width; v += kLanes) {
      const int64_t lanes = width - v;
      const F32 add = bias.data != nullptr ? LoadParam(bias, column + v, lanes) : Zero();
      for (int64_t r = 0; r < rows; ++r) {
        BF16* at = out + (row + r) * out_stride + column + v;
        F32 value = Fma(Load(sums + r * stride + v), Set1(scale), add);
        if (accumulate) value = Add(value, LoadSome(at, lanes));
        StoreSome(at, value, lanes);
      }
    }
  }
};

// One token, as in generation.
static void LinearForwardOne(Context* ctx, BF16* y, const BF16* x, const LinearArgs& args) {
  const LoraArgs* lora = HasBranch(args) ? args.lora : nullptr;
  const auto* u = lora != nullptr ? static_cast<const BF16*>(lora->u) : nullptr;
  if (lora != nullptr) {
    WeightView a;
    a.type = QuantType::kBF16;
    a.n = lora->r;
    a.k = args.w.k;
    a.data = lora->a;
    RowProducts(ctx, a, x, [&](int64_t j, float sum) { static_cast<BF16*>(lora->u)[j] = ToBF16(sum); });
  }
  RowProducts(ctx, args.w, x, [&](int64_t n, float sum) {
    if (lora != nullptr) {
      const BF16* b = static_cast<const BF16*>(lora->b) + n * lora->r;
      F32 branch = Zero();
      for (int64_t j = 0; j < lora->r; j += kLanes) {
        branch = Fma(LoadSome(b + j, lora->r - j), LoadSome(u + j, lora->r - j), branch);
      }
      sum += lora->scale * SumLanes(branch);
    }
    if (args.bias.data != nullptr)
      sum += args.bias.type == DType::kBF16 ? ToFloat(static_cast<const BF16*>(args.bias.data)[n])
                                            : static_cast<const float*>(args.bias.data)[n];
    y[n] = ToBF16(sum);
  });
}

// u = dropout(x) A^T.
static void DownProjection(Context* ctx, const void* x, const LinearArgs& args) {
  const LoraArgs& lora = *args.lora;
  const Dropout dropout(lora.dropout);
  const bool drop = lora.dropout.p > 0;
  Gemm(ctx, 0, GemmShape{args.m, lora.r, args.w.k}, Lhs{x, args.w.k, false, drop ? &dropout : nullptr},
       RowPacker<MatrixSource>{{static_cast<const BF16*>(lora.a), args.w.k}},
       StoreRows{static_cast<BF16*>(lora.u), lora.r, {}, false, drop ? dropout.inverse : 1.0f});
}

static void ForwardOfParts(Context* ctx, const LinearPart* parts, int64_t count) {
  CheckParts(ctx, parts, count);
  const WeightView& w = parts[0].args.w;
  RowPart<RowPacker<MatrixSource>, StoreRows> rows[kMostParts];
  StoreRows stores[kMostParts];
  int64_t used = 0;
  for (int64_t i = 0; i < count; ++i) {
    const LinearPart& part = parts[i];
    const LinearArgs& args = part.args;
    if (args.m == 1 && (args.lora == nullptr || args.lora->dropout.p == 0)) {
      LinearForwardOne(ctx, static_cast<BF16*>(part.out), static_cast<const BF16*>(part.in), args);
      continue;
    }
    stores[used] = StoreRows{static_cast<BF16*>(part.out), w.n, args.bias};
    rows[used] = {args.m, Lhs{part.in, w.k}, {}, &stores[used]};
    if (HasBranch(args)) {
      DownProjection(ctx, part.in, args);
      const LoraArgs& lora = *args.lora;
      rows[used].branch = {Lhs{lora.u, lora.r}, lora.r, lora.scale, nullptr,
                           {{static_cast<const BF16*>(lora.b), lora.r}}};
    }
    ++used;
  }
  GemmParts(ctx, 0, w.n, w.k, RowPacker<WeightSource>{{w}}, rows, used);
}

static void LinearForwardParts(Context* ctx, const LinearPart* parts, int64_t count) {
  for (; count > 0; parts += kMostParts, count -= kMostParts)
    ForwardOfParts(ctx, parts, count < kMostParts ? count : kMostParts);
}

static void LinearForward(Context* ctx, void* y, const void* x, const LinearArgs& args) {
  const LinearPart part{y, false, x, nullptr, args};
  ForwardOfParts(ctx, &part, 1);
}

// What the backward of a LoRA branch keeps in the workspace: du until the main product is done, the others
// for its own gradients.
struct BranchMemory {
  BF16* du;            // [m, r]
  Operand* du_across;  // [r, m]
  Operand* u_across;   // [r, m]
  int64_t bytes;       // from the workspace's beginning
};

// Behind `reserved` bytes of the workspace.
static BranchMemory MakeBranchMemory(Context* ctx, int64_t reserved, int64_t m, int64_t r) {
  char* base = static_cast<char*>(ctx->workspace) + reserved;
  const int64_t across = RoundUp(m * r * static_cast<int64_t>(sizeof(Operand)), 64);
  const int64_t du = RoundUp(2 * m * r, 64);
  BranchMemory memory;
  memory.du = reinterpret_cast<BF16*>(base);
  memory.du_across = reinterpret_cast<Operand*>(base + du);
  memory.u_across = reinterpret_cast<Operand*>(base + du + across);
  memory.bytes = reserved + du + 2 * across;
  return memory;
}

static void BranchGradients(Context* ctx, const void* dy, const void* x, const LinearArgs& args,
                            const BranchMemory& memory) {
  const LoraArgs& lora = *args.lora;
  const int64_t m = args.m, r = lora.r, k = args.w.k, n = args.w.n;
  const Dropout dropout(lora.dropout);
  const bool drop = lora.dropout.p > 0;
  // du = scale * dy B, kept both ways round.
  Gemm(ctx, memory.bytes, GemmShape{m, r, n}, Lhs{dy, n},
       ColumnPacker<MatrixSource>{{static_cast<const BF16*>(lora.b), r}},
       [&](int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums, int64_t stride) {
         for (int64_t i = 0; i < rows; ++i) {
           for (int64_t j = 0; j < width; ++j) {
             const BF16 value = ToBF16(lora.scale * sums[i * stride + j]);
             memory.du[(row + i) * r + column + j] = value;
             memory.du_across[(column + j) * m + row + i] = ToOperand(value);
           }
         }
       });
  if (lora.da != nullptr) {
    auto* da = static_cast<float*>(lora.da);
    const float scale = drop ? dropout.inverse : 1.0f;
    const auto add = [&](int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums,
                         int64_t stride) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t v = 0; v < width; v += kLanes) {
          float* at = da + (row + i) * k + column + v;
          Store(at, Fma(Load(sums + i * stride + v), Set1(scale), Load(at, width - v)), width - v);
        }
      }
    };
    const GemmShape shape{r, k, m};
    const Lhs lhs{memory.du_across, m, true};
    const auto* values = static_cast<const BF16*>(x);
    if (drop) {
      Gemm(ctx, memory.bytes, shape, lhs, ColumnPacker<DroppedSource>{{values, k, dropout}}, add);
    } else {
      Gemm(ctx, memory.bytes, shape, lhs, ColumnPacker<MatrixSource>{{values, k}}, add);
    }
  }
  if (lora.db != nullptr) {
    auto* db = static_cast<float*>(lora.db);
    const auto* u = static_cast<const BF16*>(lora.u);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < r; ++j) memory.u_across[j * m + i] = ToOperand(u[i * r + j]);
    Gemm(ctx, memory.bytes, GemmShape{r, n, m}, Lhs{memory.u_across, m, true},
         ColumnPacker<MatrixSource>{{static_cast<const BF16*>(dy), n}},
         [&](int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums,
             int64_t stride) {
           for (int64_t j = 0; j < width; ++j)
             for (int64_t i = 0; i < rows; ++i)
               db[(column + j) * r + row + i] += lora.scale * sums[i * stride + j];
         });
  }
}

static void BackwardOfParts(Context* ctx, const LinearPart* parts, int64_t count) {
  CheckParts(ctx, parts, count);
  const WeightView& w = parts[0].args.w;
  RowPart<ColumnPacker<MatrixSource>, StoreRows> rows[kMostParts];
  StoreRows stores[kMostParts];
  Dropout dropouts[kMostParts];
  int64_t used = 0, reserved = 0;
  for (int64_t i = 0; i < count; ++i) {
    const LinearPart& part = parts[i];
    const LinearArgs& args = part.args;
    stores[used] = StoreRows{static_cast<BF16*>(part.out), w.k, {}, part.accumulate};
    rows[used] = {args.m, Lhs{part.in, w.n}, {}, &stores[used]};
    if (HasBranch(args)) {
      const LoraArgs& lora = *args.lora;
      const BranchMemory memory = MakeBranchMemory(ctx, reserved, args.m, lora.r);
      BranchGradients(ctx, part.in, part.x, args, memory);
      if (part.out == nullptr) continue;
      reserved += RoundUp(2 * args.m * lora.r, 64);
      dropouts[used] = Dropout(lora.dropout);
      const bool drop = lora.dropout.p > 0;
      rows[used].branch = {Lhs{memory.du, lora.r}, lora.r, drop ? dropouts[used].inverse : 1.0f,
                           drop ? &dropouts[used] : nullptr,
                           {{static_cast<const BF16*>(lora.a), w.k}}};
    }
    if (part.out != nullptr) ++used;
  }
  GemmParts(ctx, reserved, w.k, w.n, ColumnPacker<WeightSource>{{w}}, rows, used);
}

static void LinearBackwardParts(Context* ctx, const LinearPart* parts, int64_t count) {
  for (; count > 0; parts += kMostParts, count -= kMostParts)
    BackwardOfParts(ctx, parts, count < kMostParts ? count : kMostParts);
}

static void LinearBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                           const LinearArgs& args) {
  const LinearPart part{dx, accumulate, dy, x, args};
  BackwardOfParts(ctx, &part, 1);
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
