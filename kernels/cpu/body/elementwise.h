// Norms, rotary embedding, gated activations, embedding, optimizer and other elementwise ops.
#pragma once

#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/body/partial.h"
#include "kernels/kernel_table.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// Elements a piece covers: enough that handing it to a thread is cheap beside it.
constexpr int64_t kPieceElements = 16384;

// fn(first, last) over spans of `count`.
template <typename F>
static void RunSpans(Context* ctx, int64_t count, const F& fn) {
  RunPieces(ctx->pool, (count + kPieceElements - 1) / kPieceElements, [&](int64_t piece, int) {
    const int64_t first = piece * kPieceElements;
    const int64_t last = first + kPieceElements;
    fn(first, last < count ? last : count);
  });
}

// fn(row) over rows of about `width` elements.
template <typename F>
static void RunRows(Context* ctx, int64_t rows, int64_t width, const F& fn) {
  const int64_t rows_per_piece = kPieceElements / (width > 0 ? width : 1) + 1;
  RunPieces(ctx->pool, (rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int) {
    const int64_t last = (piece + 1) * rows_per_piece;
    for (int64_t row = piece * rows_per_piece; row < (last < rows ? last : rows); ++row) fn(row);
  });
}

// fn(i, lanes, slot) over the vectors of `count` elements; slot says which of four sums a vector belongs to,
// so that additions do not wait for each other. `lanes` is less than kLanes in the last one only.
template <typename F>
NIBBLE_INLINE void EachVector(int64_t count, const F& fn) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    fn(i, kLanes, 0);
    fn(i + kLanes, kLanes, 1);
    fn(i + 2 * kLanes, kLanes, 2);
    fn(i + 3 * kLanes, kLanes, 3);
  }
  for (; i + kLanes <= count; i += kLanes) fn(i, kLanes, 0);
  if (i < count) fn(i, count - i, 0);
}
#define NIBBLE_VECTOR (int64_t i, int64_t lanes, [[maybe_unused]] int slot) __attribute__((always_inline))

NIBBLE_INLINE float SumSlots(const F32* sums) {
  return SumLanes(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

static void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                           int64_t dim, float eps, float unit_offset) {
  KERNEL_CHECK(m >= 0 && dim > 0 && IsReadable(w));
  WithParam(w, [&](const auto* weights) {
    RunRows(ctx, m, dim, [&](int64_t row) {
      const BF16* in = static_cast<const BF16*>(x) + row * dim;
      BF16* out = static_cast<BF16*>(y) + row * dim;
      F32 squares[4] = {Zero(), Zero(), Zero(), Zero()};
      EachVector(dim, [&] NIBBLE_VECTOR {
        const F32 v = LoadSome(in + i, lanes);
        squares[slot] = Fma(v, v, squares[slot]);
      });
      const float scale = 1.0f / std::sqrt(SumSlots(squares) / static_cast<float>(dim) + eps);
      if (rstd != nullptr) static_cast<float*>(rstd)[row] = scale;
      EachVector(dim, [&] NIBBLE_VECTOR {
        const F32 weight = Add(LoadSome(weights + i, lanes), Set1(unit_offset));
        StoreSome(out + i, Mul(Mul(LoadSome(in + i, lanes), Set1(scale)), weight), lanes);
      });
    });
  });
}

static void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                            ParamView w, const void* rstd, int64_t m, int64_t dim, float unit_offset) {
  KERNEL_CHECK(m >= 0 && dim > 0 && IsReadable(w));
  WithParam(w, [&](const auto* weights) {
    RunRows(ctx, m, dim, [&](int64_t row) {
      const BF16* in = static_cast<const BF16*>(x) + row * dim;
      const BF16* gradient = static_cast<const BF16*>(dy) + row * dim;
      BF16* out = static_cast<BF16*>(dx) + row * dim;
      const float scale = static_cast<const float*>(rstd)[row];
      const auto weighted = [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        return Mul(LoadSome(gradient + i, lanes), Add(LoadSome(weights + i, lanes), Set1(unit_offset)));
      };
      F32 dots[4] = {Zero(), Zero(), Zero(), Zero()};
      EachVector(dim, [&] NIBBLE_VECTOR {
        dots[slot] = Fma(weighted(i, lanes), LoadSome(in + i, lanes), dots[slot]);
      });
      const F32 mean = Set1(SumSlots(dots) * scale * scale / static_cast<float>(dim));
      EachVector(dim, [&] NIBBLE_VECTOR {
        F32 value = Mul(Set1(scale), NegFma(LoadSome(in + i, lanes), mean, weighted(i, lanes)));
        if (accumulate) value = Add(value, LoadSome(out + i, lanes));
        StoreSome(out + i, value, lanes);
      });
    });
  });
}

static void AddArrays(Context* ctx, void* out, const void* a, const void* b, int64_t count) {
  RunSpans(ctx, count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes) {
      const F32 sum = Add(LoadSome(static_cast<const BF16*>(a) + i, last - i),
                          LoadSome(static_cast<const BF16*>(b) + i, last - i));
      StoreSome(static_cast<BF16*>(out) + i, sum, last - i);
    }
  });
}

