// Linear layers over frozen weights with a LoRA branch. The branch is folded into the products: its scaled
// sum is where the sums of the main product start, so nothing of [rows, outputs] is written twice.
#pragma once

#include "kernels/cpu/body/gemm.h"
#include "kernels/cpu/body/gemv.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

static void CheckLinear(Context* ctx, const LinearArgs& args) {
  KERNEL_CHECK(args.m >= 0 && args.w.n > 0 && args.w.k > 0);
  WorkspaceShape shape;
  shape.m = args.m;
  shape.k = args.w.k;
  shape.n = args.w.n;
  shape.r = args.lora != nullptr ? args.lora->r : 0;
  shape.threads = PoolThreads(ctx->pool);
  KERNEL_CHECK(ctx->workspace_bytes >= LinearWorkspaceBytes(shape));
}

static void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
  KERNEL_CHECK(n0 >= 0 && rows >= 0 && n0 + rows <= w.n);
  const int64_t piece_rows = 65536 / w.k + 1;
  RunPieces(ctx->pool, (rows + piece_rows - 1) / piece_rows, [&](int64_t piece, int) {
    const int64_t first = piece * piece_rows;
    const int64_t count = rows - first < piece_rows ? rows - first : piece_rows;
    DecodeSpan(w, (n0 + first) * w.k, count * w.k, static_cast<BF16*>(out) + first * w.k);
  });
}

// sums (+ bias) (+ what is there) to bf16 rows of `width` columns.
struct StoreRows {
  BF16* out;
  int64_t out_stride;
  ParamView bias;
  bool accumulate = false;
  float scale = 1;

  void operator()(int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums,
                  int64_t stride) const {
    for (int64_t v = 0; v < width; v += kLanes) {
      const int64_t lanes = width - v;
      F32 add = Zero();
      if (bias.data != nullptr) {
        add = bias.type == DType::kBF16
                  ? Load(static_cast<const BF16*>(bias.data) + column + v, lanes)
                  : Load(static_cast<const float*>(bias.data) + column + v, lanes);
      }
      for (int64_t r = 0; r < rows; ++r) {
        BF16* at = out + (row + r) * out_stride + column + v;
        F32 value = Fma(Load(sums + r * stride + v), Set1(scale), add);
        if (accumulate) value = Add(value, Load(at, lanes));
        if (lanes >= kLanes)
          Store(at, value);
        else
          Store(at, value, lanes);
      }
    }
  }
};

// One token, as in generation.
static void LinearForwardOne(Context* ctx, BF16* y, const BF16* x, const LinearArgs& args) {
  const LoraArgs* lora = args.lora != nullptr && args.lora->r > 0 ? args.lora : nullptr;
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
        const int64_t lanes = lora->r - j;
        branch = lanes >= kLanes ? Fma(Load(b + j), Load(u + j), branch)
                                 : Fma(Load(b + j, lanes), Load(u + j, lanes), branch);
      }
      sum += lora->scale * SumLanes(branch);
    }
    if (args.bias.data != nullptr)
      sum += args.bias.type == DType::kBF16 ? ToFloat(static_cast<const BF16*>(args.bias.data)[n])
                                            : static_cast<const float*>(args.bias.data)[n];
    y[n] = ToBF16(sum);
  });
}

static void LinearForward(Context* ctx, void* y, const void* x, const LinearArgs& args) {
  CheckLinear(ctx, args);
  KERNEL_CHECK(args.bias.data == nullptr || args.bias.type != DType::kF64);
  if (args.m == 1 && (args.lora == nullptr || args.lora->dropout.p == 0))
    return LinearForwardOne(ctx, static_cast<BF16*>(y), static_cast<const BF16*>(x), args);
  const WeightView& w = args.w;
  const WeightSource source{w};
  const auto pack = [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
    PackRows(source, column, columns, first, depth, panel);
  };
  const Lhs rows{x, w.k};
  const StoreRows store{static_cast<BF16*>(y), w.n, args.bias};
  const GemmShape shape{args.m, w.n, w.k};
  if (args.lora == nullptr || args.lora->r == 0) {
    Gemm(ctx, 0, shape, rows, pack, store);
    return;
  }
  const LoraArgs& lora = *args.lora;
  const Dropout dropout(lora.dropout);
  const bool drop = lora.dropout.p > 0;
  const MatrixSource a{static_cast<const BF16*>(lora.a), w.k};
  Gemm(ctx, 0, GemmShape{args.m, lora.r, w.k}, Lhs{x, w.k, false, drop ? &dropout : nullptr},
       [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
         PackRows(a, column, columns, first, depth, panel);
       },
       StoreRows{static_cast<BF16*>(lora.u), lora.r, {}, false, drop ? dropout.inverse : 1.0f});
  const MatrixSource b{static_cast<const BF16*>(lora.b), lora.r};
  const auto pack_b = [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
    PackRows(b, column, columns, first, depth, panel);
  };
  const Branch<decltype(pack_b)> branch{Lhs{lora.u, lora.r}, lora.r, lora.scale, nullptr, pack_b};
  Gemm(ctx, 0, shape, rows, pack, branch, store);
}

