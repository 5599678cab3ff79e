// Reference norms, rotary embedding, gated activations, embedding, optimizer and other elementwise ops.
#pragma once

#include <algorithm>

#include "kernels/ref/common.h"

namespace nibble::kernels::ref {

// Elements a piece of an elementwise op covers.
constexpr int64_t kElementwisePiece = 16384;

template <typename F>
void RunSpans(Context* ctx, int64_t count, F&& fn) {
  RunPieces(ctx->pool, (count + kElementwisePiece - 1) / kElementwisePiece, [&](int64_t piece, int) {
    const int64_t first = piece * kElementwisePiece;
    fn(first, std::min(count, first + kElementwisePiece));
  });
}

template <typename Act, typename Real>
struct Elementwise {
  static void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                             int64_t dim, float eps, float unit_offset) {
    KERNEL_CHECK(m >= 0 && dim > 0);
    RunPieces(ctx->pool, m, [&](int64_t row, int) {
      const Act* in = static_cast<const Act*>(x) + row * dim;
      Act* out = static_cast<Act*>(y) + row * dim;
      Real squares = 0;
      for (int64_t i = 0; i < dim; ++i) squares += Get<Real>(in, i) * Get<Real>(in, i);
      const Real scale =
          1 / std::sqrt(squares / static_cast<Real>(dim) + static_cast<Real>(eps));
      if (rstd != nullptr) static_cast<Real*>(rstd)[row] = scale;
      for (int64_t i = 0; i < dim; ++i)
        Put(out, i, Get<Real>(in, i) * scale * (GetParam<Real>(w, i) + static_cast<Real>(unit_offset)));
    });
  }