static void Rope(Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m,
                 int64_t heads, int64_t head_dim, int64_t rotary_dim, bool inverse) {
  KERNEL_CHECK(m >= 0 && heads > 0 && rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim);
  const int64_t half = rotary_dim / 2;
  RunRows(ctx, m, heads * head_dim, [&](int64_t row) {
    const float* angles = cos_sin + positions[row] * rotary_dim;
    BF16* values = static_cast<BF16*>(x) + row * heads * head_dim;
    for (int64_t i = 0; i < half; i += kLanes) {
      const int64_t lanes = half - i < kLanes ? half - i : kLanes;
      float cosines[kLanes] = {}, sines[kLanes] = {};
      for (int64_t j = 0; j < lanes; ++j) {
        cosines[j] = angles[2 * (i + j)];
        sines[j] = inverse ? -angles[2 * (i + j) + 1] : angles[2 * (i + j) + 1];
      }
      const F32 c = Load(cosines), s = Load(sines);
      for (int64_t head = 0; head < heads; ++head) {
        BF16* low = values + head * head_dim + i;
        const F32 a = LoadSome(low, lanes), b = LoadSome(low + half, lanes);
        StoreSome(low, NegFma(b, s, Mul(a, c)), lanes);
        StoreSome(low + half, Fma(a, s, Mul(b, c)), lanes);
      }
    }
  });
}

// fn(the place in all of a row of a part, that row, its bytes).
template <typename F>
static void EachColumns(Context* ctx, const ColumnsArgs& args, const F& fn) {
  KERNEL_CHECK(args.rows >= 0 && args.AllWidth() > 0);
  RunRows(ctx, args.rows, args.AllWidth(), [&](int64_t row) {
    int64_t at = row * args.AllWidth();
    for (int p = 0; p < kMostColumns; at += args.width[p++]) {
      if (args.width[p] == 0) continue;
      fn(at, static_cast<BF16*>(args.part[p]) + row * args.width[p],
         static_cast<size_t>(args.width[p]) * sizeof(BF16));
    }
  });
}
static void SplitColumns(Context* ctx, const void* all, const ColumnsArgs& args) {
  EachColumns(ctx, args, [&](int64_t at, BF16* part, size_t bytes) {
    __builtin_memcpy(part, static_cast<const BF16*>(all) + at, bytes);
  });
}
static void JoinColumns(Context* ctx, void* all, const ColumnsArgs& args) {
  EachColumns(ctx, args, [&](int64_t at, const BF16* part, size_t bytes) {
    __builtin_memcpy(static_cast<BF16*>(all) + at, part, bytes);
  });
}

// The activation's value and derivative.
struct Activated {
  F32 value, derivative;
};
NIBBLE_INLINE Activated Activate(F32 g, Activation activation) {
  const F32 one = Set1(1.0f);
  if (activation == Activation::kSilu) {
    const F32 sigmoid = Sigmoid(g);
    return {Mul(g, sigmoid), Mul(sigmoid, Fma(g, Sub(one, sigmoid), one))};
  }
  // g sigmoid(2 z), z = c (g + a g^3): the tanh form without its cancellation.
  const F32 c = Set1(0.7978845608028654f), a = Set1(0.044715f);
  // Beyond 64 it is g, or nothing, in every precision; powers would overflow beside a factor of zero.
  const F32 near = Max(Set1(-64.0f), Min(Set1(64.0f), g));
  const F32 square = Mul(near, near);
  const F32 z = Mul(Mul(c, near), Fma(a, square, one));
  const F32 sigmoid = Sigmoid(Add(z, z));
  const F32 slope = Mul(Set1(2.0f), Mul(c, Fma(Mul(Set1(3.0f), a), square, one)));
  return {Mul(g, sigmoid), Mul(sigmoid, Fma(Mul(near, slope), Sub(one, sigmoid), one))};
}

// Dense arrays are one row; else every row is on its own. each(first, last, strided): elements of the dense
// arrays, and where the first is in those with a stride.
template <typename Each>
static void RunGated(Context* ctx, const GatedArgs& args, const Each& each) {
  const bool dense = args.stride == 0 || args.stride == args.width;
  if (dense) {
    RunSpans(ctx, args.rows * args.width,
             [&](int64_t first, int64_t last) { each(first, last, first); });
    return;
  }
  RunRows(ctx, args.rows, args.width, [&](int64_t row) {
    each(row * args.width, (row + 1) * args.width, row * args.stride);
  });
}

static void GatedForward(Context* ctx, void* out, const void* gate, const void* up, const GatedArgs& args) {
  RunGated(ctx, args, [&](int64_t first, int64_t last, int64_t strided) {
    EachVector(last - first, [&] NIBBLE_VECTOR {
      const int64_t at = strided + i;
      const Activated a = Activate(LoadSome(static_cast<const BF16*>(gate) + at, lanes), args.activation);
      const F32 u = LoadSome(static_cast<const BF16*>(up) + at, lanes);
      StoreSome(static_cast<BF16*>(out) + first + i, Mul(a.value, u), lanes);
    });
  });
}