// What the backward of a LoRA branch keeps in the workspace.
struct BranchMemory {
  BF16* du;            // [m, r]
  Operand* du_across;  // [r, m]
  Operand* u_across;   // [r, m]
  int64_t bytes;
};

static BranchMemory MakeBranchMemory(Context* ctx, int64_t m, int64_t r) {
  char* base = static_cast<char*>(ctx->workspace);
  const int64_t across = RoundUp(m * r * static_cast<int64_t>(sizeof(Operand)), 64);
  BranchMemory memory;
  memory.du_across = reinterpret_cast<Operand*>(base);
  memory.u_across = reinterpret_cast<Operand*>(base + across);
  memory.du = reinterpret_cast<BF16*>(base + 2 * across);
  memory.bytes = 2 * across + RoundUp(2 * m * r, 64);
  return memory;
}

static void BranchGradients(Context* ctx, const void* dy, const void* x, const LinearArgs& args,
                            const BranchMemory& memory) {
  const LoraArgs& lora = *args.lora;
  const int64_t m = args.m, r = lora.r, k = args.w.k, n = args.w.n;
  const Dropout dropout(lora.dropout);
  const bool drop = lora.dropout.p > 0;
  // du = scale * dy B, kept both ways round.
  const MatrixSource b{static_cast<const BF16*>(lora.b), r};
  Gemm(ctx, memory.bytes, GemmShape{m, r, n}, Lhs{dy, n},
       [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
         PackColumns(b, first, depth, column, columns, panel);
       },
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
      const DroppedSource source{values, k, dropout};
      Gemm(ctx, memory.bytes, shape, lhs,
           [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
             PackColumns(source, first, depth, column, columns, panel);
           },
           add);
    } else {
      const MatrixSource source{values, k};
      Gemm(ctx, memory.bytes, shape, lhs,
           [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
             PackColumns(source, first, depth, column, columns, panel);
           },
           add);
    }
  }
  if (lora.db != nullptr) {
    auto* db = static_cast<float*>(lora.db);
    const auto* u = static_cast<const BF16*>(lora.u);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < r; ++j) memory.u_across[j * m + i] = ToOperand(u[i * r + j]);
    const MatrixSource source{static_cast<const BF16*>(dy), n};
    Gemm(ctx, memory.bytes, GemmShape{r, n, m}, Lhs{memory.u_across, m, true},
         [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
           PackColumns(source, first, depth, column, columns, panel);
         },
         [&](int64_t row, int64_t rows, int64_t column, int64_t width, const float* sums,
             int64_t stride) {
           for (int64_t j = 0; j < width; ++j)
             for (int64_t i = 0; i < rows; ++i)
               db[(column + j) * r + row + i] += lora.scale * sums[i * stride + j];
         });
  }
}

static void LinearBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                           const LinearArgs& args) {
  CheckLinear(ctx, args);
  const WeightView& w = args.w;
  const WeightSource source{w};
  const auto pack = [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
    PackColumns(source, first, depth, column, columns, panel);
  };
  const GemmShape shape{args.m, w.k, w.n};
  const StoreRows store{static_cast<BF16*>(dx), w.k, {}, accumulate};
  if (args.lora == nullptr || args.lora->r == 0) {
    if (dx != nullptr) Gemm(ctx, 0, shape, Lhs{dy, w.n}, pack, store);
    return;
  }
  const LoraArgs& lora = *args.lora;
  const BranchMemory memory = MakeBranchMemory(ctx, args.m, lora.r);
  BranchGradients(ctx, dy, x, args, memory);
  if (dx == nullptr) return;
  const Dropout dropout(lora.dropout);
  const bool drop = lora.dropout.p > 0;
  const MatrixSource a{static_cast<const BF16*>(lora.a), w.k};
  const auto pack_a = [&](int64_t column, int64_t columns, int64_t first, int64_t depth, float* panel) {
    PackColumns(a, first, depth, column, columns, panel);
  };
  const Branch<decltype(pack_a)> branch{Lhs{memory.du, lora.r}, lora.r, drop ? dropout.inverse : 1.0f,
                                        drop ? &dropout : nullptr, pack_a};
  Gemm(ctx, memory.bytes, shape, Lhs{dy, w.n}, pack, branch, store);
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
