// Reference linear layers over frozen, possibly quantized weights, with a LoRA branch.
#pragma once

#include <algorithm>

#include "kernels/ref/common.h"

namespace nibble::kernels::ref {

template <typename Act, typename Real>
struct Linear {
  static void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
    KERNEL_CHECK(n0 >= 0 && rows >= 0 && n0 + rows <= w.n);
    RunPieces(ctx->pool, rows, [&](int64_t row, int) {
      DecodeRow(static_cast<Act*>(out) + row * w.k, w, (n0 + row) * w.k, w.k);
    });
  }

  static void Forward(Context* ctx, void* y, const void* x, const LinearArgs& args) {
    Outputs(ctx, static_cast<Act*>(y), args.w.n, static_cast<const Act*>(x), args);
  }

  static void Backward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                       const LinearArgs& args) {
    Gradients(ctx, static_cast<Act*>(dx), accumulate, static_cast<const Act*>(dy), args.w.n,
              static_cast<const Act*>(x), args);
  }

  static void GroupForward(Context* ctx, const void* x, const LinearGroup& group) {
    for (int i = 0; i < group.count; ++i)
      Outputs(ctx, static_cast<Act*>(group.y[i]), StrideOf(group, i), static_cast<const Act*>(x),
              group.linear[i]);
  }

  static void ForwardParts(Context* ctx, const LinearPart* parts, int64_t count) {
    for (int64_t i = 0; i < count; ++i) Forward(ctx, parts[i].out, parts[i].in, parts[i].args);
  }

  static void BackwardParts(Context* ctx, const LinearPart* parts, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const LinearPart& part = parts[i];
      Backward(ctx, part.out, part.accumulate, part.in, part.x, part.args);
    }
  }

  // Where act is real, so that adding to dx is no further rounding.
  static void GroupBackward(Context* ctx, void* dx, const void* x, const LinearGroup& group) {
    for (int i = 0; i < group.count; ++i)
      Gradients(ctx, static_cast<Act*>(dx), i > 0, static_cast<const Act*>(group.y[i]),
                StrideOf(group, i), static_cast<const Act*>(x), group.linear[i]);
  }

 private:
  static int64_t StrideOf(const LinearGroup& group, int i) {
    return group.stride != 0 ? group.stride : group.linear[i].w.n;
  }

  // Rows of y and dy are `stride` apart.
  static void Outputs(Context* ctx, Act* y, int64_t stride, const Act* x, const LinearArgs& args) {
    const WeightView& w = args.w;
    KERNEL_CHECK(args.m >= 0 && w.n > 0 && w.k > 0);
    if (args.lora != nullptr) DownProjection(ctx, x, args);
    RunPieces(ctx->pool, w.n, [&](int64_t n, int thread) {
      Act* weights = ThreadSlice<Act>(ctx, thread, w.k);
      DecodeRow(weights, w, n * w.k, w.k);
      for (int64_t m = 0; m < args.m; ++m) {
        Real sum = 0;
        for (int64_t k = 0; k < w.k; ++k)
          sum += Get<Real>(x, m * w.k + k) * Get<Real>(weights, k);
        if (args.bias.data != nullptr) sum += GetParam<Real>(args.bias, n);
        if (args.lora != nullptr) sum += UpProjection(*args.lora, m, n);
        Put(y, m * stride + n, sum);
      }
    });
  }

  static void Gradients(Context* ctx, Act* dx, bool accumulate, const Act* dy, int64_t stride, const Act* x,
                        const LinearArgs& args) {
    KERNEL_CHECK(args.m >= 0 && args.w.n > 0 && args.w.k > 0);
    Real* du = nullptr;
    if (args.lora != nullptr) {
      // The last bytes of the workspace; thread slices are at its beginning.
      const int64_t bytes = args.m * args.lora->r * static_cast<int64_t>(sizeof(Real));
      const int64_t slices = PoolThreads(ctx->pool) * (256 * args.m + 64);
      KERNEL_CHECK(bytes + slices <= ctx->workspace_bytes);
      du = reinterpret_cast<Real*>(static_cast<char*>(ctx->workspace) + RoundUp(slices, 64));
      AdapterGradients(ctx, du, dy, stride, x, args);
    }
    if (dx != nullptr) InputGradient(ctx, dx, accumulate, dy, stride, du, args);
  }

  static void DecodeRow(Act* out, const WeightView& w, int64_t first, int64_t count) {
    float span[256];
    for (int64_t done = 0; done < count; done += 256) {
      const int64_t part = std::min<int64_t>(256, count - done);
      DequantizeRange(w, first + done, part, span);
      for (int64_t i = 0; i < part; ++i) Put(out, done + i, span[i]);
    }
  }

  static void DownProjection(Context* ctx, const Act* x, const LinearArgs& args) {
    const LoraArgs& lora = *args.lora;
    const int64_t columns = args.w.k;
    RunPieces(ctx->pool, args.m, [&](int64_t m, int) {
      for (int64_t j = 0; j < lora.r; ++j) {
        Real sum = 0;
        for (int64_t k = 0; k < columns; ++k)
          sum += Get<Real>(x, m * columns + k) * DropoutFactor<Real>(lora.dropout, m, k, columns) *
                 Get<Real>(static_cast<const Act*>(lora.a), j * columns + k);
        Put(static_cast<Act*>(lora.u), m * lora.r + j, sum);
      }
    });
  }

  static Real UpProjection(const LoraArgs& lora, int64_t m, int64_t n) {
    Real sum = 0;
    for (int64_t j = 0; j < lora.r; ++j)
      sum += Get<Real>(static_cast<const Act*>(lora.u), m * lora.r + j) *
             Get<Real>(static_cast<const Act*>(lora.b), n * lora.r + j);
    return sum * static_cast<Real>(lora.scale);
  }

  static void AdapterGradients(Context* ctx, Real* du, const Act* dy, int64_t stride, const Act* x,
                               const LinearArgs& args) {
    const LoraArgs& lora = *args.lora;
    const int64_t r = lora.r, rows = args.m, inputs = args.w.k, outputs = args.w.n;
    const auto scale = static_cast<Real>(lora.scale);
    RunPieces(ctx->pool, rows, [&](int64_t m, int) {
      for (int64_t j = 0; j < r; ++j) {
        Real sum = 0;
        for (int64_t n = 0; n < outputs; ++n)
          sum += Get<Real>(dy, m * stride + n) * Get<Real>(static_cast<const Act*>(lora.b), n * r + j);
        du[m * r + j] = scale * sum;
      }
    });
    if (lora.da != nullptr) {
      RunPieces(ctx->pool, inputs, [&](int64_t k, int) {
        for (int64_t j = 0; j < r; ++j) {
          Real sum = 0;
          for (int64_t m = 0; m < rows; ++m)
            sum += du[m * r + j] * Get<Real>(x, m * inputs + k) *
                   DropoutFactor<Real>(lora.dropout, m, k, inputs);
          static_cast<Real*>(lora.da)[j * inputs + k] += sum;
        }
      });
    }
    if (lora.db != nullptr) {
      RunPieces(ctx->pool, outputs, [&](int64_t n, int) {
        for (int64_t j = 0; j < r; ++j) {
          Real sum = 0;
          for (int64_t m = 0; m < rows; ++m)
            sum += Get<Real>(dy, m * stride + n) * Get<Real>(static_cast<const Act*>(lora.u), m * r + j);
          static_cast<Real*>(lora.db)[n * r + j] += scale * sum;
        }
      });
    }
  }

  static void InputGradient(Context* ctx, Act* dx, bool accumulate, const Act* dy, int64_t stride,
                            const Real* du, const LinearArgs& args) {
    const WeightView& w = args.w;
    constexpr int64_t kColumns = 32;
    RunPieces(ctx->pool, (w.k + kColumns - 1) / kColumns, [&](int64_t piece, int thread) {
      const int64_t first = piece * kColumns;
      const int64_t columns = std::min(kColumns, w.k - first);
      Real* sums = ThreadSlice<Real>(ctx, thread, args.m * kColumns);
      std::fill_n(sums, args.m * kColumns, Real{0});
      for (int64_t n = 0; n < w.n; ++n) {
        Act weights[kColumns];
        DecodeRow(weights, w, n * w.k + first, columns);
        for (int64_t m = 0; m < args.m; ++m) {
          const Real g = Get<Real>(dy, m * stride + n);
          for (int64_t c = 0; c < columns; ++c) sums[m * kColumns + c] += g * Get<Real>(weights, c);
        }
      }
      for (int64_t m = 0; m < args.m; ++m) {
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t k = first + c;
          Real sum = sums[m * kColumns + c];
          if (du != nullptr) {
            Real branch = 0;
            for (int64_t j = 0; j < args.lora->r; ++j)
              branch += du[m * args.lora->r + j] *
                        Get<Real>(static_cast<const Act*>(args.lora->a), j * w.k + k);
            sum += branch * DropoutFactor<Real>(args.lora->dropout, m, k, w.k);
          }
          if (accumulate) sum += Get<Real>(dx, m * w.k + k);
          Put(dx, m * w.k + k, sum);
        }
      }
    });
  }
};

}  // namespace nibble::kernels::ref