static void GatedBackward(Context* ctx, void* dgate, void* dup, const void* dout, const void* gate,
                          const void* up, const GatedArgs& args) {
  RunGated(ctx, args, [&](int64_t first, int64_t last, int64_t strided) {
    EachVector(last - first, [&] NIBBLE_VECTOR {
      const int64_t at = strided + i;
      const Activated a = Activate(LoadSome(static_cast<const BF16*>(gate) + at, lanes), args.activation);
      const F32 u = LoadSome(static_cast<const BF16*>(up) + at, lanes);
      const F32 d = LoadSome(static_cast<const BF16*>(dout) + first + i, lanes);
      StoreSome(static_cast<BF16*>(dgate) + at, Mul(Mul(d, u), a.derivative), lanes);
      StoreSome(static_cast<BF16*>(dup) + at, Mul(d, a.value), lanes);
    });
  });
}

static void EmbeddingForward(Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m,
                             int64_t dim, float scale) {
  KERNEL_CHECK(IsReadable(table));
  RunRows(ctx, m, dim, [&](int64_t row) {
    BF16* to = static_cast<BF16*>(out) + row * dim;
    const int64_t from = ids[row] * dim, next = row + 1 < m ? ids[row + 1] * dim : from;
    for (int64_t i = 0; i < dim; i += kLanes) {
      // Rows lie anywhere: the next one is fetched while this one is copied.
      __builtin_prefetch(static_cast<const char*>(table.data) + (next + i) * DTypeBytes(table.type));
      StoreSome(to + i, Mul(LoadParam(table, from + i, dim - i), Set1(scale)), dim - i);
    }
  });
}

// The constants of a step, formed in double.
struct AdamWFactors {
  explicit AdamWFactors(const AdamWArgs& args)
      : beta1(Of(args.beta1)), beta2(Of(args.beta2)), rest1(Of(1 - args.beta1)), rest2(Of(1 - args.beta2)),
        decay(Of(args.learning_rate * args.weight_decay)), epsilon(Of(args.epsilon)),
        clip(Of(args.gradient_scale)) {
    KERNEL_CHECK(args.step >= 1);
    const auto steps = static_cast<double>(args.step);
    rate = Of(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    correction = Of(1 / (1 - std::pow(args.beta2, steps)));
  }
  // The parameter, decayed already, after its step along these moments.
  F32 Step(F32 value, F32 m, F32 v) const {
    return Sub(value, Div(Mul(rate, m), Add(Sqrt(Mul(v, correction)), epsilon)));
  }
  F32 beta1, beta2, rest1, rest2, rate, correction, decay, epsilon, clip;

 private:
  static F32 Of(double value) { return Set1(static_cast<float>(value)); }
};

static void AdamW(Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
  const AdamWFactors by(args);
  RunSpans(ctx, args.count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes) {
      const int64_t lanes = last - i;
      float* const param = static_cast<float*>(p) + i;
      float* const moment1 = static_cast<float*>(m) + i;
      float* const moment2 = static_cast<float*>(v) + i;
      const F32 gradient = Mul(LoadSome(static_cast<const float*>(g) + i, lanes), by.clip);
      const F32 m1 = Fma(by.beta1, LoadSome(moment1, lanes), Mul(by.rest1, gradient));
      const F32 m2 = Fma(by.beta2, LoadSome(moment2, lanes), Mul(Mul(by.rest2, gradient), gradient));
      const F32 value = LoadSome(param, lanes);
      StoreSome(moment1, m1, lanes);
      StoreSome(moment2, m2, lanes);
      StoreSome(param, by.Step(NegFma(by.decay, value, value), m1, m2), lanes);
    }
  });
}

static void SumSquares(Context* ctx, double* out, const void* x, int64_t count) {
  constexpr int64_t kPieces = 64;
  double parts[kPieces] = {};
  const auto* values = static_cast<const float*>(x);
  const int64_t span = (count + kPieces - 1) / kPieces;
  const int64_t pieces = count < kPieceElements ? 1 : kPieces;
  RunPieces(ctx->pool, pieces, [&](int64_t group, int) {
    for (int64_t piece = group * kPieces / pieces; piece < (group + 1) * kPieces / pieces; ++piece) {
      const int64_t last = (piece + 1) * span < count ? (piece + 1) * span : count;
      double sums[8] = {};
      int64_t i = piece * span;
      for (; i + 8 <= last; i += 8) {
        for (int64_t j = 0; j < 8; ++j) {
          const auto value = static_cast<double>(values[i + j]);
          sums[j] += value * value;
        }
      }
      for (; i < last; ++i) sums[0] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      for (const double sum : sums) parts[piece] += sum;
    }
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  *out = sum;
}

static void ToAct(Context* ctx, void* out, const void* in, int64_t count) {
  RunSpans(ctx, count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes)
      StoreSome(static_cast<BF16*>(out) + i, LoadSome(static_cast<const float*>(in) + i, last - i), last - i);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