  static void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                              ParamView w, const void* rstd, int64_t m, int64_t dim,
                              float unit_offset) {
    KERNEL_CHECK(m >= 0 && dim > 0);
    RunPieces(ctx->pool, m, [&](int64_t row, int) {
      const Act* in = static_cast<const Act*>(x) + row * dim;
      const Act* gradient = static_cast<const Act*>(dy) + row * dim;
      Act* out = static_cast<Act*>(dx) + row * dim;
      const Real scale = static_cast<const Real*>(rstd)[row];
      const auto weighted = [&](int64_t i) {
        return Get<Real>(gradient, i) * (GetParam<Real>(w, i) + static_cast<Real>(unit_offset));
      };
      Real sum = 0;
      for (int64_t i = 0; i < dim; ++i) sum += weighted(i) * Get<Real>(in, i) * scale;
      const Real mean = sum / static_cast<Real>(dim);
      for (int64_t i = 0; i < dim; ++i) {
        Real value = scale * (weighted(i) - Get<Real>(in, i) * scale * mean);
        if (accumulate) value += Get<Real>(out, i);
        Put(out, i, value);
      }
    });
  }

  static void Add(Context* ctx, void* out, const void* a, const void* b, int64_t count) {
    RunSpans(ctx, count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        Put(static_cast<Act*>(out), i,
            Get<Real>(static_cast<const Act*>(a), i) + Get<Real>(static_cast<const Act*>(b), i));
    });
  }

  static void Rope(Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m,
                   int64_t heads, int64_t head_dim, int64_t rotary_dim, bool inverse) {
    KERNEL_CHECK(m >= 0 && heads > 0 && rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim);
    const int64_t half = rotary_dim / 2;
    RunPieces(ctx->pool, m, [&](int64_t row, int) {
      const float* angles = cos_sin + positions[row] * rotary_dim;
      for (int64_t head = 0; head < heads; ++head) {
        Act* values = static_cast<Act*>(x) + (row * heads + head) * head_dim;
        for (int64_t i = 0; i < half; ++i) {
          const Real c = static_cast<Real>(angles[2 * i]);
          const Real s = static_cast<Real>(inverse ? -angles[2 * i + 1] : angles[2 * i + 1]);
          const Real a = Get<Real>(values, i), b = Get<Real>(values, i + half);
          Put(values, i, a * c - b * s);
          Put(values, i + half, b * c + a * s);
        }
      }
    });
  }

  static void SplitColumns(Context* ctx, const void* all, const ColumnsArgs& args) {
    EachColumn(ctx, args, [&](Act* part, int64_t at) { *part = static_cast<const Act*>(all)[at]; });
  }
  static void JoinColumns(Context* ctx, void* all, const ColumnsArgs& args) {
    EachColumn(ctx, args, [&](const Act* part, int64_t at) { static_cast<Act*>(all)[at] = *part; });
  }
  // fn(an element of a part, its place in all).
  template <typename F>
  static void EachColumn(Context* ctx, const ColumnsArgs& args, F&& fn) {
    KERNEL_CHECK(args.rows >= 0 && args.AllWidth() > 0);
    RunPieces(ctx->pool, args.rows, [&](int64_t row, int) {
      int64_t at = row * args.AllWidth();
      for (int p = 0; p < kMostColumns; ++p) {
        Act* part = static_cast<Act*>(args.part[p]) + row * args.width[p];
        for (int64_t i = 0; i < args.width[p]; ++i) fn(part + i, at++);
      }
    });
  }

  // activation(g), and its derivative when asked.
  static Real Activate(Real g, Activation activation, Real* derivative) {
    if (activation == Activation::kSilu) {
      const Real sigmoid = 1 / (1 + std::exp(-g));
      if (derivative != nullptr) *derivative = sigmoid * (1 + g * (1 - sigmoid));
      return g * sigmoid;
    }
    const Real c = static_cast<Real>(0.7978845608028654), a = static_cast<Real>(0.044715);
    // Beyond 64 it is g, or nothing, in every precision; powers would overflow beside a factor of zero.
    const Real bound = 64, near = g > bound ? bound : g < -bound ? -bound : g;
    const Real t = std::tanh(c * (near + a * near * near * near));
    if (derivative != nullptr)
      *derivative = (1 + t) / 2 + near / 2 * (1 - t * t) * c * (1 + 3 * a * near * near);
    return g / 2 * (1 + t);
  }

  // Where element i of a dense array is in one with a stride.
  static int64_t Strided(const GatedArgs& args, int64_t i) {
    const int64_t stride = args.stride != 0 ? args.stride : args.width;
    return i / args.width * stride + i % args.width;
  }

  static void GatedForward(Context* ctx, void* out, const void* gate, const void* up,
                           const GatedArgs& args) {
    RunSpans(ctx, args.rows * args.width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t at = Strided(args, i);
        const Real g = Get<Real>(static_cast<const Act*>(gate), at);
        Put(static_cast<Act*>(out), i,
            Activate(g, args.activation, nullptr) * Get<Real>(static_cast<const Act*>(up), at));
      }
    });
  }

  static void GatedBackward(Context* ctx, void* dgate, void* dup, const void* dout, const void* gate,
                            const void* up, const GatedArgs& args) {
    RunSpans(ctx, args.rows * args.width, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t at = Strided(args, i);
        const Real g = Get<Real>(static_cast<const Act*>(gate), at);
        const Real u = Get<Real>(static_cast<const Act*>(up), at);
        const Real d = Get<Real>(static_cast<const Act*>(dout), i);
        Real derivative;
        const Real value = Activate(g, args.activation, &derivative);
        Put(static_cast<Act*>(dgate), at, d * u * derivative);
        Put(static_cast<Act*>(dup), at, d * value);
      }
    });
  }

  static void EmbeddingForward(Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m,
                               int64_t dim, float scale) {
    RunPieces(ctx->pool, m, [&](int64_t row, int) {
      for (int64_t i = 0; i < dim; ++i)
        Put(static_cast<Act*>(out), row * dim + i,
            static_cast<Real>(scale) * GetParam<Real>(table, ids[row] * dim + i));
    });
  }

  static void AdamW(Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
    KERNEL_CHECK(args.step >= 1);
    const auto beta1 = static_cast<Real>(args.beta1), beta2 = static_cast<Real>(args.beta2);
    const auto rest1 = static_cast<Real>(1 - args.beta1), rest2 = static_cast<Real>(1 - args.beta2);
    const auto steps = static_cast<double>(args.step);
    const auto rate = static_cast<Real>(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    const auto correction = static_cast<Real>(1 / (1 - std::pow(args.beta2, steps)));
    const auto decay = static_cast<Real>(args.learning_rate * args.weight_decay);
    const auto epsilon = static_cast<Real>(args.epsilon);
    const auto clip = static_cast<Real>(args.gradient_scale);
    Real* param = static_cast<Real*>(p);
    Real* first_moment = static_cast<Real*>(m);
    Real* second_moment = static_cast<Real*>(v);
    RunSpans(ctx, args.count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const Real gradient = static_cast<const Real*>(g)[i] * clip;
        first_moment[i] = beta1 * first_moment[i] + rest1 * gradient;
        second_moment[i] = beta2 * second_moment[i] + rest2 * gradient * gradient;
        param[i] -= decay * param[i];
        param[i] -= rate * first_moment[i] / (std::sqrt(second_moment[i] * correction) + epsilon);
      }
    });
  }

  static void SumSquares(Context* ctx, double* out, const void* x, int64_t count) {
    constexpr int64_t kPieces = 64;
    double parts[kPieces] = {};
    const int64_t span = (count + kPieces - 1) / kPieces;
    RunPieces(ctx->pool, kPieces, [&](int64_t piece, int) {
      double sum = 0;
      for (int64_t i = piece * span; i < std::min(count, (piece + 1) * span); ++i) {
        const auto value = static_cast<double>(static_cast<const Real*>(x)[i]);
        sum += value * value;
      }
      parts[piece] = sum;
    });
    double sum = 0;
    for (const double part : parts) sum += part;
    *out = sum;
  }

  static void ToAct(Context* ctx, void* out, const void* in, int64_t count) {
    RunSpans(ctx, count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        Put(static_cast<Act*>(out), i, static_cast<const Real*>(in)[i]);
    });
  }
};

}  // namespace nibble::kernels::ref
